package chaos

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

// History is all changes of one key, in order.
type History map[string][]Version // by "table" + 0x1F + key

// Expand turns the truth into what a raw topic must hold: an update that
// changes the key is a delete of the old and a create of the new. keys names
// the key's columns of each table.
func Expand(truth []Version, keys map[string][]string) History {
	h := History{}
	for _, v := range truth {
		cols, ok := keys[v.Table]
		if !ok {
			continue
		}
		oldKey, newKey := keyOf(v.Table, cols, v.Old), keyOf(v.Table, cols, v.New)
		switch {
		case v.Op == 'u' && v.Old != nil && oldKey != newKey:
			h[oldKey] = append(h[oldKey], Version{Table: v.Table, Op: 'd', Old: v.Old})
			h[newKey] = append(h[newKey], Version{Table: v.Table, Op: 'c', New: v.New})
		case v.Op == 'd':
			h[oldKey] = append(h[oldKey], v)
		default:
			h[newKey] = append(h[newKey], v)
		}
	}
	return h
}

func keyOf(table string, cols []string, row map[string]string) string {
	if row == nil {
		return ""
	}
	var b strings.Builder
	b.WriteString(table)
	for _, c := range cols {
		b.WriteByte(0x1F)
		b.WriteString(row[c])
	}
	return b.String()
}

// ReadRaw reads a raw topic from its beginning to its present end as a
// read-committed consumer, and gives the changes by key in order, loaded rows
// ('r') as such, and the position of each for the check of its order.
func ReadRaw(ctx context.Context, c *kafka.Cluster, reg *avro.Registry, topics ...string) (History, int, error) {
	h, n := History{}, 0
	last := map[string]change.Pos{} // by topic/partition
	dec := avro.NewDecoder(reg)
	err := ReadCommitted(ctx, c, topics, func(t *change.Topic, r *kgo.Record) error {
		var pos, unchanged []byte
		for _, hd := range r.Headers {
			switch hd.Key {
			case kafka.HeaderPos:
				pos = hd.Value
			case kafka.HeaderUnchanged:
				unchanged = hd.Value
			}
		}
		b := change.Get()
		defer b.Release()
		at := change.Coord{Topic: t, Partition: r.Partition, Offset: r.Offset}
		if err := dec.Append(ctx, b, at, r.Key, r.Value, pos, unchanged, r.Timestamp.UnixMilli()); err != nil {
			return fmt.Errorf("reading %s/%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
		}
		for i := range b.Changes {
			ch := &b.Changes[i]
			n++
			where := fmt.Sprintf("%s/%d", r.Topic, r.Partition)
			if p := last[where]; ch.Pos.Compare(p) < 0 {
				return fmt.Errorf("%s@%d: position %v after %v", where, r.Offset, ch.Pos, p)
			}
			last[where] = ch.Pos
			table := ch.Table.Schema + "." + ch.Table.Name
			v := Version{Table: table, Op: byte(ch.Op), Old: texts(b, ch.Table, ch.Old), New: texts(b, ch.Table, ch.New)}
			key := table + "\x1f" + string(change.AppendKey(nil, b, ch))
			h[key] = append(h[key], v)
		}
		return nil
	})
	return h, n, err
}

func texts(b *change.Batch, t *change.Table, row []change.Value) map[string]string {
	if row == nil {
		return nil
	}
	out := map[string]string{}
	for i, v := range row {
		if v.IsNull() || v.IsUnchanged() {
			continue
		}
		out[t.Columns[i].Name] = string(b.AppendText(nil, v))
	}
	return out
}

// ReadCommitted calls f for each committed record of the topics, from their
// beginning to the last stable offsets at the time of the call.
func ReadCommitted(ctx context.Context, c *kafka.Cluster, topics []string, f func(*change.Topic, *kgo.Record) error) error {
	ends, err := c.Admin().ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	open := map[string]int64{}
	parts := map[string]map[int32]kgo.Offset{}
	meta := map[string]*change.Topic{}
	for topic, ps := range ends {
		if meta[topic], err = c.Topic(ctx, topic); err != nil {
			return err
		}
		for p, o := range ps {
			if o.Err != nil {
				return o.Err
			}
			if o.Offset > 0 {
				if parts[topic] == nil {
					parts[topic] = map[int32]kgo.Offset{}
				}
				parts[topic][p] = kgo.NewOffset().AtStart()
				open[fmt.Sprintf("%s/%d", topic, p)] = o.Offset
			}
		}
	}
	if len(open) == 0 {
		return nil
	}
	cl, err := c.Client(kgo.ConsumePartitions(parts), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer cl.Close()
	for len(open) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			return err
		}
		var failed error
		fs.EachError(func(t string, p int32, err error) { failed = fmt.Errorf("%s/%d: %w", t, p, err) })
		fs.EachRecord(func(r *kgo.Record) {
			where := fmt.Sprintf("%s/%d", r.Topic, r.Partition)
			if failed == nil && !r.Attrs.IsControl() {
				failed = f(meta[r.Topic], r)
			}
			if end, ok := open[where]; ok && r.Offset >= end-1 {
				delete(open, where)
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

// Compare names each lost, doubled, reordered or invented change. Rows of the
// initial load at the head of a key's history are not in the truth and pass.
func Compare(truth, got History) []string {
	var out []string
	say := func(format string, args ...any) {
		if len(out) < 40 {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	keys := map[string]bool{}
	for k := range truth {
		keys[k] = true
	}
	for k := range got {
		keys[k] = true
	}
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	sort.Strings(sorted)
	for _, k := range sorted {
		want, have := truth[k], got[k]
		for len(have) > 0 && have[0].Op == 'r' {
			have = have[1:]
		}
		name := strings.ReplaceAll(k, "\x1f", " ")
		for i := range max(len(want), len(have)) {
			switch {
			case i >= len(have):
				say("%s: change %d of %d is lost: %s", name, i+1, len(want), brief(want[i]))
			case i >= len(want):
				say("%s: change %d is invented or doubled: %s", name, i+1, brief(have[i]))
			case !same(want[i], have[i]):
				say("%s: change %d is %s, should be %s", name, i+1, brief(have[i]), brief(want[i]))
			default:
				continue
			}
			break
		}
	}
	return out
}

func same(a, b Version) bool {
	return a.Op == b.Op && equal(a.New, b.New) && (a.Old == nil || equal(a.Old, b.Old))
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return true
}

func brief(v Version) string {
	text := fmt.Sprintf("%c old %v new %v", v.Op, v.Old, v.New)
	if len(text) > 600 {
		text = text[:600] + " …"
	}
	return text
}
