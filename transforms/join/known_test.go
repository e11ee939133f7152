package join_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/join"
)

// refreshed is how many left rows the right group has told since the last call.
func (w *world) refreshed(before *int) int {
	n := 0
	for _, p := range w.logs[refreshTopic].parts {
		n += len(p)
	}
	n, *before = n-*before, n
	return n
}

// What changed of a reference decides who is told: a project with 100,000 entries
// whose e-mail changes would have each of them emitted again.
func TestWhoIsTold(t *testing.T) {
	w := calm(t)
	told := 0
	step := func(what string, want int) {
		t.Helper()
		settled(t, w)
		if n := w.refreshed(&told); n != want {
			t.Errorf("%s: %d entries are told, want %d", what, n, want)
		}
	}
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	w.rate("12", 9, 0, 5, 600000, "EUR")
	for id := range 12 { // each partition was seen, up to its end
		w.rate("99", id, 0, -1, 650000, "EUR")
	}
	settled(t, w)
	for day := range int64(10) {
		w.entry(int(day), "12", "17", day, 100)
	}
	settled(t, w)
	w.refreshed(&told)

	w.project("17", "4", "EUR")
	step("the same project again", 0)
	p := w.logs["ps.project"].latest()["17"]
	p["name"] = w.str("another name, which nobody uses")
	w.logs["ps.project"].append("17", p)
	step("a field that is not used", 0)
	w.project("17", "4", "GBP")
	step("a field that is used", 10)
	w.project("17", "4", "EUR")
	step("and back", 10)
	w.rate("12", 9, 0, 5, 600000, "EUR")
	step("the same rate again", 0)
	w.rate("12", 9, 0, 5, 660000, "EUR")
	step("a rate", 5) // of the days on which it is in force
	w.rate("12", 10, 5, -1, 660000, "EUR")
	step("a new one", 5)
	w.delete("ps.cost_rate", "12/10")
	step("deleted", 5)
	w.delete("ps.cost_rate", "12/10")
	step("deleted again", 0)
	w.rate("12", 9, 0, 3, 660000, "EUR")
	step("ends earlier", 2)
	w.rate("12", 9, 0, -1, 660000, "EUR")
	step("has no end", 7)
	w.rate("12", 9, 2, -1, 660000, "EUR")
	step("begins later", 10)
	w.rate("12", 9, 2, 8, 670000, "EUR")
	step("ends, and is another", 8)
	w.rate("13", 9, 2, 8, 670000, "EUR") // another person's, under its own key
	step("of somebody else", 0)
	w.rate("12", 9, 8, 8, 670000, "EUR")
	step("is in force on no day", 6)
	w.rate("12", 9, 9, 8, 670000, "EUR")
	step("and on fewer still", 0)
	w.rate("12", 9, 0, 5, 660000, "EUR")
	step("and back", 5)
	w.customer("4", "renamed")
	step("through projects", 10)
}

// A rule that reads the end of a rate is told of it on all days.
func TestWhoIsToldOfAnEndThatIsRead(t *testing.T) {
	rule := costing()
	rule.Uses = append(rule.Uses, "cost_rate.valid_to")
	w := newWorld(t, miniRedis(t), 1, rule)
	w.sched.Flush = func() {}
	told := w.tenDays(t)
	w.rate("12", 9, 0, 8, 600000, "EUR")
	settled(t, w)
	if n := w.refreshed(&told); n != 10 {
		t.Errorf("%d entries are told, want 10", n)
	}
}

// A row that is found by way of a rate in force changes: those who found that rate are
// told, whatever their days.
func TestWhoIsToldThroughARate(t *testing.T) {
	rule := costing()
	rate := rule.Lookups["cost_rate"]
	rate.Agree, rate.Where = "", ""
	rule.Lookups = map[string]join.Lookup{"cost_rate": rate, "zone": {Topic: "ps.project", On: "cost_rate.currency"}}
	rule.Uses = []string{"hours", "cost_rate.rate", "zone.currency"}
	w := newWorld(t, miniRedis(t), 1, rule)
	w.sched.Flush = func() {}
	w.project("EUR", "1", "here")
	w.rate("12", 9, 0, -1, 600000, "EUR")
	for day := range int64(10) {
		w.entry(int(day), "12", "17", day, 100)
	}
	w.drain(t.Context())
	w.project("EUR", "1", "there")
	w.drain(t.Context())
	for day := range 10 {
		if got := w.field(t, w.logs[wide].latest(), strconv.Itoa(day), "zone.currency"); got != "there" {
			t.Errorf("the entry of day %d is %q", day, got)
		}
	}
}

