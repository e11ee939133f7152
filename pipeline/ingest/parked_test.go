package ingest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// smallTopics makes the raw topic with a limit, and the parked topic with one
// that a parked record does not fit.
func smallTopics(t *testing.T, b *enginetest.Bed, raw string) {
	t.Helper()
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: b.Topic(), Default: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Direct.EnsureTopic(t.Context(), kafka.TopicSpec{Name: parked.TopicOf(b.Source), Partitions: 1, Compact: true}); err != nil {
		t.Fatal(err)
	}
	enginetest.SetTopic(t, b.Direct, b.Topic(), "max.message.bytes", raw)
	enginetest.SetTopic(t, b.Direct, parked.TopicOf(b.Source), "max.message.bytes", "20000")
}

// more is what the source gets while it runs.
func (f *feed) more(b *enginetest.Bed, txs ...[]enginetest.Row) {
	b.T.Helper()
	f.mu.Lock()
	f.txs = append(f.txs, txs...)
	f.all = make(chan struct{})
	all := f.all
	f.mu.Unlock()
	f.got <- struct{}{}
	b.Await("what came later", all)
}

// command sends one about what is parked, and waits until it is done.
func command(b *enginetest.Bed, p *control.Parked, name string) {
	b.T.Helper()
	sent, err := parked.Send(b.T.Context(), b.Direct, []control.Parked{*p}, name)
	if err != nil {
		b.T.Fatal(err)
	}
	b.AwaitRecord("the end of the command "+name, sent[0].Topic, func(r *kgo.Record) bool {
		return r.Offset > sent[0].Offset && r.Value == nil && string(r.Key) == string(sent[0].Key)
	})
}

// row is a raw record as a reader sees it.
type row struct {
	op     change.Op // 0: a tombstone
	id     int64
	note   string
	unsent bool
	pos    change.Pos
}

func rowsOf(b *enginetest.Bed) (out []row) {
	b.T.Helper()
	dec := avro.NewDecoder(b.Env.Registry)
	for _, r := range b.Committed() {
		h := kafka.Headers(r)
		pos, err := change.ParsePos(h.Pos)
		if err != nil {
			b.T.Fatal(err)
		}
		if r.Value == nil {
			out = append(out, row{pos: pos})
			continue
		}
		got := change.Get()
		if err := dec.Append(context.Background(), got, change.Coord{Topic: &change.Topic{Name: r.Topic}}, r.Key, r.Value, h, r.Timestamp.UnixMilli()); err != nil {
			b.T.Fatal(err)
		}
		c := &got.Changes[0]
		x := row{op: c.Op, pos: pos}
		if v := c.Row(); v != nil {
			x.id = v[0].Int()
			if x.unsent = v[1].IsUnchanged(); !x.unsent {
				x.note = string(got.Bytes(v[1]))
			}
		}
		got.Release()
		out = append(out, x)
	}
	return out
}

func ofID(rows []row, id int64) (out []row) {
	for _, r := range rows {
		if r.id == id {
			out = append(out, r)
		}
	}
	return out
}

// If this failed, the large value of a parked row would be in no record ever; or
// it would come with its old Pos, which position dedupe drops, or behind what is
// newer. (C6, G4)
func TestIngestRetriesWhatWasTooLarge(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		smallTopics(t, b, "50000")
		big := strings.Repeat("large ", 20_000) // in many parts
		f := newFeed(b.Table(), [][]enginetest.Row{
			{{Op: change.Create, ID: 1, Val: big}, {Op: change.Create, ID: 2, Val: "two"}},
			{{Op: change.Update, ID: 1, Unsent: true}},
		})
		stop, _ := running(b, f, pipeline.IngestLimits{})
		b.Await("all changes", f.all)
		f.more(b, []enginetest.Row{{Op: change.Update, ID: 1, Unsent: true}, {Op: change.Create, ID: 3, Val: "three"}})
		if got := ofID(rowsOf(b), 1); len(got) != 0 {
			t.Fatalf("a change that does not tell the large value went before it: %+v", got)
		}
		var p *control.Parked
		look := func(want int) {
			t.Helper()
			hs := heads(parkedOf(b))
			if len(hs) != want {
				t.Fatalf("%d are parked, want %d: %+v", len(hs), want, hs)
			}
			for _, h := range hs {
				p = h.whole
			}
		}
		look(1)
		if p.Key != "1" || p.Code != records.ErrTooLarge.ID || len(p.Held) != 2 || p.Held[0].Parts < 5 {
			t.Fatalf("parked: %+v", p)
		}
		// It does not fit yet.
		command(b, p, parked.CommandRetry)
		look(1)
		if p.Attempts != 2 || !strings.Contains(p.Reason, "50000") {
			t.Fatalf("parked: %+v", p)
		}
		// Over a restart, too, what comes later waits behind it.
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		stop, _ = running(b, f, pipeline.IngestLimits{})
		f.more(b, []enginetest.Row{{Op: change.Update, ID: 1, Unsent: true}})
		enginetest.SetTopic(t, b.Direct, b.Topic(), "max.message.bytes", "500000")
		command(b, p, parked.CommandRetry)
		if all := parkedOf(b); len(all) != 0 {
			t.Errorf("of what was sent %d records are left in the parked topic", len(all))
		}
		f.more(b, []enginetest.Row{{Op: change.Update, ID: 1, Unsent: true}})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		got := ofID(rowsOf(b), 1)
		if len(got) != 3 || got[0].note != big || !got[1].unsent || !got[2].unsent || got[2].pos.LSN != 5 {
			t.Fatalf("of the row came %d records", len(got))
		}
		before := change.Pos{System: 1, Timeline: 1, LSN: 4, Kind: change.PosCommit, Ordinal: 1}
		for _, r := range got {
			if r.pos.Compare(before) <= 0 {
				t.Errorf("a record of Pos %v comes after %v", r.pos, before)
			}
			before = r.pos
		}
		f.check(t)
	})
}

