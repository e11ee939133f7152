// What is held at once has a bound in octets, not only in records (invariant
// 12): wide rows must not take more memory than narrow ones.

package enginetest

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

const (
	WideOctets = 10_000 // of one row
	BoundRows  = 4      // as many of them may be held
)

// Wide writes rows of many octets, before anybody reads them: a poll finds many.
func Wide(b *TopicBed) {
	b.T.Helper()
	rows := make([]Row, 60)
	for i := range rows {
		rows[i] = Row{Op: change.Update, ID: int64(i + 1), Val: strings.Repeat("x", WideOctets)}
	}
	b.Put(rows...)
}

// Tally finds the batch with the most octets.
type Tally struct{ now, most int }

func (y *Tally) Begin() { y.now = 0 }

func (y *Tally) Add(note string) {
	y.now += len(note)
	y.most = max(y.most, y.now)
}

func (y *Tally) Check(t *testing.T) {
	t.Helper()
	y.CheckWithin(t, 0)
}

// CheckWithin is Check with room for more rows.
func (y *Tally) CheckWithin(t *testing.T, more int) {
	t.Helper()
	if y.most == 0 || y.most > (BoundRows+more)*WideOctets {
		t.Errorf("a batch holds %d octets, with a bound of %d", y.most, BoundRows*WideOctets)
	}
}