// A rate is kept by a transaction that is aborted, an entry finds it, and compaction takes
// its record before that is read again. If this failed, the entry would have a cost by a
// rate that is not in force on its day, and nobody would tell it.
func TestSeenAndGoneFromTheTopic(t *testing.T) {
	for name, end := range map[string]int64{"another end": 3, "as it was": 5} {
		t.Run(name, func(t *testing.T) {
			w := calm(t)
			w.customer("4", "c")
			w.project("17", "4", "EUR")
			w.rate("12", 9, 0, 5, 600000, "EUR")
			w.entry(7, "12", "17", 7, 100)
			settled(t, w)
			w.rate("12", 9, 0, -1, 600000, "EUR")
			w.take(t, w.right)
			if err := w.right.work(t.Context(), 1000, true); err != nil {
				t.Fatal(err)
			}
			w.entry(7, "12", "17", 7, 200)
			w.take(t, w.left)
			w.apply(t, w.left)
			if got := w.field(t, w.logs[wide].latest(), "7", "cost_rate.rate"); got != "60.0000" {
				t.Fatalf("rate %q: the test tests nothing", got)
			}
			w.rate("12", 9, 0, end, 600000, "EUR")
			part := w.logs["ps.cost_rate"].parts[kafka.Partition([]byte("12/9"), partitions)]
			part[len(part)-2].gone = true
			settled(t, w)
		})
	}
}

// Redis is lost, and the references are rebuilt from a topic in which compaction has
// left the newer version of a project alone, which was not read yet: to the entry
// that comes then the project is missing. The newer version says nothing new, and
// is told all the same.
func TestRebuiltWithoutWhatIsSuperseded(t *testing.T) {
	w := calm(t)
	w.compacted = true
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	w.rate("12", 8, 0, -1, 600000, "EUR")
	settled(t, w)
	w.project("17", "4", "EUR")
	w.rate("12", 8, 0, -1, 600000, "EUR")
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.take(t, w.left, w.right)
	w.entry(1, "12", "17", 5, 100)
	w.apply(t, w.left)
	if got := w.field(t, w.logs[wide].latest(), "1", join.WaitsColumn); got != "project 17" {
		t.Fatalf("it waits for %q: the test tests nothing", got)
	}
	settled(t, w)
}

// A fan-out that is larger than a transaction goes on in pages, beside what comes
// meanwhile: each dependent is told, whatever is aborted, lost or restarted between
// two pages, and a second change within it is told to all again.
func TestPagesOfAFanOut(t *testing.T) {
	addr := miniRedis(t)
	pages := 0
	for seed := range uint64(12) {
		w := newWorld(t, addr, seed, costing())
		if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		w.sched.Flush = func() {
			if err := w.rdb.FlushAll(context.Background()).Err(); err != nil {
				t.Error(err)
			}
		}
		w.most = 1 // a page is one round of reading
		w.right.stage = w.right.make()
		w.customer("4", "old")
		for p := range 40 {
			w.project(strconv.Itoa(p+1), "4", "EUR")
		}
		w.rate("12", 8, 0, -1, 600000, "EUR")
		for i := range 1500 {
			w.entry(i+1, "12", strconv.Itoa(1+i%40), int64(i%700), 100)
		}
		settled(t, w)
		name := "old"
		if seed%2 == 1 { // all are told of that, too
			name = "newer"
			w.customer("4", "new")
		}
		w.rate("12", 8, 0, 690, 700000, "EUR")
		w.apply(t, w.right)
		if more, err := w.right.rest(t.Context(), false); !more || err != nil {
			t.Fatal("nothing is left for later", err)
		}
		w.apply(t, w.left)
		w.rate("12", 8, 0, 695, 710000, "EUR") // within it
		if seed%2 == 1 {
			w.customer("4", "newer")
		}
		w.apply(t, w.right)
		for range 40 {
			w.run(t.Context(), 100, 5, false)
			more, err := w.right.rest(t.Context(), w.rng.IntN(4) == 0)
			w.right.tolerate(err)
			if more && err == nil {
				pages++
			}
		}
		if got := settled(t, w); w.field(t, got, "1500", "customer.name") != name {
			t.Fatalf("seed %d: customer %q", seed, w.field(t, got, "1500", "customer.name"))
		}
	}
	if pages < 30 {
		t.Errorf("%d pages", pages)
	}
}

