// Where in Redis what is kept lies.

package state

import (
	"encoding/hex"
	"strconv"

	"github.com/tallywire/tallywire/change"
)

// namespace is where all that is kept of a topic lies.
func namespace(transform string, id [16]byte) string {
	return "tw:{" + transform + "}:" + hex.EncodeToString(id[:8]) + ":"
}

// pointer is the key that tells the topic's id and partition count to readers.
func pointer(transform, topic string) string { return "tw:{" + transform + "}:topic:" + topic }

func pointerValue(t *change.Topic) string {
	return hex.EncodeToString(t.ID[:]) + ":" + strconv.Itoa(int(t.Partitions))
}

func markKey(ns string, partition int32) string {
	return ns + strconv.Itoa(int(partition)) + ":mark"
}

// RowsKey is the hash of a partition's rows: field = canonical key. It is
// emptied before a rebuild.
func (s *Store) RowsKey(t *change.Topic, partition int32) string {
	return rowsKey(namespace(s.transform, t.ID), partition)
}

func rowsKey(ns string, partition int32) string { return ns + strconv.Itoa(int(partition)) + ":rows" }

// NotesKey is a set of a partition for what is only shown to people; emptied
// before a rebuild, and no part of what may be relied on.
func (s *Store) NotesKey(t *change.Topic, partition int32) string {
	return namespace(s.transform, t.ID) + strconv.Itoa(int(partition)) + ":notes"
}

// TodoKey is like NotesKey: what is still to be looked at for the notes.
func (s *Store) TodoKey(t *change.Topic, partition int32) string {
	return namespace(s.transform, t.ID) + strconv.Itoa(int(partition)) + ":todo"
}

// IndexKey is the sorted set of an index entry. Indexes are supersets, shared
// by all partitions, and not emptied before a rebuild: what is too much in
// them is found out when it is used.
func (s *Store) IndexKey(t *change.Topic, index, key string) string {
	return indexKey(namespace(s.transform, t.ID), index, key)
}

func indexKey(ns, index, key string) string { return ns + "ix:" + index + ":" + key }
