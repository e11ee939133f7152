// The contracts of topics that only tallywire itself reads. They are in no
// Catalogue.

package avro

import (
	"strings"
)

const (
	refreshPrefix = "_tallywire.refresh."
	claimsPrefix  = "_tallywire.claims."
	rowsPrefix    = "_tallywire.rows."
)

const refreshSchema = `{"type": "record", "name": "Refresh", "namespace": "tallywire.internal",
  "doc": "A left row of a join that is to be looked at again, because something that it refers to changed.",
  "topic": "_tallywire.refresh", "key": ["left_key"], "owner": "tallywire",
  "fields": [{"name": "left_key", "type": "string", "doc": "Canonical key of the left row.", "owner": "tallywire", "sensitivity": "internal"}]}`

const claimSchema = `{"type": "record", "name": "Claim", "namespace": "tallywire.internal",
  "doc": "A row of a source claims a canonical key, or gives it up.",
  "topic": "_tallywire.claims", "key": ["entity", "key"], "owner": "tallywire",
  "fields": [
    {"name": "entity", "type": "string", "doc": "Topic of the canonical records.", "owner": "tallywire", "sensitivity": "internal"},
    {"name": "key", "type": "string", "doc": "The canonical key.", "owner": "tallywire", "sensitivity": "internal"},
    {"name": "claimant", "type": "string", "doc": "The raw topic and the key of the row.", "owner": "tallywire", "sensitivity": "internal"},
    {"name": "gone", "type": "boolean", "doc": "It gives the key up.", "owner": "tallywire", "sensitivity": "internal"},
    {"name": "row", "type": "bytes", "doc": "The record that it makes of the key, or its key alone where it gives it up; in a form of the mapping's own.", "owner": "tallywire", "sensitivity": "restricted"}]}`

const rowSchema = `{"type": "record", "name": "Row", "namespace": "tallywire.internal",
  "doc": "The columns of a source's row that lookups use.",
  "topic": "_tallywire.rows", "key": ["key"], "owner": "tallywire",
  "fields": [
    {"name": "key", "type": "string", "doc": "The key of the row; equal numbers have one text.", "owner": "tallywire", "sensitivity": "internal"},
    {"name": "row", "type": "bytes", "doc": "Names, kinds and values of the columns, in a form of the mapping's own.", "owner": "tallywire", "sensitivity": "restricted"}]}`

// RefreshTopic is the topic of the refresh records of a join.
func RefreshTopic(join string) string { return refreshPrefix + join }

// Refresh is the contract of a join's refresh topic.
func Refresh(join string) *Contract { return internal(refreshSchema, "refresh", RefreshTopic(join)) }

// ClaimsTopic is the topic of the claims that a mapping's rules make.
func ClaimsTopic(transform string) string { return claimsPrefix + transform }

// Claims is the contract of a mapping's claims topic.
func Claims(transform string) *Contract {
	return internal(claimSchema, "claims", ClaimsTopic(transform))
}

// RowsTopic is the topic of the rows of a raw topic that a mapping looks up.
func RowsTopic(transform, raw string) string { return rowsPrefix + transform + "." + raw }

// Rows is the contract of such a topic.
func Rows(topic string) *Contract { return internal(rowSchema, "rows", topic) }

func internal(schema, name, topic string) *Contract {
	c, err := parseContract(schema)
	if err != nil {
		panic("BUG: the contract of " + topic + ": " + err.Error())
	}
	t := *c.Table
	t.Topic, t.Name = topic, name
	c.Topic, c.Name, c.Table = t.Topic, t.Name, t.Index()
	return c
}

// internalContract is the contract of a topic of tallywire's own, or nil.
func internalContract(topic string) *Contract {
	if join, ok := strings.CutPrefix(topic, refreshPrefix); ok {
		return Refresh(join)
	}
	if transform, ok := strings.CutPrefix(topic, claimsPrefix); ok {
		return Claims(transform)
	}
	if strings.HasPrefix(topic, rowsPrefix) {
		return Rows(topic)
	}
	return nil
}
