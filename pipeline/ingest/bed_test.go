// What ingest is tested with: a source that behaves as a Postgres slot does, and
// a reader that counts every change.

package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
)

// feed is an upstream with a slot: it forgets what was acknowledged.
type feed struct {
	table *change.Table
	txs   [][]enginetest.Row // transaction n is txs[n-1]; its LSN is n

	mu        sync.Mutex
	confirmed int // the slot's confirmed position: transactions up to here are forgotten
	lost      []string
	runs      int
	active    bool

	// before is called ahead of sending transaction n; out is the run's.
	before func(n int)
	out    pipeline.SourceOutlet
	// cut splits transactions: only the last batch of each is a boundary.
	cut  bool
	all  chan struct{} // closed when everything is confirmed
	got  chan struct{} // txs got more (feed.more)
	gate int           // it sends no transaction behind this one; 0: all
	// appendRow puts a row into a batch; nil: as one of table.
	appendRow func(b *change.Batch, r enginetest.Row, n, i int)
	// prepares: it says ahead which table it captures, as a source should.
	prepares bool
}

var errSlotInUse = problem.Define("TW-TEST-SLOT-IN-USE", problem.Retry, "The test's slot is in use.", "Wait.")

func newFeed(table *change.Table, txs [][]enginetest.Row) *feed {
	return &feed{table: table, txs: txs, all: make(chan struct{}), got: make(chan struct{}, 1)}
}

type feedToken struct {
	LSN int `json:"lsn"`
}

func (f *feed) Run(ctx context.Context, out pipeline.SourceOutlet) error {
	f.mu.Lock()
	if f.active {
		f.mu.Unlock()
		return errSlotInUse.New("slot of the feed")
	}
	f.active = true
	f.runs++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.active = false
		f.mu.Unlock()
	}()

	f.out = out
	resume, err := out.Resume(ctx)
	if err != nil {
		return err
	}
	if f.prepares {
		if err := out.Prepare(ctx, []*change.Table{f.table}); err != nil {
			return err
		}
	}
	var at feedToken
	if resume != nil {
		if err := json.Unmarshal(resume, &at); err != nil {
			return err
		}
	}
	f.mu.Lock()
	if at.LSN < f.confirmed {
		f.lost = append(f.lost, fmt.Sprintf("acknowledged up to %d, resumes after %d", f.confirmed, at.LSN))
	}
	next := max(at.LSN, f.confirmed) + 1
	f.mu.Unlock()
	if resume != nil { // it is committed, or it would not have been read
		f.confirm(resume)
	}
	for {
		var sent chan struct{}
		f.mu.Lock()
		if next <= len(f.txs) && (f.gate == 0 || next <= f.gate) {
			sent = make(chan struct{})
			close(sent)
		}
		f.mu.Unlock()
		// What is durable is looked at first, as often as can be.
		select {
		case r := <-out.Durable():
			f.confirm(r)
			continue
		default:
		}
		select {
		case r := <-out.Durable():
			f.confirm(r)
		case <-f.got:
		case <-sent:
			if f.before != nil {
				f.before(next)
			}
			if err := f.send(ctx, out, next); err != nil {
				return err
			}
			next++
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *feed) send(ctx context.Context, out pipeline.SourceOutlet, n int) error {
	f.mu.Lock()
	rows := f.txs[n-1]
	f.mu.Unlock()
	per := len(rows)
	if f.cut {
		per = max(1, len(rows)/3)
	}
	for from := 0; from < len(rows); from += per {
		b := change.Get()
		to := min(from+per, len(rows))
		for i, r := range rows[from:to] {
			if f.appendRow != nil {
				f.appendRow(b, r, n, from+i)
			} else {
				enginetest.AppendRow(b, f.table, r, n, from+i)
			}
		}
		if to == len(rows) {
			b.Resume = fmt.Appendf(nil, `{"lsn":%d}`, n)
		}
		if err := out.Send(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// Beside places a record behind transaction n and before the next one.
func (f *feed) Beside(r pipeline.Resume, n uint64) (change.Pos, bool) {
	var at feedToken
	if err := json.Unmarshal(r, &at); err != nil {
		panic(err)
	}
	return change.Pos{System: 1, Timeline: 1, LSN: uint64(at.LSN), Kind: change.PosCommit, Ordinal: 1<<62 + n}, true
}

// upTo lets it go so far.
func (f *feed) upTo(n int) {
	f.mu.Lock()
	f.gate = n
	f.mu.Unlock()
	select {
	case f.got <- struct{}{}:
	default:
	}
}

func (f *feed) confirm(r pipeline.Resume) {
	var at feedToken
	if err := json.Unmarshal(r, &at); err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if at.LSN > f.confirmed {
		f.confirmed = at.LSN
		if at.LSN == len(f.txs) {
			close(f.all)
		}
	}
}

func (f *feed) confirmedTo() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.confirmed
}

func inserts(txs, rows int) [][]enginetest.Row {
	var out [][]enginetest.Row
	for n := range txs {
		var tx []enginetest.Row
		for i := range rows {
			op := change.Update
			if n == 0 {
				op = change.Create
			}
			tx = append(tx, enginetest.Row{Op: op, ID: int64(i%7 + 1), Val: fmt.Sprintf("value %d/%d", n, i)})
		}
		out = append(out, tx)
	}
	return out
}

// running runs a source until the test ends, or stop is called, which gives
// what Run returned.
func running(b *enginetest.Bed, src pipeline.Source, limits pipeline.IngestLimits) (stop func() error, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(b.T.Context())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = Run(ctx, b.Env, pipeline.IngestSpec{Name: b.Source, Source: src, IngestLimits: limits})
	}()
	stop = func() error {
		cancel()
		<-done
		return err
	}
	b.T.Cleanup(func() {
		if err := stop(); err != nil {
			b.T.Error(err)
		}
	})
	return stop, done
}

// run runs a source to its end and gives what Run returned.
func runIngest(b *enginetest.Bed, ctx context.Context, src pipeline.Source, limits pipeline.IngestLimits) error {
	b.T.Helper()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, b.Env, pipeline.IngestSpec{Name: b.Source, Source: src, IngestLimits: limits})
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(2 * testkit.Patience): // longer than any wait inside a source
		b.T.Fatal("waited for the source's end in vain")
		return nil
	}
}

