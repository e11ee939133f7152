package warehouse

import (
	"fmt"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
)

// BenchmarkTimeEntries loads 300,000 time entries in batches of 5,000 into an
// empty table: the first fill of a warehouse.
func BenchmarkTimeEntries(b *testing.B) {
	const total, size = 300_000, 5000
	for _, kind := range []string{"insert", "update"} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dsn, _ := fresh(b)
				s, f := open(b, dsn, "ps.time_entry"), newFeed("ps.time_entry", 1)
				claim(b, s, "a", f)
				round := func() {
					for n := 0; n < total; n += size {
						write(b, s, "a", timeEntries(f, n, size))
					}
				}
				if kind == "update" {
					round()
				}
				b.StartTimer()
				began := time.Now()
				round()
				b.ReportMetric(total/time.Since(began).Seconds(), "rows/s")
			}
		})
	}
}

func timeEntries(f *feed, from, n int) *change.Batch {
	b := change.Get()
	t := f.table
	start := f.next
	cols := map[string]int{}
	for i, c := range t.Columns {
		cols[c.Name] = i
	}
	for i := from; i < from+n; i++ {
		row := b.Row(len(t.Columns))
		set := func(name string, v change.Value) { row[cols[name]] = v }
		set("time_entry_id", b.SpanString(change.String, fmt.Sprint(i)))
		set("resource_id", b.SpanString(change.String, fmt.Sprint(i%250)))
		set("project_id", b.SpanString(change.String, fmt.Sprint(i%150)))
		set("task_number", b.SpanString(change.String, "100"))
		set("work_date", change.DateValue(int64(20000+i/800)))
		set("hours", change.DecimalValue(int64(25*(i%30)), 2))
		set("billable", change.BoolValue(i%3 > 0))
		set("status", b.SpanString(change.String, "approved"))
		set("note", b.SpanString(change.String, "Workshop with the client"))
		set("bill_rate", change.DecimalValue(1385000, 4))
		set("created_at", change.TimestampTZValue(1_780_000_000_000_000+int64(i)))
		set("updated_at", change.TimestampTZValue(1_780_000_000_000_000+f.next))
		c := b.Append(t, change.Update)
		c.New = row
		c.Coord = change.Coord{Topic: f.topic, Offset: f.next}
		f.next++
	}
	b.Ranges = append(b.Ranges, change.Range{Topic: f.topic, From: start, To: f.next})
	return b
}
