package pipeline

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A5. An open transaction that nobody ends holds all readers up; without the
// age of the last stable offset that looks like a slow consumer.
func TestStableAge(t *testing.T) {
	p, now := &place{}, time.Now()
	for i, c := range []struct {
		stable, end int64
		want        time.Duration // one second passes per step
	}{
		{5, 5, 0},
		{5, 7, 0},
		{5, 9, time.Second},
		{8, 9, 0}, // it moves
		{8, 9, time.Second},
		{9, 9, 0},
		{9, 9, 0},
		{9, 10, 0},
		{9, 10, time.Second},
	} {
		now = now.Add(time.Second)
		if got := p.stableAge(c.stable, c.end, now); got != c.want {
			t.Errorf("step %d: %v, want %v", i, got, c.want)
		}
	}
}

// What holds the readers up must show in the metric, with its partition.
func TestStableAgeIsShown(t *testing.T) {
	b := newTransformBed(newBed(t, ""))
	b.many(30)
	transforming(b, b.env, b.spec(&copier{topic: b.output()}))
	b.drained()
	other, err := b.direct.Client(kgo.TransactionalID("other"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := other.ProduceSync(t.Context(), &kgo.Record{Topic: b.in.Topic, Partition: 1, Key: []byte("k")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	age := func() (largest float64, partitions int) {
		fams, err := b.env.Obs.Registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fams {
			if f.GetName() == "tallywire_last_stable_age_seconds" {
				for _, m := range f.GetMetric() {
					largest = max(largest, m.GetGauge().GetValue())
					partitions++
				}
			}
		}
		return largest, partitions
	}
	b.eventually("the age to grow", func() (bool, string) {
		s, n := age()
		return s > 1 && n == 3, fmt.Sprintf("%v s at most, of %d partitions", s, n)
	})
	if err := other.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	b.eventually("the age to end", func() (bool, string) {
		s, _ := age()
		return s == 0, fmt.Sprintf("%v s", s)
	})
}
