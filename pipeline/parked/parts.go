// Records that are kept whole (decision 35). What a source parks is nowhere
// else: not in its raw topic, and its slot may forget it. It is kept as the
// records that it would have been, in parts that any topic takes, ahead of the
// parked record and in its transaction.

package parked

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
)

// PartSize is the largest part, in octets: half of what a topic takes by
// default.
const PartSize = 512 << 10

// partKey is the key of part n of what is parked under parkedKey.
func partKey(n int, parkedKey []byte) []byte {
	k := fmt.Appendf([]byte{separator, separator}, "%08x", n)
	k = append(k, separator)
	return append(k, parkedKey...)
}

const partPrefix = 2 + 8 + 1

// partOf takes partKey apart; is says that it is one.
func partOf(key []byte) (n int, parkedKey []byte, is bool) {
	if len(key) < partPrefix || key[0] != separator || key[1] != separator || key[partPrefix-1] != separator {
		return 0, nil, false
	}
	_, err := fmt.Sscanf(string(key[2:10]), "%08x", &n)
	return n, key[partPrefix:], err == nil
}

// held are the parts of a record.
func held(p *control.Parked) (parts int) {
	for _, h := range p.Held {
		parts += h.Parts
	}
	return parts
}

// Hold adds a record to what p keeps whole, and gives the parts to be written
// before p's own record. The record is newer than all that p keeps; those of
// which it repeats all that they tell, of what it leaves out they know nothing
// either, are dropped: so there is one record, or a few. unchanged are the
// columns that it does not tell, joined by commas.
// size is the largest part, and key that of p in the parked topic (Set.KeyOf).
func Hold(topic string, key []byte, p *control.Parked, r *kgo.Record, unchanged string, size int) []*kgo.Record {
	was := held(p)
	columns := split(unchanged)
	for len(p.Held) > 0 {
		last := split(p.Held[len(p.Held)-1].Unchanged)
		if slices.ContainsFunc(columns, func(c string) bool { return !slices.Contains(last, c) }) {
			break
		}
		p.Held = p.Held[:len(p.Held)-1]
	}
	at, now := held(p), time.Now()
	octets := appendRecord(nil, r)
	var out []*kgo.Record
	for ; len(octets) > 0; at++ {
		n := min(len(octets), size)
		out = append(out, &kgo.Record{Topic: topic, Key: partKey(at, key), Value: octets[:n:n], Timestamp: now})
		octets = octets[n:]
	}
	p.Held = append(slices.Clip(p.Held), control.Held{Parts: len(out), Unchanged: unchanged})
	return append(out, dropParts(topic, key, at, was)...)
}

// Unhold are the ends of the parts of what is not parked any more.
func Unhold(topic string, key []byte, p *control.Parked) []*kgo.Record {
	return dropParts(topic, key, 0, held(p))
}

func dropParts(topic string, key []byte, from, to int) (out []*kgo.Record) {
	for n := from; n < to; n++ {
		out = append(out, &kgo.Record{Topic: topic, Key: partKey(n, key), Timestamp: time.Now()})
	}
	return out
}

func split(columns string) []string {
	if columns == "" {
		return nil
	}
	return strings.Split(columns, ",")
}

// appendRecord appends a record so that parseRecords reads it: partition and
// timestamp (varints), key, value, and the number of headers with each name and
// value. Octets have their length + 1 before them; 0 is null.
func appendRecord(dst []byte, r *kgo.Record) []byte {
	octets := func(b []byte) {
		if b == nil {
			dst = binary.AppendUvarint(dst, 0)
			return
		}
		dst = binary.AppendUvarint(dst, uint64(len(b))+1)
		dst = append(dst, b...)
	}
	dst = slices.Grow(dst, len(r.Key)+len(r.Value)+1024)
	dst = binary.AppendVarint(dst, int64(r.Partition))
	dst = binary.AppendVarint(dst, r.Timestamp.UnixMilli())
	octets(r.Key)
	octets(r.Value)
	dst = binary.AppendUvarint(dst, uint64(len(r.Headers)))
	for _, h := range r.Headers {
		octets([]byte(h.Key))
		octets(h.Value)
	}
	return dst
}

// parseRecords reads records that lie one behind the other. They are slices of b.
func parseRecords(topic string, b []byte) (out []*kgo.Record, err error) {
	bad := false
	number := func(f func([]byte) (int64, int)) int64 {
		v, n := f(b)
		if n <= 0 {
			bad, n = true, len(b)
		}
		b = b[n:]
		return v
	}
	length := func() int64 {
		return number(func(b []byte) (int64, int) { v, n := binary.Uvarint(b); return int64(v), n })
	}
	octets := func() []byte {
		n := length() - 1
		if n < 0 {
			return nil
		}
		if n > int64(len(b)) {
			bad, n = true, int64(len(b))
		}
		v := b[:n:n]
		b = b[n:]
		return v
	}
	for len(b) > 0 && !bad {
		r := &kgo.Record{Topic: topic, Partition: int32(number(binary.Varint)), Timestamp: time.UnixMilli(number(binary.Varint))}
		r.Key, r.Value = octets(), octets()
		for n := length(); n > 0 && !bad; n-- {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(octets()), Value: octets()})
		}
		out = append(out, r)
	}
	if bad {
		return nil, ErrForm.New("the parts of a parked record of topic %q do not hold together", topic)
	}
	return out, nil
}

// Records reads the records that are kept whole of parked keys, in their order;
// of a key that keeps none there is nothing. All of them are in memory: bound
// the keys by their Ref.Size.
func (s *Set) Records(ctx context.Context, cl *kgo.Client, keys []string) (map[string][]*kgo.Record, error) {
	out := map[string][]*kgo.Record{}
	parts := map[string][][]byte{}
	type reach struct{ from, to int64 }
	scans := map[int32]reach{}
	for _, k := range keys {
		r, is := s.refs[k]
		if !is || r.Head == nil || len(r.Head.Held) == 0 {
			continue
		}
		parts[k] = make([][]byte, held(r.Head))
		part := s.PartitionOf(r.Partition)
		at, is := scans[part]
		if !is || r.partsAt < at.from {
			at.from = r.partsAt
		}
		at.to = max(at.to, r.At)
		scans[part] = at
	}
	for part, at := range scans {
		if err := kafka.Scan(ctx, cl, s.Topic, part, at.from, at.to, func(r *kgo.Record) error {
			n, key, is := partOf(r.Key)
			if !is || r.Attrs.IsControl() {
				return nil
			}
			k := identity(key)
			if of := parts[k]; n < len(of) && s.refs[k].in == string(key) && r.Offset < s.refs[k].At {
				of[n] = bytes.Clone(r.Value)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	for k, of := range parts {
		topic, _ := splitKey(k)
		if slices.ContainsFunc(of, func(b []byte) bool { return b == nil }) {
			return nil, ErrForm.New("of what is parked of topic %q under key %q a part is missing", topic, s.refs[k].Head.Key)
		}
		rs, err := parseRecords(topic, bytes.Join(of, nil))
		if err != nil {
			return nil, err
		}
		out[k] = rs
	}
	return out, nil
}
