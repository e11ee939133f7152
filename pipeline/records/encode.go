// Encode: the records of a change, whole or not at all.

package records

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
)

// recordOverhead is what Kafka's format adds to key, value and headers of a
// record that is alone in its batch, at most: 61 octets for the batch (KIP-98),
// and varints.
const recordOverhead = 128

// Debezium's headers of the two records of a key that changed: each has the
// other's key.
const (
	HeaderOldKey = "__debezium.oldkey"
	HeaderNewKey = "__debezium.newkey"
)

// Encode appends the records of b.Changes[from:to] in their order, partition
// and timestamp set. A change that cannot be encoded goes to Refused, and the
// others go on; of a raw change of which a record is too large it is that one
// alone, since a row that changed its key is gone from the former one all the
// same. Other errors fail all; a Table that Ensure
// has not seen is a bug of the caller. The batch is not used afterwards.
func (o *Outputs) Encode(rs *Buffer, b *change.Batch, from, to int) error {
	rs.memo.Reset()
	rs.reserve(to-from, 2*len(b.Raw()))
	var table *change.Table
	var out *Output
	for i := from; i < to; i++ {
		c := &b.Changes[i]
		if c.Table != table {
			table = c.Table
			if out = o.Find(table); out == nil {
				panic(fmt.Sprintf("BUG: table %q of topic %q was not ensured", table.Name, table.Topic))
			}
			if out.aside {
				rs.Aside = append(rs.Aside, out.ofAside())
			}
		}
		from := rs.filled()
		err := rs.change(out, b, c, i)
		if err == nil {
			err = rs.tooLarge(out, from.records)
		}
		if err != nil && problem.Has(err, ErrTooLarge) {
			rs.back(from)
			lean := leanOld(b, c)
			if lean == nil {
				lean = c
			}
			if err = rs.change(out, b, lean, i); err == nil {
				err = rs.refuseLarge(out, b, c, i, from.records)
			}
		}
		if err == nil {
			if c.Op == change.Truncate {
				rs.Cleared = append(rs.Cleared, from.records)
			}
			continue
		}
		if !rejects(err) {
			return err
		}
		rs.back(from)
		r := Refused{Index: i, Topic: out.Topic.Name, Key: string(change.AppendKey(nil, b, c)), RecordKey: []byte{}, Pos: c.Pos, Time: c.Time, Err: err}
		if k, err := out.enc.AppendKey(nil, b, c); err == nil && k != nil {
			r.RecordKey = k
		}
		rs.Refused = append(rs.Refused, r)
	}
	return nil
}

func (out *Output) ofAside() OfAside {
	key, value := out.enc.Schemas()
	return OfAside{out.Topic.Name, key, value}
}

// rejects reports whether an error is of one change alone.
func rejects(err error) bool {
	e := problem.Of(err)
	return e != nil && e.Class == problem.Reject
}

// change appends all records of one change.
func (rs *Buffer) change(out *Output, b *change.Batch, c *change.Change, at int) error {
	raw := c.Table.Source != ""
	switch {
	case c.Empties() && raw:
		for p := range out.Topic.Partitions {
			if err := rs.one(out, b, c, at, nil, p, true, "", nil); err != nil {
				return err
			}
		}
		return nil
	case c.Empties():
		return ErrNoRecord.New("a truncate or a sweep of %s", c.Table.Topic)
	case c.Row() == nil && (!raw || c.Op != change.Message):
		return ErrNoRecord.New("a change %q of %s without any row", c.Op, c.Table.Topic)
	case c.Op == change.Delete || c.New == nil && c.Old != nil:
		rs.key = change.AppendKeyRow(rs.key[:0], b, c.Table, c.Old)
		p := kafka.Partition(rs.key, out.Topic.Partitions)
		if raw {
			if err := rs.one(out, b, c, at, c.Old, p, true, "", nil); err != nil {
				return err
			}
		}
		return rs.one(out, b, c, at, c.Old, p, false, "", nil)
	}
	rs.key = change.AppendKeyRow(rs.key[:0], b, c.Table, c.New)
	p := kafka.Partition(rs.key, out.Topic.Partitions)
	if c.Op == change.Update && keyKnown(c.Table, c.Old) {
		rs.old = change.AppendKeyRow(rs.old[:0], b, c.Table, c.Old)
		if !bytes.Equal(rs.key, rs.old) {
			return rs.keyChange(out, b, c, at, kafka.Partition(rs.old, out.Topic.Partitions), p)
		}
	}
	return rs.one(out, b, c, at, c.New, p, true, "", nil)
}

