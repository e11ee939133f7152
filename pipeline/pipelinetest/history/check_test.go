package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const item = "public.item"

func row(id int, mark string) Row { return Row{"id": fmt.Sprint(id), "mark": mark, "note": Null} }

// faithful is a history of a few keys, some of which were there before it, and
// what topics hold of it when nothing went wrong: the load took place after
// some changes of each key.
func faithful(rnd *rand.Rand) (*History, *Seen) {
	h := New(map[string][]string{item: {"id"}})
	var base []Row
	now := map[int]Row{}
	for id := range 6 {
		if rnd.IntN(2) == 0 {
			now[id] = row(id, fmt.Sprintf("base %d", id))
			base = append(base, now[id])
		}
	}
	h.Base(item, base)
	n := 0
	work := func(times int) {
		for range times {
			id := rnd.IntN(6)
			n++
			next := row(id, fmt.Sprintf("mark %d", n))
			switch was := now[id]; {
			case was == nil:
				h.Commit(Change{Table: item, Op: 'c', New: next})
				now[id] = next
			case rnd.IntN(4) == 0:
				h.Commit(Change{Table: item, Op: 'd', Old: was})
				delete(now, id)
			case rnd.IntN(6) == 0 && now[id+10] == nil:
				moved := row(id+10, next["mark"])
				h.Commit(Change{Table: item, Op: 'u', Old: was, New: moved})
				delete(now, id)
				now[id+10] = moved
			case rnd.IntN(20) == 0:
				h.Commit(Change{Table: item, Op: 't'})
				clear(now)
			default:
				h.Commit(Change{Table: item, Op: 'u', New: next})
				now[id] = next
			}
		}
	}
	work(rnd.IntN(15))
	h.Loaded()
	t := h.tables[item]
	seen := &Seen{tables: map[string]*seenTable{item: newSeenTable()}}
	st := seen.tables[item]
	begins := map[string]int{}
	for k, l := range t.rows {
		begins[k] = len(l.changes)
		if s := l.now(); s != nil {
			st.rows[k] = append(st.rows[k], Change{Table: item, Op: 'r', New: s, At: "load"})
		}
	}
	work(40)
	st.truncates[0] = t.truncates - t.loaded
	for k, l := range t.rows {
		for i, c := range l.changes[begins[k]:] {
			c.At = fmt.Sprint(i)
			c.Old = l.states[begins[k]+i]
			if c.Op == 't' {
				c.Old = nil
			}
			st.rows[k] = append(st.rows[k], c)
		}
	}
	return h, seen
}

