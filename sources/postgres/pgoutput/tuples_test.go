package pgoutput

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/tallywire/tallywire/change"
)

func tuple(dst []byte, kind byte, cells ...Cell) []byte {
	row := AppendInsert(nil, 0, cells)
	return append(append(dst, kind), row[6:]...)
}

// What a row message says of which keys is read as it is sent, and what is cut off or
// lies is an error.
func TestTuples(t *testing.T) {
	a := []Cell{{'b', []byte{0, 0, 0, 1}}, {'n', nil}, {'u', nil}}
	b := []Cell{{'b', []byte{0, 0, 0, 2}}, {'t', []byte("x")}, {'t', nil}}
	head := binary.BigEndian.AppendUint32([]byte{'U'}, 7)
	msg := tuple(tuple(slices.Clone(head), 'K', a...), 'N', b...)
	old, row, keyOnly, err := Tuples(msg, 3)
	if err != nil || !keyOnly || len(old) != 3 || len(row) != 3 {
		t.Fatalf("%v %v %v %v", old, row, keyOnly, err)
	}
	if string(AppendKey(nil, old, []int{0})) == string(AppendKey(nil, row, []int{0})) || string(AppendKey(nil, row, []int{1, 0})) != "t\x00\x00\x00\x01xb\x00\x00\x00\x04\x00\x00\x00\x02" {
		t.Errorf("keys %q and %q", AppendKey(nil, old, []int{0}), AppendKey(nil, row, []int{1, 0}))
	}
	if !slices.Equal(AppendInsert(nil, 7, row), tuple(append([]byte{'I'}, head[1:]...), 'N', row...)) {
		t.Error("a row is not the message that it was read from")
	}
	for n := range msg {
		if _, row, _, err := Tuples(msg[:n], 3); err == nil && row != nil {
			t.Errorf("%d of %d octets are a row", n, len(msg))
		}
	}
	for _, bad := range [][]byte{tuple(slices.Clone(head), 'X', a...), tuple(slices.Clone(head), 'N', a[:2]...), head} {
		if _, _, _, err := Tuples(bad, 3); err == nil {
			t.Errorf("%q is a row message", bad)
		}
	}
}

// A row that was read is one, whatever it looks like: no insert of the application's.
func TestAppendRead(t *testing.T) {
	r := small(7, "a", 25)
	fr := NewFramer(func(_ change.Pos, err error) error { return err })
	fr.Define(7, r)
	fr.Begin(nil, change.Pos{Kind: change.PosSnapshot}, 0, 0)
	b := change.Get()
	defer b.Release()
	if err := fr.AppendRead(b, AppendInsert(nil, 7, []Cell{{'b', []byte{0, 0, 0, 1}}, {'t', []byte("x")}})); err != nil {
		t.Fatal(err)
	}
	if err := fr.AppendRead(b, AppendInsert(nil, 8, nil)); err == nil {
		t.Error("a row of a table that nobody described")
	}
	fr.Finish(b)
	if err := b.Decode(); err != nil || b.Len() != 1 {
		t.Fatalf("%d changes (%v)", b.Len(), err)
	}
	if c := &b.Changes[0]; c.Op != change.Read || string(b.AppendText(nil, c.New[1])) != "x" || c.Pos.Ordinal != 1 {
		t.Errorf("%+v", c)
	}
}
