package draft

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

// Lost if this fails: salaries lie in a topic that everybody reads, and nobody was
// told; or so much is said that nobody reads it.
func TestCosts(t *testing.T) {
	for _, name := range []string{
		"cost", "cost_rate", "hourly_cost", "unitCost", "salary", "annual_salary", "wage", "kosten", "Kostensatz", "gehalt", "jahresgehalt", "stundenlohn", "vergütung",
		"salaire", "salaire_brut", "coût_horaire", "rémunération", "salario", "sueldo", "coste_hora", "salaris", "uurloon", "kostprijs",
	} {
		if !IsCost(&change.Column{Name: name, Kind: change.Decimal}) {
			t.Errorf("%s is not taken for a cost", name)
		}
	}
	for _, name := range []string{"id", "cost_center", "cost_centre_id", "costume", "accosted", "kostenstelle", "kostentraeger", "salary_id", "amount", "rate", "price"} {
		if IsCost(&change.Column{Name: name, Kind: change.Decimal}) {
			t.Errorf("%s is taken for a cost", name)
		}
	}
	if IsCost(&change.Column{Name: "salary_changed", Kind: change.Date}) {
		t.Error("a date is no cost")
	}
}

// Lost if this fails: what a column holds of a person is said of one that is not
// captured, and not of the one that is.
func TestCostsAreSaid(t *testing.T) {
	people := table("public", "employees", 0, "id", change.Int, "first_name", change.String, "surname", change.String, "salary", change.Decimal, "salary_hash", change.String)
	people.Secrets, people.Hidden["salary_hash"] = []string{"salary_hash"}, true
	rates := table("public", "employee_rates", 0, "id", change.Int, "employee_id", change.Int, "valid_from", change.Date, "rate", change.Decimal)
	out := table("public", "payslips", 0, "id", change.Int, "salary", change.Decimal)
	out.Bound = "a reason"
	d := guessed(t, people, rates, out)
	for _, c := range []struct {
		of   *Table
		want []string
	}{{people, []string{"salary"}}, {rates, []string{"rate"}}, {out, nil}} { // a cost rate is one by its contract
		if got := d.Costs(c.of); !slices.Equal(got, c.want) {
			t.Errorf("costs of %s are %v, want %v", c.of.Name, got, c.want)
		}
	}
	text := string(d.YAML("env:SRC_DSN"))
	_, after, _ := strings.Cut(text, "    without:\n")
	for _, want := range []string{"    # These look like costs or salaries", "\n    # - public.employees.salary\n    # - public.employee_rates.rate\n"} {
		if !strings.Contains(after, want) {
			t.Errorf("there is no %q after what is left out:\n%s", want, text)
		}
	}
	if strings.Contains(string(guessed(t, out).YAML("env:SRC_DSN")), "salaries") {
		t.Error("of a table that stays out it is said who may read it")
	}
}

func guessed(t *testing.T, tables ...*Table) *Draft {
	t.Helper()
	d, err := Make(&Database{Source: "src", Tables: tables})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