// If this failed, a parked row would stay for ever after it was replaced, or
// end though its large value is nowhere else.
func TestIngestEndsOfParkedRows(t *testing.T) {
	big := strings.Repeat("large ", 2000)
	tooLarge := " " + records.ErrTooLarge.ID
	for _, c := range []struct {
		name string
		then []enginetest.Row
		left []string // keys and codes of what is parked in the end
		ops  string   // of the records that came
	}{
		{"smaller", []enginetest.Row{{Op: change.Update, ID: 1, Val: "small"}}, nil, "u"},
		{"deleted", []enginetest.Row{{Op: change.Delete, ID: 1, Val: "old"}}, nil, "d-"},
		{"truncated", []enginetest.Row{{Op: change.Truncate}, {Op: change.Create, ID: 1, Val: "new"}}, nil, "tttc"},
		{"not told", []enginetest.Row{{Op: change.Update, ID: 1, Unsent: true}}, []string{"1" + tooLarge}, ""},
		{"larger", []enginetest.Row{{Op: change.Update, ID: 1, Unsent: true}, {Op: change.Update, ID: 1, Val: big + big}}, []string{"1" + tooLarge}, ""},
		{"moved, not told", []enginetest.Row{{Op: change.Update, ID: 5, Was: 1, Unsent: true}}, []string{"5 " + ErrMoved.ID}, "d-"},
		{"moved, not told, its end too large", []enginetest.Row{{Op: change.Update, ID: 5, Was: 1, Unsent: true, Before: big[:1000]}}, []string{"1" + tooLarge, "5 " + ErrMoved.ID}, "-"},
		{"moved, told afterwards", []enginetest.Row{{Op: change.Update, ID: 5, Was: 1, Unsent: true}, {Op: change.Update, ID: 5, Val: "again"}}, nil, "d-u"},
		{"moved, told", []enginetest.Row{{Op: change.Update, ID: 5, Was: 1, Val: "small"}}, nil, "d-c"},
		{"moved, too large again", []enginetest.Row{{Op: change.Update, ID: 5, Was: 1, Val: big}}, []string{"5" + tooLarge}, "d-"},
		{"emptied and parked anew", []enginetest.Row{{Op: change.Truncate}, {Op: change.Create, ID: 1, Val: big}}, []string{"1" + tooLarge}, "ttt"},
	} {
		for _, together := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/together=%v", c.name, together), func(t *testing.T) {
				b := enginetest.NewBed(t, "")
				first := []enginetest.Row{{Op: change.Create, ID: 1, Val: big}}
				txs := [][]enginetest.Row{append(first, c.then...)}
				if !together {
					txs = [][]enginetest.Row{first, c.then}
				}
				f := newFeed(b.Table(), txs)
				stop, _ := running(b, f, pipeline.IngestLimits{MaxRecordBytes: 1000})
				b.Await("all changes", f.all)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				var left []string
				all := parkedOf(b)
				parts := 0
				for _, p := range all {
					if p.whole == nil {
						parts++
						continue
					}
					left = append(left, p.Key+" "+p.Code)
					for _, h := range p.whole.Held {
						parts -= h.Parts
					}
				}
				slices.Sort(left)
				if !slices.Equal(left, c.left) {
					t.Errorf("parked are %q, want %q", left, c.left)
				}
				if parts != 0 {
					t.Errorf("%d parts too many", parts)
				}
				counts := map[change.Op]int{}
				for _, r := range rowsOf(b) {
					counts[r.op]++
				}
				want := map[change.Op]int{}
				for _, op := range c.ops {
					if op == '-' {
						op = 0
					}
					want[change.Op(op)]++
				}
				if fmt.Sprint(counts) != fmt.Sprint(want) {
					t.Errorf("records %v, want %v", counts, want)
				}
			})
		}
	}
}

