package transform

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/consume"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/parked"
	"github.com/tallywire/tallywire/pipeline/records"
)

// canonical is a Stage whose output has no source, as that of a mapping.
type canonical struct {
	table  *change.Table
	refuse atomic.Pointer[string] // a note
}

func canonicalOf(b *enginetest.TopicBed) *canonical {
	b.T.Helper()
	dir := b.T.TempDir()
	err := os.WriteFile(filepath.Join(dir, "item.avsc"), []byte(`{"type": "record", "name": "Item", "namespace": "test", "doc": "An item.",
 "topic": "`+b.Output()+`", "key": ["item_id"], "owner": "test", "fields": [
  {"name": "item_id", "type": "string", "doc": "Its id.", "owner": "test", "sensitivity": "internal"},
  {"name": "note", "type": ["null", "string"], "default": null, "doc": "A note.", "owner": "test", "sensitivity": "internal"}]}`), 0o644)
	if err != nil {
		b.T.Fatal(err)
	}
	all, err := avro.LoadCatalogue(dir)
	if err != nil {
		b.T.Fatal(err)
	}
	b.Env.Contracts, b.Env.Registry.Contracts = all, all
	return &canonical{table: all[b.Output()].Table}
}

func (c *canonical) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	refuse := c.refuse.Load()
	made := func(row []change.Value) []change.Value {
		if row == nil {
			return nil
		}
		to := in.Row(2)
		to[0], to[1] = in.Span(change.String, in.AppendText(nil, row[0])), row[1]
		return to
	}
	in.Keep(func(ch *change.Change) bool {
		if row := ch.Row(); row != nil && refuse != nil && in.String(row[1]) == *refuse {
			out.Reject(ch, enginetest.ErrNotTaken.New("a note that the test refuses"))
			return false
		}
		if ch.Op == change.Truncate && len(ch.Table.Key) != 1 {
			out.Reject(ch, enginetest.ErrNotTaken.New("a truncate that does not say what its table's key is"))
			return false
		}
		ch.Table, ch.Old, ch.New = c.table, made(ch.Old), made(ch.New)
		return true
	})
	return out.Send(ctx, in)
}

// emptying is a bed whose transform fills a topic as a mapping does, and keeps
// all versions in it.
func emptying(bd *enginetest.Bed, page int) (*enginetest.TopicBed, *canonical, pipeline.TransformSpec) {
	b := enginetest.NewTopicBed(bd)
	st := canonicalOf(b)
	spec := b.TransformSpec(st)
	spec.BatchBytes = page
	return b, st, spec
}

// alive are the keys of the output with their notes.
func alive(b *enginetest.TopicBed) map[string]string {
	b.T.Helper()
	out := map[string]string{}
	batch := change.Get()
	defer batch.Release()
	dec := avro.NewDecoder(b.Env.Registry)
	for _, r := range b.Read(b.Output()) {
		if r.Value == nil {
			delete(out, string(r.Key))
			continue
		}
		batch.Reset()
		if err := dec.Append(b.T.Context(), batch, change.Coord{}, r.Key, r.Value, kafka.Headers(r), 0); err != nil {
			b.T.Fatal(err)
		}
		out[string(r.Key)] = batch.String(batch.Changes[0].New[1])
	}
	return out
}

func notes(b *enginetest.TopicBed) []string {
	b.T.Helper()
	return slices.Sorted(maps.Values(alive(b)))
}

// inputs are the partitions of the input in which rows lie, by their notes.
func inputs(b *enginetest.TopicBed) map[string]int32 {
	b.T.Helper()
	in := map[string]int32{}
	batch, dec := change.Get(), avro.NewDecoder(b.Env.Registry)
	defer batch.Release()
	for _, r := range b.Read(b.In.Topic) {
		if r.Key == nil {
			continue
		}
		batch.Reset()
		if err := dec.Append(b.T.Context(), batch, change.Coord{}, r.Key, r.Value, kafka.Headers(r), 0); err != nil {
			b.T.Fatal(err)
		}
		in[batch.String(batch.Changes[0].New[1])] = r.Partition
	}
	return in
}

