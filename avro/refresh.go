// Refresh: the contract of the topics by which a join tells itself which left
// rows to look at again.

package avro

import (
	"strings"
)

// refreshPrefix begins the topic of each join's refresh records.
const refreshPrefix = "_tallywire.refresh."

const refreshSchema = `{"type": "record", "name": "Refresh", "namespace": "tallywire.internal",
  "doc": "A left row of a join that is to be looked at again, because something that it refers to changed.",
  "topic": "_tallywire.refresh", "key": ["left_key"], "owner": "tallywire",
  "fields": [{"name": "left_key", "type": "string", "doc": "Canonical key of the left row.", "owner": "tallywire", "sensitivity": "internal"}]}`

// RefreshTopic is the topic of the refresh records of a join.
func RefreshTopic(join string) string { return refreshPrefix + join }

// Refresh is the contract of a join's refresh topic. It is not among
// Contracts: nobody but the join reads it.
func Refresh(join string) *Contract {
	c, err := parseContract(refreshSchema)
	if err != nil {
		panic("BUG: the contract of refresh topics: " + err.Error())
	}
	t := *c.Table
	t.Topic, t.Name = RefreshTopic(join), "refresh"
	c.Topic, c.Name, c.Table = t.Topic, t.Name, t.Index()
	return c
}

// internalContract is the contract of a topic of tallywire's own, or nil.
func internalContract(topic string) *Contract {
	if join, ok := strings.CutPrefix(topic, refreshPrefix); ok {
		return Refresh(join)
	}
	return nil
}