// If this failed, a discard would drop what nobody was shown, or a command stay.
func TestIngestDiscards(t *testing.T) {
	b := enginetest.NewBed(t, "")
	big := strings.Repeat("large ", 2000)
	f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}, {Op: change.Create, ID: 2, Val: big}}})
	stop, _ := running(b, f, pipeline.IngestLimits{MaxRecordBytes: 4000})
	b.Await("all changes", f.all)
	shown := map[string]*control.Parked{}
	for _, p := range heads(parkedOf(b)) {
		shown[p.Key] = p.whole
	}
	f.more(b, []enginetest.Row{{Op: change.Update, ID: 2, Val: big + "more"}})
	command(b, shown["1"], parked.CommandDiscard)
	command(b, shown["2"], parked.CommandDiscard)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	left := heads(parkedOf(b))
	if len(left) != 1 {
		t.Fatalf("%d are left, want the newer version of 2", len(left))
	}
	for _, p := range left {
		if p.Key != "2" {
			t.Errorf("left is %q", p.Key)
		}
	}
	if n := len(b.Committed()); n != 0 {
		t.Errorf("%d records came", n)
	}
}

// If this failed, a parked row whose key gets another schema would be lost, or
// stay for ever; as would one that a later version parked, without the id.
func TestIngestKnowsParkedKeysOfOtherSchemas(t *testing.T) {
	for _, c := range []struct{ end, key string }{
		{"a retry", "\x00\x00\x00\x00\x4d"}, {"a retry", "\x1f"}, {"a later version", "\x00\x00\x00\x00\x4d"}, {"a later version", "\x1f"},
	} {
		end := c.end
		t.Run(fmt.Sprintf("%s of %q", end, c.key), func(t *testing.T) {
			b := enginetest.NewBed(t, "")
			smallTopics(t, b, "50000")
			big := strings.Repeat("large ", 20_000)
			f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}}})
			stop, _ := running(b, f, pipeline.IngestLimits{})
			b.Await("all changes", f.all)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			topic, now := parked.TopicOf(b.Source), b.Topic()+"\x1f\x00\x00\x00\x00\x01"
			all := parkedOf(b)
			var ends, other []*kgo.Record
			for _, key := range slices.Sorted(maps.Keys(all)) { // the parts in their order, then what they are of
				if !strings.Contains(key, now) {
					t.Fatalf("a parked key %q", key)
				}
				ends = append(ends, &kgo.Record{Topic: topic, Key: []byte(key)})
				as := strings.Replace(key, now, b.Topic()+"\x1f"+c.key, 1)
				other = append(other, &kgo.Record{Topic: topic, Key: []byte(as), Value: all[key].raw})
			}
			if err := b.Direct.Shared().ProduceSync(t.Context(), append(ends, other...)...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			enginetest.SetTopic(t, b.Direct, b.Topic(), "max.message.bytes", "500000")
			if end == "a retry" {
				stop, _ = running(b, f, pipeline.IngestLimits{})
				for _, h := range heads(parkedOf(b)) {
					command(b, h.whole, parked.CommandRetry)
				}
			} else {
				f.txs = append(f.txs, []enginetest.Row{{Op: change.Update, ID: 1, Unsent: true}}, []enginetest.Row{{Op: change.Update, ID: 1, Val: "small"}})
				f.all = make(chan struct{})
				stop, _ = running(b, f, pipeline.IngestLimits{})
				b.Await("all changes", f.all)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if left := parkedOf(b); len(left) != 0 {
				t.Errorf("%d records are left in the parked topic", len(left))
			}
			want := big
			if end != "a retry" {
				want = "small"
			}
			if got := ofID(rowsOf(b), 1); len(got) != 1 || got[0].note != want {
				t.Errorf("of the row came %d records", len(got))
			}
		})
	}
}