// streamed are the keys with at least n changes behind the load, in order.
func streamed(s *Seen, n int) []string {
	var out []string
	for k, cs := range s.tables[item].rows {
		if len(behindLoad(cs)) >= n {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func behindLoad(cs []Change) []Change {
	for len(cs) > 0 && cs[0].Op == 'r' {
		cs = cs[1:]
	}
	return cs
}

// A checker that finds what is not there is not believed; one that misses what
// is there lets it pass for ever.
func TestCheckFindsWhatIsPlanted(t *testing.T) {
	// edit changes what the topic holds of a key and says what must be found.
	type edit func(rnd *rand.Rand, cs []Change) (after []Change, want Kind)
	load := func(cs []Change) int { return len(cs) - len(behindLoad(cs)) }
	// at is the place of a change that another could be told from.
	at := func(rnd *rand.Rand, cs []Change) int { return load(cs) + rnd.IntN(len(cs)-load(cs)) }
	plants := map[string]edit{
		"a change is gone": func(rnd *rand.Rand, cs []Change) ([]Change, Kind) {
			i := at(rnd, cs)
			return slices.Delete(slices.Clone(cs), i, i+1), Lost
		},
		"all changes are gone": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			return cs[:load(cs):load(cs)], Lost
		},
		"the last change is gone": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			return cs[: len(cs)-1 : len(cs)-1], Lost
		},
		"a change comes twice": func(rnd *rand.Rand, cs []Change) ([]Change, Kind) {
			i := at(rnd, cs)
			return slices.Insert(slices.Clone(cs), i+1, cs[i]), Doubled
		},
		"all since some change come again": func(rnd *rand.Rand, cs []Change) ([]Change, Kind) {
			return append(slices.Clone(cs), cs[at(rnd, cs):]...), Doubled
		},
		"a change comes too late": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			out := slices.Delete(slices.Clone(cs), load(cs), load(cs)+1)
			return append(out, cs[load(cs)]), Reordered
		},
		"a value is another": func(rnd *rand.Rand, cs []Change) ([]Change, Kind) {
			i := at(rnd, cs)
			c := cs[i]
			if c.New == nil {
				c.Op, c.New = 'u', row(0, "bad")
				out := slices.Clone(cs)
				out[i] = c
				return out, ""
			}
			c.New = Row{"id": c.New["id"], "mark": "bad", "note": c.New["note"]}
			out := slices.Clone(cs)
			out[i] = c
			return out, Wrong
		},
		"the row before is another": func(rnd *rand.Rand, cs []Change) ([]Change, Kind) {
			out := slices.Clone(cs)
			for i := load(cs); i < len(cs); i++ {
				if out[i].Old != nil {
					out[i].Old = Row{"id": out[i].Old["id"], "mark": "bad"}
					return out, Wrong
				}
			}
			return nil, ""
		},
		"a change that never was": func(rnd *rand.Rand, cs []Change) ([]Change, Kind) {
			return slices.Insert(slices.Clone(cs), at(rnd, cs), Change{Table: item, Op: 'u', New: Row{"id": cs[0].New["id"], "mark": "never"}}), Invented
		},
		"a row that is loaded twice": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			if cs[0].Op != 'r' {
				return nil, ""
			}
			return slices.Insert(slices.Clone(cs), 0, cs[0]), Doubled
		},
		"a row that is not loaded": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			if cs[0].Op != 'r' || cs[1].Op != 'u' {
				return nil, ""
			}
			return cs[1:], Lost
		},
		"a row that is loaded otherwise": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			if cs[0].Op != 'r' {
				return nil, ""
			}
			out := slices.Clone(cs)
			out[0].New = Row{"id": cs[0].New["id"], "mark": "bad", "note": Null}
			return out, Wrong
		},
		"a row read again in an older state": func(_ *rand.Rand, cs []Change) ([]Change, Kind) {
			last := cs[len(cs)-1]
			if last.Op != 'u' || cs[load(cs)].New == nil {
				return nil, ""
			}
			return append(slices.Clone(cs), Change{Table: item, Op: 'r', New: cs[load(cs)].New}), Reordered
		},
	}
	tried := map[string]int{}
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		h, seen := faithful(rnd)
		if fs := h.Check(seen, Options{}); len(fs) > 0 {
			t.Fatalf("seed %d: nothing is wrong, and it says: %v", seed, fs)
		}
		if fs := h.Check(seen, Options{LoadResumed: true}); len(fs) > 0 {
			t.Fatalf("seed %d, load resumed: nothing is wrong, and it says: %v", seed, fs)
		}
		keys := streamed(seen, 3)
		if len(keys) == 0 {
			continue
		}
		rows := seen.tables[item].rows
		for name, plant := range plants {
			key := keys[rnd.IntN(len(keys))]
			was := rows[key]
			after, want := plant(rnd, slices.Clone(was))
			if after == nil {
				continue
			}
			if name == "a change comes too late" && behindLoad(was)[0].Op == was[len(was)-1].Op && was[len(was)-1].Op != 'u' {
				continue // two deletes are alike: nobody could tell
			}
			tried[name]++
			rows[key] = after
			fs := h.Check(seen, Options{})
			rows[key] = was
			kinds := map[Kind]bool{}
			for _, f := range fs {
				if f.Key != key {
					t.Errorf("seed %d, %s in %s: it accuses %v", seed, name, key, f)
				}
				kinds[f.Kind] = true
			}
			if len(fs) == 0 || want != "" && !kinds[want] {
				t.Errorf("seed %d, %s in %s: want %s, got %v\nwas %v\nis  %v", seed, name, key, want, fs, was, after)
			}
		}
		if t.Failed() {
			return
		}
	}
	for name := range plants {
		if tried[name] < 20 {
			t.Errorf("%q was tried only %d times", name, tried[name])
		}
	}
	t.Log(tried)
}