func puts(b *enginetest.TopicBed, from, to int, note string) {
	var rows []enginetest.Row
	for id := from; id <= to; id++ {
		rows = append(rows, enginetest.Row{Op: change.Create, ID: int64(id), Val: fmt.Sprintf("%s %03d", note, id)})
	}
	b.Put(rows...)
}

// Lost if this fails: the rows of a truncated table stay in every dashboard; or
// rows that came after it are deleted with them.
func TestTransformTruncate(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, _, spec := emptying(bd, 0)
		puts(b, 1, 40, "before")
		b.Put(enginetest.Row{Op: change.Delete, ID: 40}, enginetest.Row{Op: change.Truncate})
		puts(b, 1, 5, "between")
		b.Put(enginetest.Row{Op: change.Truncate}, enginetest.Row{Op: change.Truncate})
		puts(b, 3, 8, "after")
		stop, _ := transforming(b, b.Env, spec)
		b.Drained()
		want := []string{"after 003", "after 004", "after 005", "after 006", "after 007", "after 008"}
		if got := notes(b); !slices.Equal(got, want) {
			t.Errorf("alive: %q, want %q", got, want)
		}
		b.Put(enginetest.Row{Op: change.Truncate}) // while it runs
		puts(b, 8, 9, "at last")
		b.Drained()
		if got := notes(b); !slices.Equal(got, []string{"at last 008", "at last 009"}) {
			t.Errorf("alive: %q", got)
		}
		if parked := b.ParkedNow(); len(parked) > 0 {
			t.Errorf("parked: %v", parked)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		// Each row is there once, and no end before what it ends.
		seen := map[string]int{}
		for _, r := range b.Read(b.Output()) {
			if r.Value != nil {
				seen[fmt.Sprintf("%x %x", r.Key, r.Headers[0].Value)]++
			}
		}
		if len(seen) != 40+5+6+2 {
			t.Errorf("%d rows", len(seen))
		}
		for k, n := range seen {
			if n != 1 {
				t.Errorf("%s is there %d times", k, n)
			}
		}
	})
}

// Memory and transactions are bounded: ends are written in pages, and a process
// that dies between two of them begins again.
func TestTransformTruncateInPages(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, _, spec := emptying(bd, 10*endOctets) // 40 ends and a few
		puts(b, 1, 300, "before")
		stop, _ := transforming(b, b.Env, spec)
		b.Drained()
		if n := len(alive(b)); n != 300 {
			t.Fatalf("%d alive", n)
		}
		b.Put(enginetest.Row{Op: change.Truncate})
		b.Eventually("the first page", func() (bool, string) {
			n := len(alive(b))
			return n < 300, fmt.Sprint(n)
		})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		puts(b, 250, 310, "after")
		transforming(b, b.Env, spec)
		b.Drained()
		if got := alive(b); len(got) != 61 {
			t.Errorf("%d alive", len(got))
		}
		for _, note := range notes(b) {
			if !strings.HasPrefix(note, "after") {
				t.Errorf("%s is still there", note)
			}
		}
		if n := mostEnds(b); n < 5 || n > 45 {
			t.Errorf("%d ends in one transaction", n)
		}
	})
}

// mostEnds is how many ends one transaction wrote to one partition, at most.
func mostEnds(b *enginetest.TopicBed) (most int) {
	b.T.Helper()
	topic, err := b.Direct.Topic(b.T.Context(), b.Output())
	if err != nil {
		b.T.Fatal(err)
	}
	ends, err := b.Direct.Admin().ListEndOffsets(b.T.Context(), topic.Name)
	if err != nil {
		b.T.Fatal(err)
	}
	for p := range topic.Partitions {
		end, _ := ends.Lookup(topic.Name, p)
		n := 0
		err := kafka.Scan(b.T.Context(), b.Client, topic, p, 0, end.Offset, func(r *kgo.Record) error {
			switch {
			case r.Attrs.IsControl():
				n = 0
			case r.Value == nil:
				n++
				most = max(most, n)
			}
			return nil
		})
		if err != nil {
			b.T.Fatal(err)
		}
	}
	return most
}

