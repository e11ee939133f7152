package draft

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/tallywire/tallywire/change"
)

// Lost if this fails: what lets others in goes to Kafka, and from there to
// everyone who may read a topic.
func TestSecrets(t *testing.T) {
	for _, name := range []string{
		"password", "hashed_password", "passwd", "user_pwd", "PasswordHash", "salt", "password_salt", "token", "accesstoken", "refresh_tokens",
		"api_key", "apiKey", "API-Key", "api_key_id", "private_key", "client_secret", "otp", "otp_code", "twofa_totp_key", "recovery_codes", "pin", "ssh_key", "card_number", "cvv",
		"Passwort", "kennwort", "mot_de_passe", "contraseña", "wachtwoord",
	} {
		if !IsSecret(&change.Column{Name: name, Kind: change.String}) {
			t.Errorf("%s is not taken for a secret", name)
		}
	}
	for _, name := range []string{"name", "login", "pinned", "opinion", "key", "hashtag", "description", "shipping", "saltwater", "option", "project_key", "passenger"} {
		if IsSecret(&change.Column{Name: name, Kind: change.String}) {
			t.Errorf("%s is taken for a secret", name)
		}
	}
	for _, kind := range []change.Kind{change.Bool, change.TimestampTZ, change.Date} {
		if IsSecret(&change.Column{Name: "password_changed", Kind: kind}) {
			t.Errorf("of type %s it cannot be a secret", kind)
		}
	}
}

// Lost if this fails: a table of tokens, of who is logged in, or of settings goes
// to Kafka since its columns are called harmlessly.
func TestTablesOfSecrets(t *testing.T) {
	for _, c := range []struct {
		table *Table
		why   string // "": it is captured
	}{
		{table("public", "tokens", 0, "id", change.Int), "called like a table of secrets"},
		{table("public", "api_keys", 0, "id", change.Int), "called like a table of secrets"},
		{table("public", "user_credentials", 0, "id", change.Int), "called like a table of secrets"},
		{table("public", "users", 0, "id", change.Int, "name", change.String, "value", change.String), ""},
		{table("public", "projects", 0, "id", change.Int, "data", change.Bytes), ""},
		{table("public", "sessions", 0, "id", change.Int, "whatever", change.Bytes), "who is logged in"},
		{table("public", "sessions", 0, "id", change.String, "user_id", change.Int, "payload", change.String), "who is logged in"},
		{table("public", "session", 0, "sid", change.String, "sess", change.JSON, "expire", change.Timestamp), "who is logged in"},
		{table("public", "django_session", 0, "session_key", change.String, "session_data", change.String), "who is logged in"},
		{table("public", "ir_session", 0, "id", change.Int, "key", change.String), "who is logged in"},
		{table("public", "spring_session_attributes", 0, "id", change.Int, "attribute_bytes", change.Bytes), "who is logged in"},
		{table("public", "training_sessions", 0, "id", change.Int, "title", change.String, "hours", change.Decimal), ""},
		{table("public", "sessions", 0, "id", change.Int, "project_id", change.Int, "started_at", change.Timestamp, "note", change.String), ""},
		{table("public", "settings", 0, "id", change.Int, "name", change.String, "value", change.String), "each row is a setting"},
		{table("public", "ir_config_parameter", 0, "id", change.Int, "key", change.String, "value", change.String), "each row is a setting"},
		{table("public", "wp_options", 0, "option_id", change.Int, "option_name", change.String, "option_value", change.String), "each row is a setting"},
		{table("public", "system_properties", 0, "property", change.String, "val", change.JSON), "each row is a setting"},
		{table("public", "settings", 0, "id", change.Int, "smtp_host", change.String, "value", change.String), ""},
		{table("public", "rate_options", 0, "id", change.Int, "name", change.String, "value", change.Decimal), ""},
		{table("public", "user_preferences", 0, "id", change.Int, "user_id", change.Int, "others", change.String), ""},
	} {
		why := HoldsSecrets(c.table)
		if (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%s %v: %q, want %q", c.table.Name, c.table.Columns, why, c.why)
		}
	}
}

// Lost if this fails: the file leaves a table out, and nobody knows why or how it
// is taken in.
func TestSettingsAreLeftOut(t *testing.T) {
	settings := table("public", "settings", 0, "id", change.Int, "name", change.String, "value", change.String)
	settings.Bound = HoldsSecrets(settings)
	d, err := Make(&Database{Source: "src", Tables: []*Table{settings}})
	if err != nil {
		t.Fatal(err)
	}
	text := string(d.YAML("env:SRC_DSN"))
	lines := strings.Join(strings.Fields(strings.ReplaceAll(text, "#", "")), " ")
	if !strings.Contains(text, "\n      # - public.settings # ") || !strings.Contains(lines, "each row is a setting, and any may be a password. To take it in") {
		t.Errorf("it is not left out with its reason:\n%s", text)
	}
}

