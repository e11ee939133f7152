package parked

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/problem"
)

// Lost if this fails: after an upgrade nobody can read what was parked before
// it, and nobody can try it again.
func TestParkedRecordsOfEachForm(t *testing.T) {
	at := time.Date(2026, 11, 30, 0, 0, 0, 123456000, time.UTC)
	want := control.Parked{
		Stage: "canonical", Kind: control.KindTransform, Topic: "psa.public.time_entry", Partition: 2, Offset: 4711,
		TopicID: [16]byte{0x0d, 0x1c, 0x2b, 0x3a, 0x49, 0x58, 0x67, 0x76, 0x85, 0x94, 0xa3, 0xb2, 0xc1, 0xd0, 0xe0, 0xf1},
		Key:     "12", RecordKey: []byte{0, 0, 0, 0, 1, 0x18}, Value: []byte{0, 0, 0, 0, 2, 0x02, 0xff},
		Headers: []control.Header{{Key: "tw.pos", Value: make([]byte, 29)}}, Millis: at.UnixMilli(),
		Code: "TW-MAP-NULL", Reason: "field hours of ps.time_entry must not be null: hours of psa.public.time_entry is",
		Remedy: "Fill the column at the source.", Attempts: 3, FirstAt: at, LastAt: at.Add(time.Minute),
	}
	stored, err := os.ReadFile("testdata/parked-1.bin")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("canonical", stored)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(want, got):\n%s", diff)
	}
	if now := Append(nil, &want, 0); !bytes.Equal(now, stored) {
		t.Errorf("what is written has changed, and its form has not:\n%q\n%q", now, stored)
	}
	newer := []byte(`{"v":3,"topic_id":"0d1c2b3a495867768594a3b2c1d0e0f1"}`)
	if _, err := Parse("canonical", append(binary.BigEndian.AppendUint32(nil, uint32(len(newer))), newer...)); !problem.Has(err, ErrForm) {
		t.Errorf("a newer form: %v", err)
	}
}

// Lost if this fails: a row that is parked is another one when the schema of its
// key gets another id: a later version does not end it, and is overwritten.
func TestKeysWithoutSchemaIDs(t *testing.T) {
	of := func(recordKey string) string { return string(AppendKey(nil, "ps.project", []byte(recordKey))) }
	one := of("\x00\x00\x00\x00\x01\x02\x0a")
	if other := of("\x00\x00\x00\x12\x34\x02\x0a"); other != one {
		t.Errorf("of another schema id it is %q, not %q", other, one)
	}
	topic, in := splitKey(one)
	if again := string(AppendKey(nil, topic, in)); again != one {
		t.Errorf("of itself it is %q, not %q", again, one)
	}
	seen := map[string]string{}
	for _, k := range []string{"\x00\x00\x00\x00\x01\x02\x0a", "\x00\x00\x00\x00\x01\x02", "\x00\x00\x00\x00\x01", "\x02\x0a", "@1/12", "12", "", "\x00"} {
		if was, is := seen[of(k)]; is {
			t.Errorf("%q and %q are one", was, k)
		}
		seen[of(k)] = k
	}
	if got := identity([]byte("ps.project\x1f\x00\x00\x00\x00\x07\x02\x0a")); got != one {
		t.Errorf("what an older version wrote is %q", got)
	}
}