func TestCheckTellsWhichChange(t *testing.T) {
	h := New(map[string][]string{item: {"id"}})
	h.Loaded()
	for i := range 5 {
		op := byte('u')
		if i == 0 {
			op = 'c'
		}
		h.Commit(Change{Table: item, Op: op, New: row(7, fmt.Sprint("m", i))})
	}
	st := newSeenTable()
	seen := &Seen{tables: map[string]*seenTable{item: st}}
	all := slices.Clone(h.tables[item].rows["7"].changes)
	all[3].New = Row{"id": "7", "mark": "other", "note": "x"}
	st.rows["7"] = []Change{all[0], all[2], all[3], all[4], all[2]}
	st.rows["8"] = []Change{{Table: item, Op: 'c', New: row(8, "?")}}
	st.truncates[1] = 1
	var got []string
	for _, f := range h.Check(seen, Options{}) {
		s, _, _ := strings.Cut(f.String(), ": want")
		s, _, _ = strings.Cut(s, ": got")
		got = append(got, s)
	}
	want := []string{
		"doubled: public.item , partition 1 has 1 truncates of 0",
		"wrong: public.item 7, change 4 of 5, mark, note",
		"doubled: public.item 7, change 3 of 5",
		"lost: public.item 7, change 2 of 5",
		"invented: public.item 8",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What a record leaves out must not have changed.
func TestCheckOfPartialChanges(t *testing.T) {
	h := New(map[string][]string{item: {"id"}})
	h.Loaded()
	h.Commit(Change{Table: item, Op: 'c', New: Row{"id": "1", "body": "long", "n": "1"}})
	h.Commit(Change{Table: item, Op: 'u', New: Row{"id": "1", "n": "2"}}) // test_decoding leaves it out, too
	h.Commit(Change{Table: item, Op: 'u', New: Row{"id": "1", "n": "3", "body": "other"}})
	st := newSeenTable()
	seen := &Seen{tables: map[string]*seenTable{item: st}}
	check := func(last Row) []Finding {
		st.rows["1"] = []Change{
			{Table: item, Op: 'c', New: Row{"id": "1", "body": "long", "n": "1"}},
			{Table: item, Op: 'u', New: Row{"id": "1", "n": "2"}},
			{Table: item, Op: 'u', New: last},
		}
		return h.Check(seen, Options{})
	}
	if fs := check(Row{"id": "1", "body": "other", "n": "3"}); len(fs) > 0 {
		t.Error(fs)
	}
	// The large value of a row that came from another key is where that was.
	h.Commit(Change{Table: item, Op: 'u', Old: Row{"id": "1"}, New: Row{"id": "2", "n": "3"}})
	st.rows["2"] = []Change{{Table: item, Op: 'c', New: Row{"id": "2", "n": "3"}}}
	gone := Change{Table: item, Op: 'd', Old: Row{"id": "1"}}
	st.rows["1"] = append(st.rows["1"], gone)
	if fs := h.Check(seen, Options{}); len(fs) > 0 {
		t.Error(fs)
	}
	check(Row{"id": "1", "n": "3"})
	st.rows["1"] = append(st.rows["1"], gone)
	fs := h.Check(seen, Options{})
	if len(fs) != 1 || fs[0].Kind != Wrong || len(fs[0].Columns) != 1 || fs[0].Columns[0] != "body" {
		t.Errorf("a large value that never came: %v", fs)
	}
}

// A load that was cut off, and the rest was read beside the stream.
func TestCheckOfALoadThatIsResumed(t *testing.T) {
	h := New(map[string][]string{item: {"id"}})
	h.Base(item, []Row{row(1, "a")})
	for _, m := range []string{"b", "c", "d"} {
		h.Commit(Change{Table: item, Op: 'u', New: row(1, m)})
	}
	h.Loaded()
	st := newSeenTable()
	seen := &Seen{tables: map[string]*seenTable{item: st}}
	r := func(m string) Change { return Change{Table: item, Op: 'r', New: row(1, m)} }
	u := func(m string) Change { return Change{Table: item, Op: 'u', New: row(1, m)} }
	part := func(m string) Change {
		return Change{Table: item, Op: 'u', New: Row{"id": "1", "mark": m}}
	}
	for _, c := range []struct {
		got  []Change
		well bool
	}{
		{[]Change{r("a"), r("a"), u("b"), u("c"), u("d")}, true},
		{[]Change{r("a"), u("b"), r("b"), u("c"), r("c"), u("d"), r("d")}, true},
		{[]Change{u("b"), u("c"), r("c"), u("d")}, true},
		{[]Change{r("d")}, true},
		{[]Change{u("d")}, true},                          // the slot was made behind c, and it was not read by then
		{[]Change{part("d")}, false},                      // the note never came
		{[]Change{part("c"), r("c"), u("d")}, true},       // it did
		{[]Change{r("a"), r("c"), u("c"), u("d")}, false}, // twice
		{[]Change{r("a"), u("b"), u("c")}, false},         // d is lost
		{[]Change{r("b"), u("d")}, false},                 // c is lost
		{[]Change{u("b"), u("d")}, false},                 // c is lost
		{[]Change{u("b"), r("a"), u("c"), u("d")}, false}, // it goes back
		{nil, false}, // it was there before
	} {
		st.rows["1"] = c.got
		if fs := h.Check(seen, Options{LoadResumed: true}); (len(fs) == 0) != c.well {
			t.Errorf("%v: %v", c.got, fs)
		}
	}
}

// A row that was there when the slot was made, and gone at the load.
func TestCheckOfALoadThatCameTooLate(t *testing.T) {
	h := New(map[string][]string{item: {"id"}})
	h.Commit(Change{Table: item, Op: 'c', New: row(1, "a")}, Change{Table: item, Op: 'u', New: row(1, "b")}, Change{Table: item, Op: 'd', Old: row(1, "b")})
	st := newSeenTable()
	seen := &Seen{tables: map[string]*seenTable{item: st}}
	u, d, r := Change{Table: item, Op: 'u', New: row(1, "b")}, Change{Table: item, Op: 'd', Old: row(1, "b")}, Change{Table: item, Op: 'r', New: row(1, "a")}
	for _, c := range []struct {
		got           []Change
		well, resumed bool // after one load, after one that was resumed
	}{
		{nil, true, true},
		{[]Change{d}, false, true},
		{[]Change{u, d}, false, true},
		{[]Change{r, u, d}, true, true},
		{[]Change{r, d}, false, false},
		{[]Change{r, r, u, d}, false, true},
		{[]Change{u}, false, false},
		{[]Change{r, u}, false, false},
	} {
		st.rows["1"] = c.got
		if fs := h.Check(seen, Options{}); (len(fs) == 0) != c.well {
			t.Errorf("%v: %v", c.got, fs)
		}
		if fs := h.Check(seen, Options{LoadResumed: true}); (len(fs) == 0) != c.resumed {
			t.Errorf("%v, resumed: %v", c.got, fs)
		}
	}
}

func TestCheckSink(t *testing.T) {
	h := New(map[string][]string{item: {"id"}})
	h.Base(item, []Row{row(1, "a"), row(2, "a"), row(3, "a"), row(4, "a"), row(5, "draft"), row(6, "a"), row(9, "a")})
	h.Commit(Change{Table: item, Op: 'u', New: row(2, "b")}, Change{Table: item, Op: 'u', New: row(2, "c")}, Change{Table: item, Op: 'd', Old: row(3, "a")})
	project := func(r Row) (string, Row, bool) {
		return "k" + r["id"], Row{"mark": strings.ToUpper(r["mark"])}, r["mark"] != "draft"
	}
	is := func(id int, mark string) SinkRow {
		return SinkRow{fmt.Sprint("k", id), Row{"mark": mark, "more": "x"}}
	}
	well := []SinkRow{is(1, "A"), is(2, "C"), is(4, "A"), is(6, "A"), is(9, "A")}
	if fs := h.CheckSink(item, well, project); len(fs) > 0 {
		t.Fatal(fs)
	}
	var got []string
	for _, f := range h.CheckSink(item, []SinkRow{is(2, "B"), is(3, "A"), is(4, "Q"), is(5, "DRAFT"), is(6, "A"), is(6, "A"), is(7, "A"), is(9, "A")}, project) {
		s, _, _ := strings.Cut(f.String(), ": ")
		got = append(got, s+" "+f.Key+" "+f.Note)
	}
	want := []string{
		"lost k2 it is as it was after 1 changes", "lost k3 it should be gone", "wrong k4 ", "invented k5 ",
		"doubled k6 it is there 2 times", "invented k7 ", "lost k1 ",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
