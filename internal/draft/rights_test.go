package draft

import (
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// refused is a table that the login may not read.
func refused(t *Table) *Table {
	t.Grants = []string{"GRANT USAGE ON SCHEMA crm TO x", "GRANT SELECT ON " + t.Full() + " TO x"}
	t.Left = problem.Code{ID: "TW-PG-REFUSED"}.New("role x may not read %s", t.Full()).WithRemedy("%s", strings.Join(t.Grants, "; "))
	return t
}

// Lost if this fails: a login without rights ends with a file in which nothing is
// said to be left to do, and nobody knows what to grant.
func TestNothingIsDraftedForWantOfRights(t *testing.T) {
	customers := refused(table("crm", "customers", 0, "id", change.Int, "name", change.String))
	invoices := refused(table("crm", "invoices", 0, "id", change.Int, "number", change.String))
	log := refused(table("crm", "events", 0, "id", change.Int, "what", change.String))
	mine := table("crm", "flags", 0, "id", change.Int)

	d := guessed(t, customers, invoices, log, mine)
	want := []string{"GRANT USAGE ON SCHEMA crm TO x", "GRANT SELECT ON crm.customers TO x", "GRANT SELECT ON crm.invoices TO x"}
	if got := d.Grants(); !slices.Equal(got, want) {
		t.Errorf("to grant are %q, want %q: each once, and what looks like a contract", got, want)
	}
	why, remedy := d.Nothing()
	if !strings.Contains(why, "may not read 3 of the 4 tables") || !strings.Contains(remedy, strings.Join(want, "; ")) {
		t.Errorf("%s: %s", why, remedy)
	}
	text := strings.Join(strings.Fields(strings.ReplaceAll(string(d.YAML("env:SRC_DSN")), "#", "")), " ")
	for _, x := range []string{"No rule was drafted: the login may not read 3 of the 4 tables", strings.Join(want, "; ") + ";", "ps.customer: crm.customers looks like it, and is left out above"} {
		if !strings.Contains(text, x) {
			t.Errorf("the file does not say %q:\n%s", x, text)
		}
	}
	// Where nothing looks like a contract, all may be it.
	if got, want := guessed(t, log, mine).Grants(), []string{"GRANT USAGE ON SCHEMA crm TO x", "GRANT SELECT ON crm.events TO x"}; !slices.Equal(got, want) {
		t.Errorf("to grant are %q, want %q", got, want)
	}
	// With a rule it is that of others which look like one.
	people := table("crm", "employees", 0, "id", change.Int, "first_name", change.String, "surname", change.String)
	d = guessed(t, customers, log, people)
	if got, want := d.Grants(), []string{"GRANT USAGE ON SCHEMA crm TO x", "GRANT SELECT ON crm.customers TO x"}; !slices.Equal(got, want) {
		t.Errorf("to grant are %q, want %q", got, want)
	}
	if why, remedy := d.Nothing(); why != "" || remedy != "" {
		t.Errorf("there is a rule, and it is said: %s", why)
	}
	// Nothing is to be granted where all may be read.
	if why, remedy := guessed(t, mine).Nothing(); !strings.Contains(why, "no table looks like") || !strings.Contains(remedy, "contracts list") {
		t.Errorf("%s: %s", why, remedy)
	}
	customers.Grants, customers.Left = nil, problem.Code{}.New("no primary key")
	if why, _ := guessed(t, customers, mine).Nothing(); !strings.Contains(why, "left out") {
		t.Errorf("what looks like a contract and has no key: %s", why)
	}
}

// Lost if this fails: a table that was meant is passed over, and its owner does
// not know what it lacks.
func TestWhatComesNearest(t *testing.T) {
	hours := table("public", "erfassung", 0, "id", change.Int, "user_id", change.Int, "project_id", change.Int, "hours", change.Decimal)
	orders := table("public", "customer_invoice", 0, "id", change.Int, "what", change.String)
	things := table("public", "things", 0, "id", change.Int, "name", change.String)
	users := table("public", "users", 0, "id", change.Int, "first_name", change.String, "last_name", change.String, "active", change.Bool, "email", change.String)
	lines := table("public", "open_invoice", 0, "id", change.Int, "note", change.String)
	near := map[string]Missing{}
	d := guessed(t, hours, orders, things, users, lines)
	for _, m := range d.Missing {
		near[m.Topic] = m
	}
	for topic, c := range map[string]struct {
		table *Table
		why   string
	}{
		"ps.time_entry":   {hours, "called otherwise, and has no column for work_date"},
		"ps.invoice":      {orders, "called so, but it has none of the columns"},
		"ps.customer":     {nil, ""}, // the users are people
		"ps.cost_rate":    {nil, ""},
		"ps.invoice_line": {nil, ""},
	} {
		if m, missing := near[topic]; !missing || m.Near != c.table || !strings.Contains(m.Why, c.why) {
			t.Errorf("nearest to %s: %+v, want %+v", topic, m, c)
		}
	}
	text := strings.Join(strings.Fields(strings.ReplaceAll(string(d.YAML("env:SRC_DSN")), "#", "")), " ")
	if want := "ps.time_entry: no table looks like it; public.erfassung comes nearest, but it is called otherwise, and has no column for work_date."; !strings.Contains(text, want) {
		t.Errorf("there is no %q in\n%s", want, text)
	}
	if m := guessed(t, things, lines).Missing; len(m) == 0 || !slices.ContainsFunc(m, func(m Missing) bool {
		return m.Near == lines && strings.Contains(m.Why, "its name only ends so")
	}) {
		t.Errorf("nearest are %+v", m)
	}
}

// Lost if this fails: it is found out months later that invoices have no date, or
// that a table was captured for nothing.
func TestWhatIsNotFilledIsSaid(t *testing.T) {
	bills := table("public", "invoices", 0, "id", change.Int, "number", change.String, "total", change.Decimal)
	people := table("public", "employees", 0, "id", change.Int, "first_name", change.String, "surname", change.String, "email", change.String, "title", change.Bytes, "hired", change.Date, "gone", change.Date)
	audit := table("public", "audit", 0, "id", change.Int)
	flags := table("public", "flags", 0, "id", change.Int)
	flags.Bound = "a reason"
	d := guessed(t, bills, people, audit, flags)
	text := string(d.YAML("env:SRC_DSN"))
	for _, want := range []string{
		"\n          # Null, since no column looks like it: invoice_date.\n",
		"\n      # Captured, and in no rule: public.audit.\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %q in\n%s", want, text)
		}
	}
	if r := d.rule("ps.resource"); len(r.Empty) > 0 { // title has a line of its own
		t.Errorf("unfilled are %v", r.Empty)
	}
	if strings.Contains(string(guessed(t, bills).YAML("env:SRC_DSN")), "in no rule") {
		t.Error("there is no such table")
	}
}

// Lost if this fails: views, and tables that are not in the WAL, are missing in
// silence.
func TestOthersAreNamed(t *testing.T) {
	d, err := Make(&Database{Source: "src", Tables: []*Table{table("public", "users", 0, "id", change.Int)}, Others: []Other{{"public.Open Work", "it is a view", "Capture the tables that it is made of."}}})
	if err != nil {
		t.Fatal(err)
	}
	if text, want := string(d.YAML("env:SRC_DSN")), "      # Left out:\n      # - \"public.Open Work\" # it is a view\n      #     Capture the tables that it is made of.\n"; !strings.Contains(text, want) {
		t.Errorf("there is no %q in\n%s", want, text)
	}
}
