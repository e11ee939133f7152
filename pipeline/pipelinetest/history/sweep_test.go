// Rows that go, or change, without a change that says so: what sweeps and rows that
// are read anew have to make of it in the topics.

package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// A checker that takes a ghost for a row, or that lets a sweep delete what is there,
// lets every fault of sweeps pass.
func TestCheckOfWhatNoChangeSays(t *testing.T) {
	gone := Change{Table: item, Op: Unsaid, Old: Row{"id": "1"}}
	filled := Change{Table: item, Op: Filled, New: Row{"more": "7"}}
	full := func(mark, more string) Row {
		r := row(1, mark)
		r["more"] = more
		return r
	}
	op := func(o byte, r Row) Change { return Change{Table: item, Op: o, New: r} }
	r := func(mark string) Change { return op('r', row(1, mark)) }
	u := func(mark string) Change { return op('u', row(1, mark)) }
	c := func(mark string) Change { return op('c', row(1, mark)) }
	d, s, tr := Change{Table: item, Op: 'd', Old: Row{"id": "1"}}, Change{Table: item, Op: 's'}, Change{Table: item, Op: 't'}
	part := op('u', Row{"id": "1", "mark": "c", "note": Null}) // does not tell more, as if it were stored out of line
	for _, x := range []struct {
		name string
		life []Change
		got  []Change
		want Kind // "": all is well
	}{
		{"swept", []Change{u("b"), gone}, []Change{r("a"), u("b"), s}, ""},
		{"read anew, then swept", []Change{u("b"), gone}, []Change{r("a"), u("b"), r("b"), s}, ""},
		{"a truncate says it too", []Change{u("b"), gone}, []Change{r("a"), u("b"), tr}, ""},
		{"gone before it was loaded", []Change{u("b"), gone}, nil, ""},
		{"it stays in the topic", []Change{u("b"), gone}, []Change{r("a"), u("b")}, Lost},
		{"it is read anew, and gone", []Change{u("b"), gone}, []Change{r("a"), u("b"), s, r("b")}, Reordered},
		{"a change is lost before the sweep", []Change{u("b"), gone}, []Change{r("a"), s}, Lost},
		{"a change comes after the sweep", []Change{u("b"), gone}, []Change{r("a"), s, u("b")}, Reordered},
		{"swept, and it is there", []Change{u("b")}, []Change{r("a"), u("b"), s}, Lost},
		{"swept, and it is there, and changes", []Change{u("b"), u("c")}, []Change{r("a"), u("b"), s, u("c")}, Lost},
		{"it comes again behind the sweep", []Change{u("b"), gone, c("c")}, []Change{r("a"), u("b"), s, c("c")}, ""},
		{"it comes again before the sweep", []Change{u("b"), gone, c("c")}, []Change{r("a"), u("b"), c("c")}, ""},
		{"it comes again, and is read anew", []Change{u("b"), gone, c("c")}, []Change{r("a"), u("b"), c("c"), r("c")}, ""},
		{"it came again, and is swept", []Change{u("b"), gone, c("c")}, []Change{r("a"), u("b"), c("c"), s}, Lost},
		{"it came again, and does not arrive", []Change{u("b"), gone, c("c")}, []Change{r("a"), u("b"), s}, Lost},
		{"it came again, and is but read anew", []Change{u("b"), gone, c("c")}, []Change{r("a"), u("b"), s, r("c")}, Lost},
		{"gone twice, swept once", []Change{gone, c("c"), gone}, []Change{r("a"), c("c"), s}, ""},
		{"gone twice, swept too early", []Change{gone, c("c"), gone}, []Change{r("a"), s, c("c")}, Lost},
		{"deleted when it has come again", []Change{gone, c("c"), d}, []Change{r("a"), c("c"), d}, ""},

		{"filled, and read anew", []Change{filled}, []Change{r("a"), op('r', full("a", "7"))}, ""},
		{"filled, and read anew twice", []Change{filled}, []Change{r("a"), op('r', full("a", "7")), op('r', full("a", "7"))}, ""},
		{"filled, and a change tells it", []Change{filled, op('u', full("b", "7"))}, []Change{r("a"), op('u', full("b", "7"))}, ""},
		{"filled, and deleted", []Change{filled, d}, []Change{r("a"), d}, ""},
		{"filled, and gone", []Change{filled, gone}, []Change{r("a"), s}, ""},
		{"filled, and nothing tells it", []Change{filled}, []Change{r("a")}, Lost},
		{"filled, and told otherwise", []Change{filled}, []Change{r("a"), op('r', full("a", "8"))}, Wrong},
		{"filled, and read as it was", []Change{filled, op('u', full("b", "7"))}, []Change{r("a"), op('u', full("b", "7")), r("a")}, Reordered},
		{"filled, and no change tells it", []Change{filled, op('u', full("c", "7"))}, []Change{r("a"), part}, Lost},
		{"filled, no change tells it, and it is read anew", []Change{filled, op('u', full("c", "7"))}, []Change{r("a"), part, op('r', full("c", "7"))}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			h := New(map[string][]string{item: {"id"}})
			h.Base(item, []Row{row(1, "a")})
			if x.name != "gone before it was loaded" {
				h.Loaded()
			}
			h.Commit(x.life...)
			st := newSeenTable()
			st.rows["1"] = x.got
			fs := h.Check(&Seen{tables: map[string]*seenTable{item: st}}, Options{LoadResumed: true})
			if x.want == "" && len(fs) > 0 || x.want != "" && !slices.ContainsFunc(fs, func(f Finding) bool { return f.Kind == x.want }) {
				t.Errorf("want %q, got %v", x.want, fs)
			}
		})
	}
}