// A row that was given by another partition is none of the truncate's: its owner
// may have given it again.
func TestTransformTruncateOfOnePartition(t *testing.T) {
	b, _, spec := emptying(enginetest.NewBed(t, ""), 0)
	puts(b, 1, 40, "before")
	stop, _ := transforming(b, b.Env, spec)
	b.Drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	in := inputs(b)
	b.Put(enginetest.Row{Op: change.Truncate})
	topic, err := b.Direct.Topic(t.Context(), b.In.Topic)
	if err != nil {
		t.Fatal(err)
	}
	ends, err := b.Direct.Admin().ListEndOffsets(t.Context(), topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	rest := map[int32]int64{} // partitions 1 and 2 are read past it
	for p := range topic.Partitions {
		end, _ := ends.Lookup(topic.Name, p)
		if p > 0 {
			rest[p] = end.Offset
		}
	}
	b.HasRead(rest, consume.TokenOf)
	transforming(b, b.Env, spec)
	b.Drained()
	got := notes(b)
	for note, p := range in {
		if is := slices.Contains(got, note); is == (p == 0) {
			t.Errorf("%s of partition %d: alive %v", note, p, is)
		}
	}
}

// Keys that another transform gives are none of it, though it reads the same topic.
func TestTransformTruncateOfTwo(t *testing.T) {
	b, _, spec := emptying(enginetest.NewBed(t, ""), 0)
	puts(b, 1, 20, "before")
	stop, _ := transforming(b, b.Env, spec)
	b.Drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	spec.KeyPrefixes = map[string][]string{b.Output(): {"1", "5"}}
	transforming(b, b.Env, spec)
	b.Put(enginetest.Row{Op: change.Truncate})
	b.Drained()
	for id := 1; id <= 20; id++ {
		ours := id == 1 || id == 5 || id >= 10 && id < 20
		if note := fmt.Sprintf("before %03d", id); slices.Contains(notes(b), note) == ours {
			t.Errorf("%s: alive %v", note, !ours)
		}
	}
}

// Lost if this fails: rows that are gone stay, though their table was read anew; or
// rows that are there go with them.
func TestTransformSweep(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b, _, spec := emptying(bd, 0)
		puts(b, 1, 40, "before")
		since := b.N + 1
		puts(b, 1, 30, "again")
		b.Put(enginetest.Row{Op: change.Delete, ID: 30}, enginetest.Row{Op: change.Sweep, Since: since})
		puts(b, 35, 35, "back")
		stop, _ := transforming(b, b.Env, spec)
		b.Drained()
		var want []string
		for i := 1; i < 30; i++ {
			want = append(want, fmt.Sprintf("again %03d", i))
		}
		want = append(want, "back 035")
		if got := notes(b); !slices.Equal(got, want) {
			t.Errorf("alive: %q, want %q", got, want)
		}
		b.Put(enginetest.Row{Op: change.Sweep, Since: since}) // once more, while it runs
		b.Drained()
		if got := notes(b); !slices.Equal(got, want) {
			t.Errorf("alive: %q, want %q", got, want)
		}
		if parked := b.ParkedNow(); len(parked) > 0 {
			t.Errorf("parked: %v", parked)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A row that is parked is there, and did not come: what was made of it before must not
// go. Once it is mended, another sweep does what this one could not.
func TestTransformSweepBesideParked(t *testing.T) { // Remedy: TW-SWEEP-PARKED
	b, st, spec := emptying(enginetest.NewBed(t, ""), 0)
	puts(b, 1, 6, "before")
	since := b.N + 1
	bad := "again 002"
	st.refuse.Store(&bad)
	puts(b, 1, 4, "again")
	transforming(b, b.Env, spec)
	b.Drained()
	b.Put(enginetest.Row{Op: change.Sweep, Since: since})
	b.Drained()
	here := inputs(b)["again 002"]
	var want []string
	for note, p := range inputs(b) {
		if strings.HasPrefix(note, "again") && note != bad || p == here && slices.Contains([]string{"before 002", "before 005", "before 006"}, note) || note == "before 002" {
			want = append(want, note)
		}
	}
	slices.Sort(want)
	b.Eventually("the row and the sweep to be parked", func() (bool, string) {
		p := b.ParkedNow()
		return len(p) == 2, fmt.Sprint(p)
	})
	if got := notes(b); !slices.Equal(got, want) {
		t.Errorf("alive: %q, want %q", got, want)
	}
	puts(b, 2, 2, "mended")
	b.Put(enginetest.Row{Op: change.Sweep, Since: since})
	b.Drained()
	if p := b.ParkedNow(); len(p) > 0 {
		t.Errorf("parked: %v", p)
	}
	if got := notes(b); !slices.Equal(got, []string{"again 001", "again 003", "again 004", "mended 002"}) {
		t.Errorf("alive: %q", got)
	}
}

// A row that waits for a person is truncated with the others.
func TestTransformTruncateTakesParkedOut(t *testing.T) {
	b, st, spec := emptying(enginetest.NewBed(t, ""), 0)
	bad := "before 002"
	st.refuse.Store(&bad)
	puts(b, 1, 3, "before")
	transforming(b, b.Env, spec)
	b.Drained()
	b.Eventually("one to be parked", func() (bool, string) { return len(b.ParkedNow()) == 1, fmt.Sprint(b.ParkedNow()) })
	b.Put(enginetest.Row{Op: change.Truncate})
	puts(b, 4, 4, "after")
	b.Drained()
	if p := b.ParkedNow(); len(p) > 0 {
		t.Errorf("parked: %v", p)
	}
	b.Shows(b.Env, "transform", "that nothing is parked", func(v obs.View) bool { return v.Parked == 0 })
	if got := notes(b); !slices.Equal(got, []string{"after 004"}) {
		t.Errorf("alive: %q", got)
	}
}

// Records of a version that did not say what they are made of: the truncate is
// parked, and reading again mends it. It cannot be tried again by itself, since
// rows may have come after it.
func TestTransformTruncateOfNameless(t *testing.T) {
	b, _, spec := emptying(enginetest.NewBed(t, ""), 0)
	store := b.Control()
	puts(b, 1, 6, "before")
	stop, _ := transforming(b, b.Env, spec)
	b.Drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	key := ""
	for _, r := range b.Read(b.Output()) { // key 3 as a version before wrote it, and then 4, which was written anew
		if note := alive(b)[string(r.Key)]; note == "before 003" || note == "before 004" {
			old := &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value}
			if err := b.Client.ProduceSync(t.Context(), old).FirstErr(); err != nil {
				t.Fatal(err)
			}
			key = string(r.Key)
		}
	}
	puts(b, 4, 4, "again")
	b.Put(enginetest.Row{Op: change.Truncate})
	stop, _ = transforming(b, b.Env, spec)
	b.Drained()
	if got := notes(b); !slices.Equal(got, []string{"before 003"}) {
		t.Errorf("alive: %q (%x)", got, key)
	}
	are := func(code string) func() (bool, string) {
		return func() (bool, string) {
			ps := b.ParkedNow()
			for _, p := range ps {
				if !strings.HasSuffix(p, code) {
					return false, fmt.Sprint(ps)
				}
			}
			return len(ps) == 3, fmt.Sprint(ps) // one for each partition
		}
	}
	b.Eventually("the truncate to be parked", are(ErrOrigin.ID))
	b.Eventually("the projection to show them", func() (bool, string) {
		ps, err := store.List(t.Context(), control.Filter{Stage: b.Source})
		return len(ps) == 3 && err == nil, fmt.Sprint(ps, err)
	})
	if n, err := parked.Retry(t.Context(), b.Env.Kafka, b.Env.Control, control.Filter{Stage: b.Source}, 0); n.Asked != 3 || err != nil {
		t.Fatal(n, err)
	}
	b.Eventually("the truncate to be parked again", are(ErrTruncateRetried.ID))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// Remedy: TW-TRUNCATE-ORIGIN, TW-TRUNCATE-RETRY
	for again := 0; ; again++ {
		b.HasRead(map[int32]int64{0: 0, 1: 0, 2: 0}, consume.TokenOf)
		stop, _ = transforming(b, b.Env, spec)
		b.Drained()
		if got := notes(b); len(got) > 0 {
			t.Errorf("alive: %q", got)
		}
		// A partition may come to its truncate before another has written its rows
		// anew: then once more, and they all say what they are made of.
		if again > 0 || len(b.ParkedNow()) == 0 {
			break
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	b.Eventually("nothing to be parked", func() (bool, string) { return len(b.ParkedNow()) == 0, fmt.Sprint(b.ParkedNow()) })
}

// heartbeats counts the answers to those of the bed's members.
type heartbeats struct{ answered atomic.Int64 }

func (h *heartbeats) OnBrokerRead(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.Heartbeat) {
		h.answered.Add(1)
	}
}

// slowTruncates is a stage that waits before the second page of a truncate.
type slowTruncates struct {
	pipeline.Stage
	wait  func()
	pages atomic.Int64
}

func (s *slowTruncates) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if slices.ContainsFunc(in.Changes, func(c change.Change) bool { return c.Op == change.Truncate }) && s.pages.Add(1) == 2 && s.wait != nil {
		s.wait()
	}
	return s.Stage.Apply(ctx, in, out)
}

// A partition is taken away between two pages of its truncate: whoever has it
// now begins anew, and whoever had it goes on with its others. Lost if this
// fails: no row, but every truncate that comes afterwards waits for the one that
// is gone, and all rows behind it.
func TestTransformTruncateMovesBetweenPages(t *testing.T) {
	h := new(heartbeats)
	b, st, spec := emptying(enginetest.NewBedOf(t, nil, kgo.WithHooks(h), kgo.ClientID("direct")), 1) // a page is one end
	truncate := func(partition int32) {
		batch, rs := change.Get(), new(records.Buffer)
		defer batch.Release()
		b.N++
		enginetest.AppendRow(batch, b.In, enginetest.Row{Op: change.Truncate}, b.N, 0)
		if err := b.Outs.Encode(rs, batch, 0, 1); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(rs.Records, func(r kgo.Record) bool { return r.Partition == partition })
		if err := b.Client.ProduceSync(t.Context(), &rs.Records[i]).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	puts(b, 1, 120, "before")
	first, second := &slowTruncates{Stage: st}, &slowTruncates{Stage: st}
	spec.Stages = []pipeline.Stage{first}
	other := spec
	other.Stages = []pipeline.Stage{second}
	first.wait = func() {
		transforming(b, b.Member("b"), other)
		b.Eventually("the second member to ask for its part", func() (bool, string) {
			g := b.Group()
			return g.State == "PreparingRebalance", g.State
		})
		seen := h.answered.Load() // the next but one was asked for afterwards
		b.Eventually("the first member to hear of it", func() (bool, string) { return h.answered.Load() > seen+1, "" })
	}
	transforming(b, b.Member("a"), spec)
	b.Drained()
	truncate(2) // the last goes to the last member
	b.Drained()
	if first.pages.Load() < 2 || second.pages.Load() < 2 {
		t.Fatalf("%d pages here, %d there: it did not move", first.pages.Load(), second.pages.Load())
	}
	puts(b, 121, 160, "between")
	truncate(0)
	puts(b, 161, 200, "after")
	b.Drained()
	got := notes(b)
	for note, p := range inputs(b) {
		ended := p == 2 && strings.HasPrefix(note, "before") || p == 0 && !strings.HasPrefix(note, "after")
		if slices.Contains(got, note) == ended {
			t.Errorf("%s of partition %d: alive %v", note, p, !ended)
		}
	}
}