// Lost if this fails: what is the customer is the firm's own legal entity too, or
// a code is the number and something else.
func TestOneColumnForOneField(t *testing.T) {
	company := table("public", "companies", 0, "id", change.Int, "name", change.String, "company_code", change.String)
	job := table("public", "projects", 0, "id", change.Int, "name", change.String, "company_id", change.Int, "payer_id", change.Int)
	job.References["company_id"] = "public.companies"
	rules := drafted(t, company, job)
	if f := field(t, rules["ps.project"], "customer_id"); f.Text != "src-{company_id}" {
		t.Errorf("the customer is %q", f.Text)
	}
	if f := field(t, rules["ps.project"], "legal_entity"); !f.Blank() || !strings.Contains(f.Note, `"=CODE"`) {
		t.Errorf("the legal entity is %+v", f)
	}
	if f := field(t, rules["ps.customer"], "number"); f.Text != "company_code" {
		t.Errorf("the number is %q", f.Text)
	}
	if f := field(t, rules["ps.customer"], "legal_entity"); f.Text == "company_code" {
		t.Errorf("the legal entity is %q", f.Text)
	}
	// Which of two leads to the customer is open; neither is the legal entity.
	job.References["payer_id"] = "public.companies"
	if f := field(t, drafted(t, company, job)["ps.project"], "legal_entity"); !f.Blank() || !strings.Contains(f.Note, "company_id leads to public.companies, which is ps.customer") {
		t.Errorf("the legal entity is %+v", f)
	}
	// A table of companies that are no customers may be that of the entities.
	job.References = map[string]string{"company_id": "public.res_company"}
	if f := field(t, drafted(t, job)["ps.project"], "legal_entity"); f.Text != "company_id" {
		t.Errorf("the legal entity is %+v", f)
	}
}

// Lost if this fails: groups are captured as people, and nobody thought of it.
func TestPeopleAmongOthers(t *testing.T) {
	people := table("public", "users", 0, "id", change.Int, "first_name", change.String, "last_name", change.String, "type", change.String)
	hint := `        # where: 'row.type == "…"' # if type (about 4 values) tells people from others`
	text := func() string {
		d, err := Make(&Database{Source: "src", Tables: []*Table{people}})
		if err != nil {
			t.Fatal(err)
		}
		return string(d.YAML("env:SRC_DSN"))
	}
	for n, want := range map[int64]bool{0: false, 1: false, 4: true, 500: false} {
		if people.Distinct["type"] = n; strings.Contains(text(), "tells people from others") != want {
			t.Errorf("with %d values in type, want %v:\n%s", n, want, text())
		}
	}
	people.Distinct["type"] = 4
	if !strings.Contains(text(), hint) {
		t.Errorf("there is no %s in\n%s", hint, text())
	}
	people.Columns[3].Kind = change.Int
	if strings.Contains(text(), hint) {
		t.Error("a number is compared with a text")
	}
}

