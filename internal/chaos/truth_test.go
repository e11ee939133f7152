package chaos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A truth that is misread would let losses pass.
func TestParseTestDecoding(t *testing.T) {
	for _, c := range []struct {
		line string
		want Version
	}{
		{
			`table public.t: INSERT: id[bigint]:7 note[text]:'it''s "x": [y]:z' at[timestamp with time zone]:'2026-01-02 03:04:05+00' ok[boolean]:true gone[text]:null`,
			Version{Table: "public.t", Op: 'c', New: map[string]string{"id": "7", "note": `it's "x": [y]:z`, "at": "2026-01-02 03:04:05+00", "ok": "t"}},
		},
		{
			`table public.t: UPDATE: old-key: id[bigint]:7 note[text]:'a' new-tuple: id[bigint]:8 hours[numeric]:7.50 note[text]:'b new-tuple: c'`,
			Version{Table: "public.t", Op: 'u', Old: map[string]string{"id": "7", "note": "a"}, New: map[string]string{"id": "8", "hours": "7.50", "note": "b new-tuple: c"}},
		},
		{
			`table public.t: UPDATE: old-key: id[bigint]:7 note[text]:'long' new-tuple: id[bigint]:7 note[text]:unchanged-toast-datum`,
			Version{Table: "public.t", Op: 'u', Old: map[string]string{"id": "7", "note": "long"}, New: map[string]string{"id": "7", "note": "long"}},
		},
		{
			`table public.t: DELETE: id[bigint]:7 d[date]:'2026-01-02'`,
			Version{Table: "public.t", Op: 'd', Old: map[string]string{"id": "7", "d": "2026-01-02"}},
		},
	} {
		got, ok, err := ParseTestDecoding(c.line)
		if err != nil || !ok {
			t.Fatalf("%s: ok %v, err %v", c.line, ok, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s:\n%s", c.line, d)
		}
	}
	if _, ok, err := ParseTestDecoding("BEGIN 771"); ok || err != nil {
		t.Errorf("BEGIN: ok %v, err %v", ok, err)
	}
}
