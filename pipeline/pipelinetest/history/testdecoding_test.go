package history

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A truth that is misread would let losses pass.
func TestParseTestDecoding(t *testing.T) {
	for _, c := range []struct {
		line string
		want []Change
	}{
		{
			`table public.t: INSERT: id[bigint]:7 note[text]:'it''s "x": [y]:z' at[timestamp with time zone]:'2026-01-02 03:04:05+00' ok[boolean]:true gone[text]:null`,
			[]Change{{Table: "public.t", Op: 'c', New: Row{"id": "7", "note": `it's "x": [y]:z`, "at": "2026-01-02 03:04:05+00", "ok": "t", "gone": Null}}},
		},
		{
			`table public.t: UPDATE: old-key: id[bigint]:7 note[text]:'a' new-tuple: id[bigint]:8 hours[numeric]:7.50 note[text]:'b new-tuple: c'`,
			[]Change{{Table: "public.t", Op: 'u', Old: Row{"id": "7", "note": "a"}, New: Row{"id": "8", "hours": "7.50", "note": "b new-tuple: c"}}},
		},
		{
			`table public.t: UPDATE: id[bigint]:7 note[text]:unchanged-toast-datum said[text]:'unchanged-toast-datum'`,
			[]Change{{Table: "public.t", Op: 'u', New: Row{"id": "7", "said": "unchanged-toast-datum"}}},
		},
		{
			`table public.t: DELETE: id[bigint]:7 d[date]:'2026-01-02' many[text[]]:'{"a b",''}`,
			nil, // a quote that is not closed
		},
		{
			`table public.t: DELETE: id[bigint]:7 many[text[]]:'{"a b",NULL}'`,
			[]Change{{Table: "public.t", Op: 'd', Old: Row{"id": "7", "many": `{"a b",NULL}`}}},
		},
		{
			`table public.a, public.b: TRUNCATE: restart_seqs cascade`,
			[]Change{{Table: "public.a", Op: 't'}, {Table: "public.b", Op: 't'}},
		},
	} {
		got, err := ParseTestDecoding(c.line)
		if (err != nil) != (c.want == nil) {
			t.Fatalf("%s: %v", c.line, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s:\n%s", c.line, d)
		}
	}
	if cs, err := ParseTestDecoding("BEGIN 771"); len(cs) > 0 || err != nil {
		t.Errorf("BEGIN: %v, %v", cs, err)
	}
}