// Those who tell do not run ahead of those who work on it: entries that come meanwhile
// would wait behind all who are told.
func TestAFanOutWaitsForThoseWhoWorkOnIt(t *testing.T) {
	w := calm(t)
	queued := func() int64 {
		n := int64(0)
		for p := range partitions {
			n += int64(len(w.logs[refreshTopic].parts[p])) - w.left.committed[refreshTopic][p]
		}
		return n
	}
	w.most = 100
	w.flow = func(context.Context) (join.Flow, error) { return join.Flow{Queued: queued()}, nil }
	w.right.stage = w.right.make()
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	w.rate("12", 8, 0, -1, 600000, "EUR")
	for i := range 10_000 {
		w.entry(i+1, "12", "17", 5, 100)
	}
	settled(t, w)
	w.rate("12", 8, 0, -1, 700000, "EUR")
	w.apply(t, w.right)
	most := int64(0)
	for more := true; more; w.apply(t, w.left) {
		for told := time.Now(); more && time.Since(told) < 100*time.Millisecond; {
			before := queued()
			var err error
			if more, err = w.right.rest(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if n := queued(); n > before {
				most, told = max(most, n), time.Now()
			}
		}
	}
	// Four pages of 400 in quiet, one more, and what is read of one reference at once.
	if most > 5*400+512 {
		t.Errorf("%d were in the queue", most)
	}
	settled(t, w)
}

// A version that knew no days had left the rest of a fan-out: it is told from the first,
// since how far it had come says nothing of members that begin with their day.
func TestRestOfAVersionWithoutDays(t *testing.T) {
	w := calm(t)
	told := w.tenDays(t)
	part := kafka.Partition([]byte("12/9"), partitions)
	left := []byte{1}
	for _, s := range []string{"cost_rate", "12", "7"} {
		left = append(append(left, byte(len(s))), s...)
	}
	left = append(left, make([]byte, 8)...)
	w.right.changelog[part] = append(w.right.changelog[part], &state.Entry{Partition: part, Key: []byte("t"), Value: left}, nil)
	w.right.stage = w.right.make()
	w.take(t, w.right)
	if _, err := w.right.rest(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if n := w.refreshed(&told); n != 10 {
		t.Errorf("%d entries are told, want 10", n)
	}
}

// Somebody sets the references back, and on again before all was read: a replay tells
// all, and what is known does not go back with it, or a change to what was long ago
// would be none.
func TestReferencesAreSetBack(t *testing.T) {
	w := calm(t)
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	w.project("18", "4", "EUR")
	w.entry(1, "12", "17", 5, 100)
	w.entry(2, "12", "18", 5, 100)
	settled(t, w)
	w.project("17", "4", "GBP")
	w.delete("ps.project", "18")
	settled(t, w)
	told := 0
	w.refreshed(&told)
	at := *w.right.committed["ps.project"]
	*w.right.committed["ps.project"] = [partitions]int64{}
	w.apply(t, w.right)
	if n := w.refreshed(&told); n != 2 {
		t.Errorf("a replay tells %d, want the entries of both projects: 2", n)
	}
	*w.right.committed["ps.project"] = [partitions]int64{}
	l := w.logs["ps.project"]
	whole := l.parts
	for p := range l.parts { // the first version of each, and on
		l.parts[p] = l.parts[p][:len(l.parts[p])/2]
	}
	w.apply(t, w.right)
	l.parts = whole
	*w.right.committed["ps.project"] = at
	settled(t, w)
	w.project("17", "4", "EUR") // as it was at first
	w.project("18", "4", "EUR")
	settled(t, w)
}

// Somebody else read in between and did not keep what is known, such as the version
// before while an upgrade was taken back: what was known before does not count.
func TestKnownWithAGap(t *testing.T) {
	w := calm(t)
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	for id := range 12 { // something of each partition was read
		w.project(strconv.Itoa(20+id), "4", "EUR")
	}
	w.entry(1, "12", "17", 5, 100)
	settled(t, w)
	log := [partitions][]*state.Entry{}
	for p := range log {
		log[p] = append(log[p], w.right.changelog[p]...)
	}
	w.project("17", "4", "GBP")
	w.project("18", "4", "EUR")
	w.entry(2, "12", "18", 5, 100)
	settled(t, w)
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil { // the changelog as if that had not been written
		t.Fatal(err)
	}
	w.right.changelog = log
	w.right.stage = w.right.make()
	settled(t, w)
	told := 0
	w.refreshed(&told)
	for range 2 { // the second is beyond what a rebuild has told
		for id := range 12 {
			w.project(strconv.Itoa(20+id), "4", "EUR")
		}
		settled(t, w)
	}
	w.refreshed(&told)
	w.project("17", "4", "EUR") // as it was before the gap
	settled(t, w)
	if n := w.refreshed(&told); n != 1 {
		t.Errorf("%d are told", n)
	}
	w.delete("ps.project", "18") // which came within the gap
	settled(t, w)
	if n := w.refreshed(&told); n != 1 {
		t.Errorf("%d are told of a row of which nothing is known", n)
	}
}

// tenDays enters ten days that one rate is in force on, and gives how many were told.
func (w *world) tenDays(t *testing.T) (told int) {
	t.Helper()
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	w.rate("12", 9, 0, -1, 600000, "EUR")
	for day := range int64(10) {
		w.entry(int(day), "12", "17", day, 100)
	}
	settled(t, w)
	w.refreshed(&told)
	return told
}
