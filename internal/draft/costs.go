// Costs: which columns look as if they say what a person costs or earns. They are
// captured, since rates and margins are made of them; who reads the topic of their
// table reads them, and that is said.

package draft

import (
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// costWords are what such a column is called, in English, German, French, Spanish
// and Dutch, without accents; costParts are parts of such words.
var (
	costWords = []string{"cost", "costs", "wage", "wages", "payroll", "compensation", "bonus", "remuneration", "kosten", "lohn", "cout", "couts", "paie", "coste", "costes", "costo", "costos", "nomina", "kost", "loon"}
	costParts = []string{"salar", "salair", "gehalt", "verguetung", "kostensatz", "costrate", "costprice", "lohn", "sueldo", "kostprijs", "uurkost", "uurloon", "brutoloon", "nettoloon"}
)

// noCosts are names that only begin like one: where costs are booked.
var noCosts = []string{"cost_center", "cost_centre", "cost_centers", "cost_centres", "cost_unit", "cost_type", "cost_object", "cost_code"}

// IsCost reports whether a column is called like a cost or a salary, and of a type
// that can hold one.
func IsCost(col *change.Column) bool {
	switch col.Kind {
	case change.Bool, change.Date, change.Time, change.TimeTZ, change.Timestamp, change.TimestampTZ, change.Interval, change.UUID:
		return false
	}
	w := words(accents.Replace(col.Name))
	name := strings.Join(w, "_")
	if len(w) == 0 || slices.Contains([]string{"id", "type", "code", "name"}, w[len(w)-1]) || slices.ContainsFunc(noCosts, func(n string) bool { return strings.Contains(name, n) }) {
		return false
	}
	return slices.ContainsFunc(w, func(x string) bool {
		return slices.Contains(costWords, x) || slices.ContainsFunc(costParts, func(p string) bool { return strings.Contains(x, p) })
	})
}

// Costs are the columns of a table that look so, or of which a restricted field is
// made, and are captured.
func (d *Draft) Costs(t *Table) []string {
	made := map[string]bool{}
	for _, r := range d.Rules {
		for _, f := range r.Fields {
			if def, _ := r.Contract.Field(f.Name); r.Table == t && def.Sensitivity == avro.Restricted {
				made[f.column] = true
			}
		}
	}
	var out []string
	for i := range t.Columns {
		if col := &t.Columns[i]; t.Taken() && !t.Hidden[col.Name] && (made[col.Name] || IsCost(col)) {
			out = append(out, col.Name)
		}
	}
	return out
}
