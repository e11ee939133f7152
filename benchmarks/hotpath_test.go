// Package benchmarks measures tallywire beside what one would write without it,
// and the whole flow from a source's backlog to the warehouse. This file is the
// hot path: pgoutput's octets → change.Batch → Confluent's Avro octets.
package benchmarks

import (
	"bytes"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// batchRows is the number of changes of one batch.
const batchRows = 1000

// column is one of the table that is measured: that of the measurements of
// other readers, rows of about 165 octets.
type column struct {
	name string
	oid  uint32
	mod  int32
}

func numericMod(precision, scale int32) int32 { return precision<<16 | scale + 4 }

var columns = []column{
	{"id", 20, -1},
	{"employee_id", 23, -1},
	{"project_id", 23, -1},
	{"task_id", 23, -1},
	{"work_date", 1082, -1},
	{"minutes", 23, -1},
	{"bill_rate", 1700, numericMod(12, 4)},
	{"cost_rate", 1700, numericMod(12, 4)},
	{"billable", 16, -1},
	{"status", 25, -1},
	{"note", 25, -1},
	{"created_at", 1184, -1},
	{"updated_at", 1184, -1},
}

const relationID = 16402

func newRelation() *pgoutput.Relation {
	var types pgoutput.Types
	r := &pgoutput.Relation{Table: &change.Table{
		Source: "psa", Database: "psa", Schema: "public", Name: "time_entry",
		Topic: "psa.public.time_entry", ID: relationID, OldFull: true, Key: []int{0},
	}}
	for i, c := range columns {
		types.Add(&pgoutput.Type{ID: c.oid, Class: 'b'})
		col, cell := types.Column(c.oid, c.mod)
		col.Name, col.Nullable = c.name, i > 0
		r.Table.Columns = append(r.Table.Columns, col)
		r.Cells = append(r.Cells, cell)
		r.Identity = append(r.Identity, i == 0)
	}
	r.Table.Index()
	return r
}

// The transaction that all rows belong to.
var (
	position   = change.Pos{System: 7_711_381_119_221_907_572, Timeline: 1, LSN: 0x16_B374D848, Kind: change.PosCommit}
	xid        = uint32(184_467)
	commitTime = time.Date(2026, 6, 30, 9, 15, 0, 123_456_000, time.UTC).UnixMicro()
)

// hot is our path, with the memory that it keeps between batches.
type hot struct {
	cur *pgoutput.Cursor
	enc *avro.Encoder
	b   *change.Batch
	out []byte
}

func newHot(tb testing.TB) *hot {
	srv := httptest.NewServer(srfake.New().Handler())
	tb.Cleanup(srv.Close)
	reg, err := avro.NewRegistry(srv.URL)
	if err != nil {
		tb.Fatal(err)
	}
	rel := newRelation()
	h := &hot{cur: pgoutput.NewCursor(), b: change.Get()}
	tb.Cleanup(h.b.Release)
	h.cur.Define(relationID, rel)
	if h.enc, err = avro.NewEncoder(tb.Context(), reg, rel.Table); err != nil {
		tb.Fatal(err)
	}
	return h
}

// run takes a batch of messages all the way: first all into a Batch, then the
// Batch into octets, as source and engine do.
func (h *hot) run(msgs [][]byte) error {
	h.b.Reset()
	h.cur.Pos, h.cur.XID, h.cur.Time = position, xid, commitTime
	for _, m := range msgs {
		if err := h.cur.Append(h.b, m); err != nil {
			return err
		}
	}
	h.out = h.out[:0]
	var err error
	for i := range h.b.Changes {
		c := &h.b.Changes[i]
		if h.out, err = h.enc.AppendKey(h.out, h.b, c); err != nil {
			return err
		}
		if h.out, err = h.enc.AppendValue(h.out, h.b, c); err != nil {
			return err
		}
	}
	return nil
}

var operations = []struct {
	name string
	op   byte
}{{"insert", 'I'}, {"update", 'U'}, {"delete", 'D'}}

// Lost if this fails: throughput goes into the garbage collector with every row.
func TestHotPathAllocatesNothing(t *testing.T) {
	h := newHot(t)
	for _, o := range operations {
		msgs := messages(o.op)
		if n := testing.AllocsPerRun(20, func() {
			if err := h.run(msgs); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations in %d changes, want 0", o.name, n, batchRows)
		}
	}
}

// Lost if this fails: the comparison is between different work.
func TestOracleGivesTheSameOctets(t *testing.T) {
	h := newHot(t)
	or := newOracle(t, h)
	for _, o := range operations {
		msgs := messages(o.op)
		if err := h.run(msgs); err != nil {
			t.Fatal(err)
		}
		if err := or.run(msgs); err != nil {
			t.Fatal(err)
		}
		// Apart from when they were written, the octets are the same.
		ours, theirs := or.split(t, h.out), or.split(t, or.out)
		if len(ours) != batchRows || len(theirs) != batchRows {
			t.Fatalf("%s: %d and %d records, want %d", o.name, len(ours), len(theirs), batchRows)
		}
		for i := range ours {
			if !bytes.Equal(ours[i], theirs[i]) {
				t.Fatalf("%s, change %d:\n%x, the oracle has\n%x", o.name, i, ours[i], theirs[i])
			}
		}
	}
}

// BenchmarkHotPath runs both paths in turns over the same octets; an iteration
// is one batch of each. It reports medians per change, and how many times the
// oracle's time is ours.
func BenchmarkHotPath(b *testing.B) {
	h := newHot(b)
	or := newOracle(b, h)
	for _, o := range operations {
		b.Run(o.name, func(b *testing.B) {
			msgs := messages(o.op)
			paths := [2]func([][]byte) error{h.run, or.run}
			var took [2][]time.Duration
			var allocs [2]float64
			for i, run := range paths {
				allocs[i] = testing.AllocsPerRun(1, func() {
					if err := run(msgs); err != nil {
						b.Fatal(err)
					}
				})
			}
			for b.Loop() {
				for i, run := range paths {
					began := time.Now()
					if err := run(msgs); err != nil {
						b.Fatal(err)
					}
					took[i] = append(took[i], time.Since(began))
				}
			}
			var ns [2]float64
			for i := range took {
				slices.Sort(took[i])
				ns[i] = float64(took[i][len(took[i])/2].Nanoseconds()) / batchRows
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ns[0], "ns/change")
			b.ReportMetric(allocs[0]/batchRows, "allocs/change")
			b.ReportMetric(ns[1], "oracle-ns/change")
			b.ReportMetric(allocs[1]/batchRows, "oracle-allocs/change")
			b.ReportMetric(ns[1]/ns[0], "times")
		})
	}
}