// keyChange appends delete, tombstone and create (raw), or tombstone and
// record.
func (rs *Buffer) keyChange(out *Output, b *change.Batch, c *change.Change, at int, oldP, newP int32) error {
	if c.Table.Source == "" {
		if err := rs.one(out, b, c, at, c.Old, oldP, false, "", nil); err != nil {
			return err
		}
		return rs.one(out, b, c, at, c.New, newP, true, "", nil)
	}
	gone, born := *c, *c
	gone.Op, gone.New = change.Delete, nil
	born.Op, born.Old = change.Create, nil
	if err := rs.one(out, b, &gone, at, c.Old, oldP, true, HeaderNewKey, c.New); err != nil {
		return err
	}
	if err := rs.one(out, b, &gone, at, c.Old, oldP, false, "", nil); err != nil {
		return err
	}
	return rs.one(out, b, &born, at, c.New, newP, true, HeaderOldKey, c.Old)
}

// one appends one record: its key is that of keyRow, its value that of c or
// null; otherKey of otherRow becomes a header.
func (rs *Buffer) one(out *Output, b *change.Batch, c *change.Change, at int, keyRow []change.Value, p int32, value bool, otherKey string, otherRow []change.Value) error {
	from, hdrs := len(rs.buf), len(rs.hdrs)
	buf, err := out.enc.AppendKeyOf(rs.buf, b, keyRow)
	if err != nil {
		return err
	}
	n := len(buf)
	key := buf[from:n:n]
	var val []byte
	beside := false
	if value {
		if buf, err = out.enc.AppendValueWith(&rs.memo, buf, b, c); err != nil {
			return err
		}
		val = buf[n:len(buf):len(buf)]
		n = len(buf)
		beside = rs.memo.Beside()
	}
	if !c.Pos.IsZero() {
		buf = change.AppendPos(buf, c.Pos)
		rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: kafka.HeaderPos, Value: buf[n:len(buf):len(buf)]})
		n = len(buf)
	}
	if c.Coord.Topic != nil {
		buf = kafka.AppendFrom(buf, c.Coord)
		rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: kafka.HeaderFrom, Value: buf[n:len(buf):len(buf)]})
		n = len(buf)
	}
	if c.Before != nil {
		buf = change.AppendPos(buf, *c.Before)
		rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: kafka.HeaderBefore, Value: buf[n:len(buf):len(buf)]})
		n = len(buf)
	}
	if beside {
		header := func(name string, with []byte) {
			if buf = with; len(buf) > n {
				rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: name, Value: buf[n:len(buf):len(buf)]})
				n = len(buf)
			}
		}
		after, before := rs.memo.Texts()
		header(kafka.HeaderUnchanged, out.enc.AppendUnchanged(buf, c))
		header(kafka.HeaderUnknown, out.enc.AppendUnknown(buf, c))
		header(kafka.HeaderText, append(buf, after...))
		header(kafka.HeaderTextBefore, append(buf, before...))
	}
	if otherKey != "" {
		if buf, err = out.enc.AppendKeyOf(buf, b, otherRow); err != nil {
			return err
		}
		rs.hdrs = append(rs.hdrs, kgo.RecordHeader{Key: otherKey, Value: buf[n:len(buf):len(buf)]})
	}
	rs.buf = buf
	r := kgo.Record{Value: val, Headers: rs.hdrs[hdrs:len(rs.hdrs):len(rs.hdrs)], Topic: out.Topic.Name, Partition: p}
	if len(key) > 0 {
		r.Key = key
	}
	if c.Time != 0 {
		if c.Time != rs.micros { // most of a batch are of one time
			rs.micros, rs.stamp = c.Time, time.UnixMicro(c.Time).Truncate(time.Millisecond)
		}
		r.Timestamp = rs.stamp
	}
	rs.Records = append(rs.Records, r)
	rs.Of = append(rs.Of, at)
	rs.Bytes += len(key) + len(val)
	return nil
}