// Lost if this fails: the same table under another convention of names is not
// recognised.
func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"time_entries": "time_entry", "TimeEntries": "time_entry", "TIME_ENTRY": "time_entry", "Time Entries": "time_entry", "timesheet-lines": "timesheet_line",
		"people": "person", "status": "status", "addresses": "address", "boxes": "box", "staff": "staff", "": "",
	} {
		if got := singular(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

// Lost if this fails: a name with a quote, a colon or a line break makes a file
// that is not read, or says something else.
func TestQuote(t *testing.T) {
	for _, s := range []string{"public.users", "null", "On", "12", "a: b", "a # b", `it's "quoted"`, `back\slash`, "two\nlines", "row.x == null", "-", "!public.x", "ä", "{a}/{b}", "Ünïcode tablé", ""} {
		var got map[string]any
		if err := yaml.Unmarshal([]byte("x: "+quote(s)+" # "+comment(s)+"\ny: 1\n"), &got); err != nil || got["x"] != s || len(got) != 2 {
			t.Errorf("%q is written as %s and read as %v, %v", s, quote(s), got, err)
		}
	}
}

// table makes a table of columns "name kind".
func table(schema, name string, key int, columns ...any) *Table {
	t := &Table{Table: &change.Table{Schema: schema, Name: name, Topic: "src." + schema + "." + name, Key: []int{key}}, Hidden: map[string]bool{}, References: map[string]string{}, Distinct: map[string]int64{}}
	for i := 0; i < len(columns); i += 2 {
		k := columns[i+1].(change.Kind)
		t.Columns = append(t.Columns, change.Column{Name: columns[i].(string), Kind: k, Type: k.String(), Scale: -1, Precision: -1})
	}
	t.Index()
	return t
}

func drafted(t *testing.T, tables ...*Table) map[string]*Rule {
	t.Helper()
	d, err := Make(&Database{Source: "src", Tables: tables})
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]*Rule{}
	for _, r := range d.Rules {
		rules[r.Contract.Topic] = r
	}
	return rules
}

func field(t *testing.T, r *Rule, name string) Field {
	t.Helper()
	if r == nil {
		t.Fatal("no rule")
	}
	for _, f := range r.Fields {
		if f.Name == name {
			return f
		}
	}
	return Field{Name: "missing"}
}

// Lost if this fails: a table that only begins or ends like an entity is mapped
// onto it, or the one that is the entity is passed over.
func TestWhichTable(t *testing.T) {
	users := table("public", "users", 0, "id", change.Int, "first_name", change.String, "last_name", change.String)
	roles := table("public", "user_roles", 0, "id", change.Int, "name", change.String)
	setting := table("public", "project_settings", 0, "id", change.Int, "name", change.String)
	employees := table("public", "employees", 0, "id", change.Int, "first_name", change.String, "last_name", change.String)
	if r := drafted(t, roles, users, setting)["ps.resource"]; r == nil || r.Table != users {
		t.Errorf("users are not the resources: %v", r)
	}
	if r := drafted(t, roles, users, employees)["ps.resource"]; r == nil || r.Table != employees {
		t.Errorf("employees are likelier resources than users: %v", r)
	}
	if r := drafted(t, roles, setting); len(r) != 0 {
		t.Errorf("they are no entities: %v", r)
	}
	// What time entries lead to is likelier than what is only called so.
	work := table("public", "time_entries", 0, "id", change.Int, "user_id", change.Int, "hours", change.Decimal, "work_date", change.Date)
	work.References["user_id"] = "public.users"
	if r := drafted(t, roles, users, employees, work)["ps.resource"]; r == nil || r.Table != employees {
		t.Errorf("employees have the better name: %v", r)
	}
	logs := table("public", "worklogs", 0, "id", change.Int, "user_id", change.Int)
	logs.References["user_id"] = "public.users"
	if r := drafted(t, roles, users, employees, work, logs)["ps.resource"]; r == nil || r.Table != users {
		t.Errorf("time entries and work logs lead to users: %v", r)
	}
	// An account may be a ledger's: whoever is billed is called otherwise there.
	account := table("public", "account_account", 0, "id", change.Int, "code", change.String, "name", change.String, "closed", change.Bool)
	party := table("public", "party_party", 0, "id", change.Int, "code", change.String, "name", change.String, "active", change.Bool)
	bill := table("public", "account_invoice", 0, "id", change.Int, "number", change.String, "account", change.Int, "party", change.Int)
	bill.References["account"], bill.References["party"] = "public.account_account", "public.party_party"
	rules := drafted(t, account, party, bill)
	if r := rules["ps.customer"]; r == nil || r.Table != party {
		t.Errorf("parties are not the customers: %v", r)
	}
	if f := field(t, rules["ps.invoice"], "customer_id"); f.Text != "src-{party}" {
		t.Errorf("the customer of an invoice is %q", f.Text)
	}
	// Called by no name that is known: hours, a day, and who and for what.
	work = table("public", "erfassung", 0, "id", change.Int, "user_id", change.Int, "project_id", change.Int, "datum", change.Date, "dauer", change.Float64)
	if r := drafted(t, users, work)["ps.time_entry"]; r == nil || r.Table != work {
		t.Errorf("hours on a day by a user for a project are time entries: %v", r)
	}
	work.Bound = "a reason"
	d, err := Make(&Database{Source: "src", Tables: []*Table{users, work}})
	if err != nil {
		t.Fatal(err)
	}
	if d.rule("ps.time_entry") != nil {
		t.Error("a table that stays out is mapped")
	}
	for _, m := range d.Missing {
		if m.Topic == "ps.time_entry" && m.Like != work {
			t.Error("it is not said which table looks like it")
		}
	}
}

// Lost if this fails: minutes are taken for hours, or a foreign key that leads
// elsewhere for the one that is meant.
func TestHowFieldsAreMade(t *testing.T) {
	users := table("public", "users", 0, "id", change.Int, "name", change.String, "is_disabled", change.Bool, "first_name", change.String)
	work := table("public", "worklogs", 0, "id", change.UUID, "performed_by", change.Int, "approved_by", change.Int, "job", change.Int, "log_date", change.Timestamp, "minutes", change.Int, "state", change.Int, "deleted_at", change.Timestamp, "comment", change.Bytes)
	work.Columns[7].Nullable = true
	work.References["performed_by"], work.References["approved_by"] = "public.users", "public.users"
	work.Distinct["state"] = 4
	rules := drafted(t, users, work)
	r := rules["ps.time_entry"]
	for name, want := range map[string]string{
		"time_entry_id": "src-{id}", "resource_id": "src-{performed_by}", "project_id": "src-{job}", "work_date": "day(row.log_date)",
		"hours": `div(row.minutes, 60, 6, "half_even")`, "status": "", "billable": "",
	} {
		if f := field(t, r, name); f.Text != want || f.Blank() != (want == "") {
			t.Errorf("%s: %q, left to do %v; want %q", name, f.Text, f.Blank(), want)
		}
	}
	if f := field(t, r, "status"); !strings.Contains(f.Note, "about 4 values") || !strings.Contains(f.Note, `code("time_entry_status", row.state)`) {
		t.Errorf("the note of status: %s", f.Note)
	}
	if f := field(t, r, "note"); f.Name != "missing" {
		t.Errorf("a field that may be null and has no column is written: %+v", f)
	}
	if r.Where != "row.deleted_at == null" {
		t.Errorf("where is %q", r.Where)
	}
	if f := field(t, rules["ps.resource"], "active"); f.Text != "!row.is_disabled" {
		t.Errorf("active is %q", f.Text)
	}
	work.Columns[1].Name = "checked_by"
	work.References = map[string]string{"checked_by": "public.users", "approved_by": "public.users"}
	work.Index()
	if f := field(t, drafted(t, users, work)["ps.time_entry"], "resource_id"); !f.Blank() || !strings.Contains(f.Note, "checked_by and approved_by") {
		t.Errorf("which of two foreign keys it is cannot be known: %+v", f)
	}
	work.Columns[4].Kind, work.Columns[4].Type = change.String, "text"
	work.Columns[5].Name = "duration"
	work.Index()
	if f := field(t, drafted(t, users, work)["ps.time_entry"], "hours"); !f.Blank() || !strings.Contains(f.Note, "3600") {
		t.Errorf("a whole number of what nobody says is taken for hours: %+v", f)
	}
	if f := field(t, drafted(t, users, work)["ps.time_entry"], "work_date"); !f.Blank() || !strings.Contains(f.Note, "'date(row.log_date)'") {
		t.Errorf("whether a text is a date cannot be known: %+v", f)
	}
	// Some systems fill the last change with the second write.
	for _, c := range []struct {
		kind   change.Kind
		null   bool
		column string
		want   string
	}{
		{change.Timestamp, true, "create_date", `moment(coalesce(row.write_date, row.create_date), "UTC")`},
		{change.TimestampTZ, true, "create_date", "coalesce(row.write_date, row.create_date)"},
		{change.Timestamp, false, "create_date", `moment(row.write_date, "UTC")`},
		{change.Timestamp, true, "create:date", `moment(row.write_date, "UTC")`},
		{change.Timestamp, true, "other", `moment(row.write_date, "UTC")`},
	} {
		jobs := table("public", "projects", 0, "id", change.Int, "name", change.String, "write_date", c.kind, c.column, c.kind)
		jobs.Columns[2].Nullable = c.null
		if f := field(t, drafted(t, jobs)["ps.project"], "updated_at"); f.Text != c.want {
			t.Errorf("the last change is %q, want %q", f.Text, c.want)
		}
	}
	// A column of the field's own name would be taken without a word.
	work.Columns[8].Name = "note"
	work.Index()
	if f := field(t, drafted(t, users, work)["ps.time_entry"], "note"); !f.Null {
		t.Errorf("a column of the same name and another type is not put aside: %+v", f)
	}
}

// Lost if this fails: a name that no expression can hold makes a file that
// check refuses beyond what is left to do.
func TestNamesThatCannotBeWritten(t *testing.T) {
	odd := table("public", "worklogs", 0, "a:b", change.Int, "user:id", change.Int, "Dauer", change.Float64, "Status:", change.String, "is:deleted", change.Bool, "work-date", change.Timestamp, "billable?", change.Bool, "über", change.String)
	r := drafted(t, odd)["ps.time_entry"]
	for name, want := range map[string]string{"time_entry_id": "", "resource_id": "", "status": "", "billable": "", "work_date": "day(row.`work-date`)"} {
		if f := field(t, r, name); f.Text != want || f.Blank() != (want == "") {
			t.Errorf("%s: %q, want %q", name, f.Text, want)
		}
	}
	if r.Where != "" {
		t.Errorf("where is %q", r.Where)
	}
}
