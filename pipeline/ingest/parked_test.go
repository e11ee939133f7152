package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
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
				x.note = string(got.AppendText(nil, v[1]))
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
		{"swept meanwhile", []enginetest.Row{{Op: change.Sweep, Since: 1}}, []string{" " + ErrSweep.ID, "1" + tooLarge}, ""},
		// Remedy: TW-SWEEP-SOURCE
		{"swept meanwhile and later", []enginetest.Row{{Op: change.Sweep, Since: 1}, {Op: change.Update, ID: 1, Val: "small"}, {Op: change.Sweep, Since: 1}}, nil, "usss"},
		{"swept, and swept again beside another", []enginetest.Row{
			{Op: change.Sweep, Since: 1}, {Op: change.Update, ID: 1, Val: "small"}, {Op: change.Sweep, Since: 1}, {Op: change.Update, ID: 1, Val: big}, {Op: change.Sweep, Since: 1},
		}, []string{" " + ErrSweep.ID, "1" + tooLarge}, "usss"},
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
				if c.name != "moved, not told" {
					return
				}
				// Remedy: TW-PARKED-MOVED. The other half is "told afterwards".
				stop, _ = running(b, f, pipeline.IngestLimits{MaxRecordBytes: 1000})
				for _, p := range heads(all) {
					command(b, p.whole, parked.CommandRetry)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if got := rowsOf(b); len(parkedOf(b)) != 0 || len(got) == 0 || got[len(got)-1].id != 5 || !got[len(got)-1].unsent {
					t.Errorf("after a retry %d are parked, and the last record is of %+v", len(parkedOf(b)), got[len(got)-1:])
				}
			})
		}
	}
}

