package expr

import (
	"testing"

	"github.com/tallywire/tallywire/change"
)

func BenchmarkValue(bm *testing.B) {
	want := change.Column{Name: "x", Type: "string", Kind: change.String, Nullable: true}
	for _, in := range []string{`row.id`, `row.id + 1`, `"a-" + string(row.id)`, `round(decimal(row.hours), 6, "half_even")`, `day(row.created_on)`, `row.rate > 100 ? "high" : "low"`, `moment(row.created_on, "Europe/Berlin")`, `row.status_id == 3 && row.id > 0`} {
		bm.Run(in, func(bm *testing.B) {
			p, bad := Compile(in, scope(), &want)
			if len(bad) > 0 {
				bm.Fatal(bad)
			}
			b := change.Get()
			defer b.Release()
			row := entry(b)
			bm.ReportAllocs()
			for bm.Loop() {
				if _, err := p.Value(&Row{Batch: b, Of: row}, &want); err != nil {
					bm.Fatal(err)
				}
			}
		})
	}
}
