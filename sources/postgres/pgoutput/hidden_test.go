package pgoutput

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

// hiding is of a table with six columns, of which the first is left out, as is one
// behind the key.
func hiding() *Relation {
	r := small(5, "hiding", 25, 1700, 25, 25, 1184)
	cols := r.Table.Columns
	cols[0], cols[1], r.Cells[0], r.Cells[1] = cols[1], cols[0], r.Cells[1], r.Cells[0]
	r.Table.Columns = []change.Column{cols[1], HiddenColumn(cols[2]), HiddenColumn(cols[4]), HiddenColumn(cols[5])}
	r.Table.Key = []int{0}
	r.Table.Index()
	r.At = []int{-1, 0, 1, -1, 2, 3}
	salt := []byte("salt")
	r.Cells[0], r.Cells[3] = Nothing(), Nothing()
	r.Cells[2], r.Cells[4], r.Cells[5] = Hashed(r.Cells[2], salt), Masked(), Hashed(r.Cells[5], salt)
	r.Identity = []bool{false, true, false, false, false, false}
	return r
}

// Lost if this fails: what is hidden goes out; or its hash depends on how the server
// sends it, so that nothing joins.
func TestHiddenCells(t *testing.T) {
	numeric := be([]uint16{1, 0, 0, 0, 7}) // 7
	binary := []cell{{'b', []byte("hush")}, {'b', be(uint32(1))}, {'b', numeric}, {'b', []byte("hush")}, {'b', []byte("hush")}, {'b', be(uint64(0))}}
	texts := []cell{{'t', []byte("hush")}, {'t', []byte("1")}, {'t', []byte("7")}, {'t', []byte("hush")}, {'t', []byte("hush")}, {'t', []byte("2000-01-01 00:00:00+00")}}
	sparse := []cell{{'u', nil}, {'b', be(uint32(1))}, {'n', nil}, {'n', nil}, {'u', nil}, {'n', nil}}
	keyed := []cell{{'n', nil}, {'b', be(uint32(2))}, {'n', nil}, {'n', nil}, {'n', nil}, {'n', nil}}
	r := hiding()
	f, b := newFramer(r), change.Get()
	defer b.Release()
	if err := decode(f, b, rowMessage('I', 5, 0, nil, binary), rowMessage('I', 5, 0, nil, texts), rowMessage('U', 5, 'K', keyed, sparse), rowMessage('D', 5, 'O', binary, nil)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range b.Changes {
		c := &b.Changes[i]
		got = append(got, text(b, c.Old)+" > "+text(b, c.New))
		for _, row := range [][]change.Value{c.Old, c.New} {
			if row != nil && len(row) != 4 {
				t.Errorf("a row of %d columns", len(row))
			}
		}
	}
	first := strings.TrimPrefix(got[0], " > ")
	if got[1] != got[0] || strings.Contains(strings.Join(got, ""), "hush") || !strings.Contains(first, Mask) || !strings.HasPrefix(got[3], first) {
		t.Errorf("rows are\n%s", strings.Join(got, "\n"))
	}
	if old, row := b.Changes[2].Old, b.Changes[2].New; !old[1].IsUnchanged() || !row[1].IsNull() || !row[2].IsUnchanged() || !row[3].IsNull() {
		t.Errorf("what is null, and what was not sent, is %s", got[2])
	}
	if k := r.KeyCells(); !slices.Equal(k, []int{1}) || r.Name(0) != "" || r.Name(4) != r.Table.Columns[2].Name {
		t.Errorf("the key is of cells %v, names are %q, %q", k, r.Name(0), r.Name(4))
	}
	bad := slices.Clone(binary)
	bad[2].data = []byte("hush")
	b2 := change.Get()
	defer b2.Release()
	if err := decode(newFramer(hiding()), b2, rowMessage('I', 5, 0, nil, bad)); err == nil || strings.Contains(err.Error(), "hush") || !strings.Contains(err.Error(), r.Table.Columns[1].Name) {
		t.Errorf("a cell that is none: %v", err)
	}
}
