package parked

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/problem"
)

// plain is what of a record is kept.
type plain struct {
	Partition  int32
	Millis     int64
	Key, Value string
	Null       bool
	Headers    []string
}

func plainOf(r *kgo.Record) plain {
	p := plain{Partition: r.Partition, Millis: r.Timestamp.UnixMilli(), Key: string(r.Key), Value: string(r.Value), Null: r.Value == nil}
	for _, h := range r.Headers {
		p.Headers = append(p.Headers, h.Key+"="+string(h.Value))
	}
	return p
}

// Lost if this fails: a large value that is nowhere but in the parked topic. Keys
// are parked, held on to, replaced and released at random; now and then all is
// read anew, as after a restart.
func TestRecordsInParts(t *testing.T) {
	b := newBed(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	b.set.KeepHeads = true
	b.load()
	type model struct {
		p    *control.Parked
		recs []*kgo.Record
	}
	models := map[string]*model{}
	topic := b.set.Topic.Name
	write := func(key []byte, p *control.Parked, parts []*kgo.Record) {
		t.Helper()
		head := &kgo.Record{Topic: topic, Key: key}
		if p != nil {
			head.Value = Append(nil, p, 0)
		}
		if err := b.cl.ProduceSync(t.Context(), append(slices.Clone(parts), head)...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		b.set.Committed(p, head, parts...)
	}
	for step := range 300 {
		id := fmt.Sprint(rnd.IntN(5))
		recordKey := append([]byte{0, 0, 0, 0, byte(rnd.IntN(3))}, id...) // the key's schema has another id now and then
		key := string(AppendKey(nil, "psa.public.item", recordKey))
		m, in := models[key], b.set.KeyOf([]byte(key))
		if m == nil && rnd.IntN(2) == 0 { // as an older version parks
			in = append([]byte("psa.public.item\x1f"), recordKey...)
		}
		switch n := rnd.IntN(10); {
		case n == 0 && m != nil:
			write(in, nil, Unhold(topic, in, m.p))
			delete(models, key)
		default:
			p := &control.Parked{Stage: "erp", Topic: "psa.public.item", Offset: -1, Key: id, RecordKey: recordKey, Omitted: true, Code: "TW-X", FirstAt: time.Unix(int64(step), 0).UTC()}
			if m == nil {
				m = &model{}
				models[key] = m
			} else {
				p.Held = m.p.Held
			}
			unchanged := []string{"", "a", "b", "a,b", "b,c"}[rnd.IntN(5)]
			r := &kgo.Record{Topic: "psa.public.item", Partition: int32(rnd.IntN(3)), Timestamp: time.UnixMilli(int64(step)), Key: recordKey, Value: bytes.Repeat([]byte{byte(step)}, rnd.IntN(500))}
			if unchanged != "" {
				r.Headers = []kgo.RecordHeader{{Key: "tw.unchanged", Value: []byte(unchanged)}, {Key: "none"}}
			}
			if rnd.IntN(20) == 0 {
				r.Value = nil
			}
			// What it tells everything of is dropped.
			for len(m.recs) > 0 {
				last := split(m.p.Held[len(m.p.Held)-1].Unchanged)
				if slices.ContainsFunc(split(unchanged), func(c string) bool { return !slices.Contains(last, c) }) {
					break
				}
				m.recs, m.p.Held = m.recs[:len(m.recs)-1], m.p.Held[:len(m.p.Held)-1]
			}
			m.recs = append(m.recs, r)
			parts := Hold(topic, in, p, r, unchanged, 1+rnd.IntN(100))
			m.p = p
			write(in, p, parts)
		}
		switch rnd.IntN(8) {
		case 0:
			b.load()
		case 1:
			b.follow()
		}
		if step%10 > 0 {
			continue
		}
		var keys []string
		for k := range models {
			keys = append(keys, k)
		}
		got, err := b.set.Records(t.Context(), b.cl, keys)
		if err != nil {
			t.Fatal(err)
		}
		for k, m := range models {
			var want, have []plain
			for _, r := range m.recs {
				want = append(want, plainOf(r))
			}
			for _, r := range got[k] {
				have = append(have, plainOf(r))
			}
			if !reflect.DeepEqual(want, have) {
				t.Fatalf("step %d, key %q: %d records %+v, want %d %+v", step, k, len(have), have, len(want), want)
			}
		}
		if b.set.Len() != len(models) {
			t.Fatalf("%d are parked, want %d", b.set.Len(), len(models))
		}
	}
}

// What does not hold together is told, not sent.
func TestRecordsThatDoNotHoldTogether(t *testing.T) {
	r := &kgo.Record{Key: []byte("k"), Value: []byte("value"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("v")}}}
	whole := appendRecord(appendRecord(nil, r), r)
	for n := 1; n < len(whole); n++ {
		if n == len(whole)/2 {
			continue
		}
		if rs, err := parseRecords("t", whole[:n]); !problem.Has(err, ErrForm) {
			t.Fatalf("%d of %d octets: %d records, %v", n, len(whole), len(rs), err)
		}
	}
	if rs, err := parseRecords("t", whole); err != nil || len(rs) != 2 {
		t.Fatal(len(rs), err)
	}
}