// If this failed, a row that an older version parked without its record would
// stay for ever.
func TestIngestWhatIsGoneCannotBeRetried(t *testing.T) {
	b := enginetest.NewBed(t, "")
	f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: strings.Repeat("large ", 2000)}, {Op: change.Create, ID: 2, Val: strings.Repeat("large ", 2000)}}})
	limits := pipeline.IngestLimits{MaxRecordBytes: 4000}
	stop, _ := running(b, f, limits)
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for key, p := range parkedOf(b) { // what it keeps of the row goes
		r := &kgo.Record{Topic: parked.TopicOf(b.Source), Key: []byte(key)}
		if p.whole != nil {
			p.whole.Held = nil
			r.Value = parked.Append(nil, p.whole, 0)
		}
		if err := b.Direct.Shared().ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	stop, _ = running(b, f, limits)
	for _, p := range heads(parkedOf(b)) {
		command(b, p.whole, parked.CommandRetry)
	}
	shown := heads(parkedOf(b))
	for _, p := range shown {
		if p.Code != parked.ErrGone.ID {
			t.Errorf("%s is parked for %s, want TW-PARKED-GONE", p.Key, p.Code)
		}
	}
	// Remedy: TW-PARKED-GONE
	f.more(b, []enginetest.Row{{Op: change.Update, ID: 1, Val: "small"}})
	for _, p := range shown {
		if p.Key == "2" {
			command(b, p.whole, parked.CommandDiscard)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left, got := parkedOf(b), rowsOf(b); len(left) != 0 || len(got) != 1 || got[0].note != "small" {
		t.Errorf("%d are parked, the records are %+v", len(left), got)
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

// A process that was taken for dead obeys a command, and its successor has done
// that, and sent what is newer. If this failed, what is older would come behind
// it. (A11, G4)
func TestIngestZombieObeysNothing(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		smallTopics(t, b, "50000")
		big := strings.Repeat("large ", 20_000)
		f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}}})
		zombie := make(chan error, 1)
		go func() {
			zombie <- Run(t.Context(), b.Env, pipeline.IngestSpec{Name: b.Source, Source: f})
		}()
		b.Await("all changes", f.all)
		var is control.Parked
		for _, p := range heads(parkedOf(b)) {
			is = *p.whole
		}
		enginetest.SetTopic(t, b.Direct, b.Topic(), "max.message.bytes", "500000")
		hold := b.Proxy.Hold(newRequestOf(b, produce).match)
		sent, err := parked.Send(t.Context(), b.Direct, []control.Parked{is}, parked.CommandRetry)
		if err != nil {
			t.Fatal(err)
		}
		b.Await("it to obey", hold.Held())
		next := newFeed(b.Table(), slices.Clone(f.txs))
		stop, _ := running(b.Beside(), next, pipeline.IngestLimits{})
		b.AwaitRecord("its successor to have obeyed", sent[0].Topic, func(r *kgo.Record) bool {
			return r.Offset > sent[0].Offset && r.Value == nil && string(r.Key) == string(sent[0].Key)
		})
		next.more(b, []enginetest.Row{{Op: change.Update, ID: 1, Val: "newer"}})
		hold.Release()
		select {
		case err := <-zombie:
			if !problem.Has(err, pipeline.ErrFenced) {
				t.Errorf("it ended with %v, want TW-FENCED", err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("waited for its end in vain")
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := ofID(rowsOf(b), 1); len(got) != 2 || got[0].note != big || got[1].note != "newer" {
			t.Errorf("of the row came %d records", len(got))
		}
		if left := parkedOf(b); len(left) != 0 {
			t.Errorf("%d records are left in the parked topic", len(left))
		}
	})
}

// If this failed, a command to a source that starts over would fail its
// transactions, which end with a position, until it has one.
func TestIngestCommandsWaitForAPosition(t *testing.T) {
	b := enginetest.NewBed(t, "")
	waits := line(b, "wait for the first position")
	limits := pipeline.IngestLimits{MaxRecordBytes: 4000}
	f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: strings.Repeat("large ", 2000)}}})
	stop, _ := running(b, f, limits)
	b.Await("all changes", f.all)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Direct.Admin().DeleteTopic(t.Context(), positionsTopicOf(b.Source)); err != nil {
		t.Fatal(err)
	}
	var sent []*kgo.Record
	for _, p := range heads(parkedOf(b)) {
		var err error
		if sent, err = parked.Send(t.Context(), b.Direct, []control.Parked{*p.whole}, parked.CommandDiscard); err != nil {
			t.Fatal(err)
		}
	}
	again := newFeed(b.Table(), nil)
	stop, _ = running(b, again, limits)
	b.Await("the command to wait", waits)
	again.more(b, []enginetest.Row{{Op: change.Create, ID: 2, Val: "two"}})
	b.AwaitRecord("the end of the command", sent[0].Topic, func(r *kgo.Record) bool {
		return r.Offset > sent[0].Offset && r.Value == nil && string(r.Key) == string(sent[0].Key)
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left := parkedOf(b); len(left) != 0 || again.runs != 1 {
		t.Errorf("%d records are left in the parked topic after %d runs", len(left), again.runs)
	}
	if got := rowsOf(b); len(got) != 1 || got[0].note != "two" {
		t.Errorf("the rows are %+v", got)
	}
}

// line gives a channel that is closed when a line with certain words, or with a
// code, is logged.
func line(b *enginetest.Bed, words string) <-chan struct{} {
	is := make(chan struct{})
	b.Env.Obs.Log = slog.New(awaited{b.Env.Obs.Log.Handler(), words, sync.OnceFunc(func() { close(is) })})
	return is
}

type awaited struct {
	slog.Handler
	words string
	is    func()
}

func (a awaited) Enabled(context.Context, slog.Level) bool { return true }

func (a awaited) WithAttrs(attrs []slog.Attr) slog.Handler {
	return awaited{a.Handler.WithAttrs(attrs), a.words, a.is}
}

func (a awaited) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, a.words) {
		a.is()
	}
	r.Attrs(func(at slog.Attr) bool {
		if at.Key == "code" && at.Value.String() == a.words {
			a.is()
		}
		return true
	})
	if !a.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return a.Handler.Handle(ctx, r)
}

// If this failed, what an older version parked, whose keys hold the schema's id,
// would be lost or stay for ever; as would a row whose key gets another schema.
func TestIngestKnowsParkedKeysOfOlderVersions(t *testing.T) {
	for _, c := range []struct{ end, ids string }{
		{"a retry", "\x4d"},
		{"a later version", "\x4d"},
		// It parked the row twice, with two of its schemas.
		{"a retry", "\x4d\x4e"},
		{"a later version", "\x4d\x4e"},
	} {
		end := c.end
		t.Run(fmt.Sprintf("%s of %d", end, len(c.ids)), func(t *testing.T) {
			b := enginetest.NewBed(t, "")
			smallTopics(t, b, "50000")
			big := strings.Repeat("large ", 20_000)
			f := newFeed(b.Table(), [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}}})
			stop, _ := running(b, f, pipeline.IngestLimits{})
			b.Await("all changes", f.all)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			topic, now := parked.TopicOf(b.Source), b.Topic()+"\x1f\x1f"
			all := parkedOf(b)
			var ends, other []*kgo.Record
			for _, id := range []byte(c.ids) {
				for _, key := range slices.Sorted(maps.Keys(all)) { // the parts in their order, then what they are of
					if !strings.Contains(key, now) {
						t.Fatalf("a parked key %q", key)
					}
					ends = append(ends, &kgo.Record{Topic: topic, Key: []byte(key)})
					as := strings.Replace(key, now, b.Topic()+"\x1f\x00\x00\x00\x00"+string(rune(id)), 1)
					other = append(other, &kgo.Record{Topic: topic, Key: []byte(as), Value: all[key].raw})
				}
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
