package join_test

import (
	"context"
	"strconv"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

// sink takes batches and gives them back.
type sink struct{ n int }

func (s *sink) Send(_ context.Context, b *change.Batch) error {
	s.n += b.Len()
	b.Release()
	return nil
}
func (s *sink) Reject(*change.Change, error) {}

// One time entry after the other, in batches as the engine makes them: 250
// people, 150 projects, 40 customers.
func BenchmarkLeft(b *testing.B) {
	change.PoisonOnRelease(false)
	b.Cleanup(func() { change.PoisonOnRelease(true) })
	b.Run("embedded", func(b *testing.B) { benchmarkLeft(b, miniRedis(b)) })
	b.Run("redis-server", func(b *testing.B) { benchmarkLeft(b, testkit.NewRedis(b).Addr) })
}

func benchmarkLeft(b *testing.B, addr string) {
	w := begin(b, addr)
	for c := range 40 {
		w.customer(strconv.Itoa(c), "customer "+strconv.Itoa(c))
	}
	for p := range 150 {
		w.project(strconv.Itoa(p), strconv.Itoa(p%40), "EUR")
	}
	for r := range 250 {
		w.rate(strconv.Itoa(r), 2*r, 0, 20000, 600000, "EUR")
		w.rate(strconv.Itoa(r), 2*r+1, 20000, -1, 650000, "EUR")
	}
	w.apply(b, w.right)
	const batch = 4096
	// Entries come by person and week, so to say: any person, few projects each.
	l := w.logs["ps.time_entry"]
	for i := range 40 * batch {
		w.entry(i, strconv.Itoa(i*7%250), strconv.Itoa(i*11%150), 19990+int64(i%20), 750)
	}
	var at [partitions]int64
	out := &sink{}
	b.ResetTimer()
	for i := range b.N {
		p := int32(i % partitions)
		if at[p]+batch > int64(len(l.parts[p])) {
			at[p] = 0
		}
		in := change.Get()
		b.StopTimer()
		for o := at[p]; o < at[p]+batch; o++ {
			l.put(in, p, o, w.texts)
			in.Changes[len(in.Changes)-1].Coord.Offset = int64(i) * batch * 2 // never what was there
		}
		in.Ranges = append(in.Ranges, change.Range{Topic: l.topic, Partition: p, From: int64(i) * batch * 2, To: int64(i)*batch*2 + batch})
		at[p] += batch
		b.StartTimer()
		var st pipeline.Stage = w.left.stage
		if err := st.Apply(b.Context(), in, out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(out.n)/b.Elapsed().Seconds(), "records/s")
}