// What was committed to a partition is of its table, and a truncate of it alone is not
// one of the table. What is said of rows that are not there says nothing.
func TestHistoryOfPartitions(t *testing.T) {
	h := New(map[string][]string{item: {"id"}})
	h.Partitions(item, "public.item_1", "public.item_2")
	for _, line := range []string{
		"table public.item_1: INSERT: id[integer]:1 mark[text]:'a'",
		"table public.item_2: INSERT: id[integer]:2 mark[text]:'a'",
		"table public.item_1: TRUNCATE: (no-flags)",
		`message: transactional: 1 prefix: history, sz: 59 content:{"table": "public.item", "gone": [{"id": "1"}, {"id": "9"}]}`,
		`message: transactional: 1 prefix: history, sz: 49 content:{"table": "public.item", "filled": {"more": "7"}}`,
		`message: transactional: 1 prefix: another, sz: 2 content:{}`,
	} {
		cs, err := ParseTestDecoding(line)
		if err != nil {
			t.Fatal(err)
		}
		h.Commit(cs...)
	}
	if n := h.Changes(); n != 4 { // two rows, of which one is gone and one filled
		t.Errorf("%d changes, want 4", n)
	}
	project := func(r Row) (string, Row, bool) { return r["id"], r, true }
	if fs := h.CheckSink(item, []SinkRow{{"2", Row{"id": "2", "mark": "a", "more": "7"}}}, project); len(fs) > 0 {
		t.Error(fs)
	}
	ghost := []SinkRow{{"1", Row{"id": "1", "mark": "a"}}, {"2", Row{"id": "2", "mark": "a", "more": Null}}}
	var got []string
	for _, f := range h.CheckSink(item, ghost, project) {
		got = append(got, fmt.Sprint(f.Kind, " ", f.Key, " ", f.Note))
	}
	if want := []string{"lost 1 it should be gone", "lost 2 it is as it was after 1 changes"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := ParseTestDecoding("message: transactional: 1 prefix: history, sz: 1 content:{"); err == nil {
		t.Error("a message that is no JSON passes")
	}
}

// sweptBed has three rows in a raw topic, of which one comes behind the beginning of a
// sweep and one is gone, and the sweep. LSNs are counted from 1.
func sweptBed(t *testing.T, since int, times int) (*enginetest.TopicBed, *History) {
	b := enginetest.NewTopicBed(enginetest.NewBed(t, ""))
	h := New(map[string][]string{"public.item": {"id"}})
	h.Loaded()
	for id := range int64(3) {
		b.Put(enginetest.Row{Op: change.Create, ID: id + 1, Val: "a"})
		h.Commit(Change{Table: "public.item", Op: 'c', New: Row{"id": fmt.Sprint(id + 1), "note": "a"}})
	}
	// Row 1 is read anew, row 2 is gone, row 3 changes.
	h.Commit(Change{Table: "public.item", Op: Unsaid, Old: Row{"id": "2"}})
	b.Put(enginetest.Row{Op: change.Read, ID: 1, Val: "a"})
	b.Put(enginetest.Row{Op: change.Update, ID: 3, Val: "a"})
	h.Commit(Change{Table: "public.item", Op: 'u', New: Row{"id": "3", "note": "a"}})
	for range times {
		b.Put(enginetest.Row{Op: change.Sweep, Since: since})
	}
	return b, h
}

// A reader that takes tw.before for more or less than it says calls rows gone that are
// there, or leaves ghosts.
func TestReaderOfSweeps(t *testing.T) {
	const begun = 4 // behind the three that were created
	for _, x := range []struct {
		name         string
		since, times int
		want         string // in the first finding; "": all is well
	}{
		{"as it should be", begun, 1, ""},
		{"the marker comes twice", begun, 2, ""},
		{"no sweep: the ghost stays", begun, 0, "lost: public.item 2, change 2 of 2"},
		{"it begins too early: the ghost stays", 2, 1, "lost: public.item 2, change 2 of 2"},
		{"it begins too late: what came after is swept", 5, 1, "it is swept, and was there"},
		{"it is of what comes behind it", 7, 1, "is of rows that come after it"},
		{"it begins before everything", 0, 1, "lost: public.item 2"},
	} {
		t.Run(x.name, func(t *testing.T) {
			b, h := sweptBed(t, x.since, x.times)
			seen, err := ReadTopics(t.Context(), b.Direct, b.Env.Registry.SchemaByID, b.In.Topic)
			if err != nil {
				t.Fatal(err)
			}
			fs := h.Check(seen, Options{LoadResumed: true})
			if x.want == "" && len(fs) > 0 || x.want != "" && (len(fs) == 0 || !strings.Contains(fs[0].String(), x.want)) {
				t.Errorf("want %q, got %v", x.want, fs)
			}
		})
	}
	b, h := sweptBed(t, begun, 1)
	all := b.Read(b.In.Topic)
	is := func(r *kgo.Record) bool {
		return slices.ContainsFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == "tw.before" })
	}
	if n := len(all); !is(all[n-1]) {
		t.Fatal("the last record is no sweep")
	}
	with := func(edit func(*kgo.Record)) []*kgo.Record {
		out := slices.Clone(all)
		for i, r := range out {
			if is(r) {
				c := *r
				c.Headers = slices.Clone(r.Headers)
				edit(&c)
				out[i] = &c
			}
		}
		return out
	}
	sweeps := map[int32]bool{}
	for _, r := range all {
		if is(r) {
			sweeps[r.Partition] = true
		}
	}
	if len(sweeps) != int(b.Env.Partitions) {
		t.Fatalf("there are sweeps in %d partitions of %d", len(sweeps), b.Env.Partitions)
	}
	for name, recs := range map[string][]*kgo.Record{
		"it has a key": with(func(r *kgo.Record) { r.Key = all[0].Key }),
		"it does not say before what": with(func(r *kgo.Record) {
			r.Headers = slices.DeleteFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == "tw.before" })
		}),
		"what it says is no position": with(func(r *kgo.Record) {
			for i := range r.Headers {
				if r.Headers[i].Key == "tw.before" {
					r.Headers[i].Value = r.Headers[i].Value[1:]
				}
			}
		}),
		"a partition has none": slices.DeleteFunc(slices.Clone(all), func(r *kgo.Record) bool { return is(r) && r.Partition == 0 }),
	} {
		r := NewReader(b.Env.Registry.SchemaByID)
		for _, rec := range recs {
			if err := r.Add(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		for p := range b.Env.Partitions { // as ReadTopics does
			r.seen.tables["public.item"].truncates[p] += 0
		}
		if fs := h.Check(r.Seen(), Options{LoadResumed: true}); len(fs) == 0 {
			t.Errorf("%s: nothing is found", name)
		}
	}
}