// checkOnce fails unless the raw topic holds each change of txs once and, per
// key, in order. Tombstones are counted with their delete.
func checkOnce(b *enginetest.Bed, txs [][]enginetest.Row) {
	b.T.Helper()
	type coord struct{ lsn, ordinal uint64 }
	seen := map[coord]int{}
	last := map[string]change.Pos{}
	for _, r := range b.Committed() {
		var pos change.Pos
		for _, h := range r.Headers {
			if h.Key == kafka.HeaderPos {
				var err error
				if pos, err = change.ParsePos(h.Value); err != nil {
					b.T.Fatal(err)
				}
			}
		}
		if r.Value == nil {
			continue
		}
		seen[coord{pos.LSN, pos.Ordinal}]++
		k := string(r.Key)
		if pos.Compare(last[k]) < 0 {
			b.T.Errorf("key %x: %v comes after %v", k, pos, last[k])
		}
		last[k] = pos
		if !bytes.Contains(r.Value, []byte(txs[pos.LSN-1][pos.Ordinal-1].Val)) {
			b.T.Errorf("change %v has another value", pos)
		}
	}
	missing, twice := 0, 0
	for n, tx := range txs {
		for i := range tx {
			switch c := seen[coord{uint64(n + 1), uint64(i + 1)}]; {
			case c == 0:
				missing++
			case c > 1:
				twice++
			}
		}
	}
	if missing > 0 || twice > 0 {
		b.T.Errorf("of the changes %d are missing and %d are there more than once", missing, twice)
	}
}

func (f *feed) check(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lost {
		t.Errorf("the source was told to forget what is not in Kafka: %s", l)
	}
}
