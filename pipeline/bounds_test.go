// What is held at once has a bound in octets, not only in records (invariant
// 12): wide rows must not take more memory than narrow ones.

package pipeline

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

const (
	wideOctets = 10_000 // of one row
	boundRows  = 4      // as many of them may be held
)

// wide writes rows of many octets, before anybody reads them: a poll finds many.
func wide(b *tbed) {
	b.t.Helper()
	rows := make([]row, 60)
	for i := range rows {
		rows[i] = row{op: change.Update, id: int64(i + 1), val: strings.Repeat("x", wideOctets)}
	}
	b.put(rows...)
}

// tally finds the batch with the most octets.
type tally struct{ now, most int }

func (y *tally) begin() { y.now = 0 }

func (y *tally) add(note string) {
	y.now += len(note)
	y.most = max(y.most, y.now)
}

func (y *tally) check(t *testing.T) {
	t.Helper()
	if y.most == 0 || y.most > boundRows*wideOctets {
		t.Errorf("a batch holds %d octets, with a bound of %d", y.most, boundRows*wideOctets)
	}
}

func TestTransformBatchesAreBoundedInOctets(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	wide(b)
	var y tally
	spec := b.spec(&copier{topic: b.output(), before: y.begin, refuse: func(note string) bool { y.add(note); return false }})
	spec.BatchBytes = boundRows * wideOctets
	stop, _ := transforming(b, b.env, spec)
	b.drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	b.once()
	y.check(t)
}

func TestDeliverBatchesAreBoundedInOctets(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	wide(b)
	m := newMemory()
	var y tally
	m.down = func() error { y.begin(); return nil }
	m.judge = func(_, _, note string) (error, string) { y.add(note); return nil, "" }
	spec := b.dspec(m)
	spec.MaxBytes = boundRows * wideOctets
	stop, _ := delivering(b, b.env, spec)
	b.drained()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if m.size() != b.n {
		t.Errorf("%d rows are in the sink, want %d", m.size(), b.n)
	}
	y.check(t)
}
