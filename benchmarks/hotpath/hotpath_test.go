package main

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func paths(t *testing.T) (*hot, *oracle) {
	t.Helper()
	h, err := newHot(t.Context())
	t.Cleanup(h.close)
	if err != nil {
		t.Fatal(err)
	}
	o, err := newOracle(h)
	if err != nil {
		t.Fatal(err)
	}
	return h, o
}

// Lost if this fails: throughput goes into the garbage collector with every row.
func TestHotPathAllocatesNothing(t *testing.T) {
	h, _ := paths(t)
	for _, o := range operations {
		msgs := messages(o.op)
		if n := testing.AllocsPerRun(20, func() {
			if err := h.whole(msgs); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations in %d changes, want 0", o.name, n, batchRows)
		}
	}
}

// Lost if this fails: the comparison is between different work.
func TestOracleMakesTheSameRecords(t *testing.T) {
	h, or := paths(t)
	for _, o := range operations {
		msgs := messages(o.op)
		if err := h.whole(msgs); err != nil {
			t.Fatal(err)
		}
		if err := or.whole(msgs); err != nil {
			t.Fatal(err)
		}
		if len(h.recs.Records) != len(or.recs) || len(or.recs) < batchRows {
			t.Fatalf("%s: %d records, the oracle has %d", o.name, len(h.recs.Records), len(or.recs))
		}
		for i := range or.recs {
			a, b := &h.recs.Records[i], &or.recs[i]
			if a.Topic != b.Topic || a.Partition != b.Partition || !a.Timestamp.Equal(b.Timestamp) || !bytes.Equal(a.Key, b.Key) ||
				len(a.Headers) != 1 || a.Headers[0].Key != b.Headers[0].Key || !bytes.Equal(a.Headers[0].Value, b.Headers[0].Value) {
				t.Fatalf("%s, record %d: %+v, the oracle has %+v", o.name, i, a, b)
			}
			if (a.Value == nil) != (b.Value == nil) || !bytes.Equal(undated(t, or, a.Value), undated(t, or, b.Value)) {
				t.Fatalf("%s, record %d:\n%x, the oracle has\n%x", o.name, i, a.Value, b.Value)
			}
		}
	}
}

// undated is a value without its end, which says when it was written.
func undated(t *testing.T, o *oracle, value []byte) []byte {
	t.Helper()
	if value == nil {
		return nil
	}
	n, rest, err := o.value.NativeFromBinary(value[5:])
	if err != nil || len(rest) != 0 {
		t.Fatalf("%d octets after the value: %v", len(rest), err)
	}
	size := 0
	for _, f := range []string{"ts_ms", "ts_us", "ts_ns"} {
		branch, ok := n.(map[string]any)[f].(map[string]any)
		if !ok {
			t.Fatalf("%s is not there", f)
		}
		n, ok := branch["long"].(int64)
		if !ok || n <= 0 {
			t.Fatalf("%s is %v", f, branch)
		}
		size += 1 + len(binary.AppendVarint(nil, n))
	}
	return value[:len(value)-size]
}