// tooLarge looks at the records of one change.
func (rs *Buffer) tooLarge(out *Output, from int) error {
	for i := from; i < len(rs.Records); i++ {
		if err := out.fits(&rs.Records[i]); err != nil {
			return err
		}
	}
	return nil
}

func (out *Output) fits(r *kgo.Record) error {
	n := octets(r)
	if n > out.MaxBytes {
		return ErrTooLarge.New("a record of %d octets for topic %q, which takes %d", n, out.Topic.Name, out.MaxBytes)
	}
	if n > out.batch {
		out.large.Add(out.Topic.Name)
		return ErrBatchTooSmall.New("a record of %d octets for topic %q, in batches of %d", n, out.Topic.Name, out.batch)
	}
	if n > batchBytes && out.large != nil {
		out.large.Add(out.Topic.Name)
	}
	return nil
}

// octets is what a record takes alone in its batch, at most.
func octets(r *kgo.Record) int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + 10
	}
	return n
}

// refuseLarge takes the records of one raw change that are too large out, and
// refuses each.
func (rs *Buffer) refuseLarge(out *Output, b *change.Batch, c *change.Change, at, from int) error {
	if c.Table.Source == "" {
		return rs.tooLarge(out, from)
	}
	kept := rs.Records[:from]
	for i := from; i < len(rs.Records); i++ {
		r := rs.Records[i]
		err := out.fits(&r)
		switch {
		case err == nil:
			kept = append(kept, r)
			continue
		case !problem.Has(err, ErrTooLarge):
			return err
		}
		rs.Bytes -= len(r.Key) + len(r.Value)
		whole := r
		whole.Key, whole.Value, whole.Headers = bytes.Clone(r.Key), bytes.Clone(r.Value), slices.Clone(r.Headers)
		for j := range whole.Headers {
			whole.Headers[j].Value = bytes.Clone(whole.Headers[j].Value)
		}
		key := change.AppendKey(nil, b, c)
		if slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == HeaderNewKey }) {
			key = change.AppendKeyRow(nil, b, c.Table, c.Old)
		}
		rs.Refused = append(rs.Refused, Refused{
			Index: at, Topic: out.Topic.Name, Key: string(key), RecordKey: whole.Key, Pos: c.Pos, Time: c.Time, Err: err, Record: &whole,
		})
	}
	rs.Of = rs.Of[:len(kept)]
	rs.Records = kept
	return nil
}

// leanOld gives c without the long values of its Old row, or nil when it has
// none. A row that was too large to be written could else never be mended:
// REPLICA IDENTITY FULL repeats it in the update or delete that takes it away.
func leanOld(b *change.Batch, c *change.Change) *change.Change {
	if c.Table.Source == "" {
		return nil
	}
	const long = 1024
	var lean *change.Change
	for i, v := range c.Old {
		switch v.Kind() {
		case change.String, change.Bytes, change.JSON, change.Text:
			if len(b.Bytes(v)) <= long {
				continue
			}
		case change.Array:
		default:
			continue
		}
		if slices.Contains(c.Table.Key, i) {
			continue
		}
		if lean == nil {
			lean = new(change.Change)
			*lean = *c
			lean.Old = slices.Clone(c.Old)
		}
		lean.Old[i] = change.UnchangedValue()
	}
	return lean
}

// keyKnown reports whether a row holds all values of the key.
func keyKnown(t *change.Table, row []change.Value) bool {
	if row == nil {
		return false
	}
	for _, k := range t.Key {
		if row[k].IsUnchanged() {
			return false
		}
	}
	return true
}
