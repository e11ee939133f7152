package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
)

// foreign makes the tables of a file in a database of its own.
func foreign(t *testing.T, file string) (dsn string, conn *pgx.Conn) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "internal", "draft", "testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	dsn = testkit.NewDatabase(t)
	if conn, err = pgx.Connect(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, string(text))
	return dsn, conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// initJSON drafts and gives what was said of it.
func initJSON(t *testing.T, args ...string) drafted {
	t.Helper()
	code, out, errs := tw(append([]string{"init", "-o", "json"}, args...)...)
	if code != exitOK {
		t.Fatalf("exit %d\n%s", code, errs)
	}
	var d drafted
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// left are the fields that check names, contract.field at line:column.
func left(t *testing.T, file string) (fields, others []string) {
	t.Helper()
	_, _, err := checked(file, false)
	text, readErr := os.ReadFile(file)
	if readErr != nil {
		t.Fatal(readErr)
	}
	lines := strings.Split(string(text), "\n")
	place := regexp.MustCompile(`^` + regexp.QuoteMeta(file) + `:(\d+):(\d+): transforms\.canonical\.topics\[\d+\]\.fields\.(\w+)$`)
	for _, r := range problem.Reports(err) {
		m := place.FindStringSubmatch(r.Where)
		var line, column int
		if m != nil {
			fmt.Sscan(m[1], &line)
			fmt.Sscan(m[2], &column)
		}
		if m == nil || r.Code != "TW-MAP-CONFIG" || line > len(lines) || !strings.HasPrefix(lines[line-1][column-1:], `""`) || !strings.Contains(lines[line-1], m[3]+`: ""`) || !strings.Contains(lines[line-1], "# to do: ") {
			others = append(others, r.Where+": "+r.What)
			continue
		}
		for i := line - 1; i >= 0; i-- {
			if _, topic, is := strings.Cut(lines[i], " to: "); is {
				fields = append(fields, topic+"."+m[3])
				break
			}
		}
	}
	return fields, others
}

// compiles holds the drafted rules against the tables of the database, as doctor
// does, and gives what is wrong.
func compiles(t *testing.T, file string, want int) (bad []string) {
	t.Helper()
	cfg, _, err := checked(file, false)
	if err != nil {
		t.Fatal(err)
	}
	d := &doctor{cfg: cfg, filled: map[string]*change.Table{}}
	env := supervise.Bare(cfg)
	env.Tables = d.tables
	p, err := supervise.Build(env, cfg)
	if err != nil {
		t.Fatal(err)
	}
	rules := map[string]bool{}
	for _, s := range p.Sources {
		d.catalog(t.Context(), s)
	}
	for _, tr := range p.Transforms {
		for _, stage := range tr.Stages {
			if doc, ok := stage.(pipeline.Doctor); ok {
				for _, f := range doc.Doctor(t.Context()) {
					rules[f.What] = true
					if f.Err != nil {
						bad = append(bad, f.What+": "+f.Err.Error())
					}
				}
			}
		}
	}
	if len(rules) != want { // of a table that is not captured nothing is said
		t.Errorf("%d rules are held against tables, want %d", len(rules), want)
	}
	return bad
}

// Lost if this fails: a new user's first file is wrong where it was guessed, or
// hides what is left to do, or sends the passwords of an application to Kafka.
func TestInit(t *testing.T) {
	for _, c := range []struct {
		file      string
		contracts string
		rules     []string          // lines of the file
		left      string            // what check names
		fill      map[string]string // and with what it is filled
		secrets   []string
		costs     []string
		out       []string // tables that are left out
	}{
		{
			file: "redmine.sql", contracts: "ps.resource<public.users ps.project<public.projects ps.time_entry<public.time_entries",
			rules: []string{
				`time_entry_id: "psa-{id}"`, `resource_id: "psa-{user_id}"`, `project_id: "psa-{project_id}"`, "task_number: issue_id", "work_date: spent_on",
				`hours: 'round(decimal(row.hours), 6, "half_even")'`, "note: comments", `created_at: 'moment(row.created_on, "UTC")'`, "first_name: firstname", "number: identifier",
				"- public.time_entries    # about 1,500 rows, key id",
			},
			left: "ps.resource.number ps.resource.legal_entity ps.resource.active ps.project.customer_id ps.project.legal_entity ps.project.currency ps.time_entry.billable ps.time_entry.status",
			fill: map[string]string{
				"ps.resource.number": "login", "ps.resource.legal_entity": `"=FIRM"`, "ps.resource.active": "row.status == 1", "ps.project.customer_id": `"=none"`, "ps.project.legal_entity": `"=FIRM"`,
				"ps.project.currency": `"=EUR"`, "ps.time_entry.billable": "true", "ps.time_entry.status": `"=approved"`,
			},
			secrets: []string{"public.users hashed_password salt twofa_totp_key twofa_totp_last_used_at"},
			out:     []string{"public.changeset_parents", "public.projects_trackers", "public.settings", "public.tokens", "public.open_issues"},
		},
		{
			file: "consultancy.sql", contracts: "ps.customer<public.clients ps.resource<hr.people ps.project<public.engagements ps.time_entry<hr.bookings ps.cost_rate<hr.staff_rates ps.invoice<Finance.Bills ps.invoice_line<Finance.BillLines",
			rules: []string{
				`customer_id: "psa-{client_no}"`, `active: "!row.archived"`, `hired_on: "day(row.hire_date)"`, `resource_id: "psa-{worker}"`, "task_number: \"row.`Task No`\"",
				`hours: 'hours(row.worked, 6, "half_even")'`, "status: state", `cost_rate_id: "psa-{person_id}/{id}"`, `bill_rate: 'round(row.hourly_rate, 4, "half_even")'`,
				"- from: psa.Finance.Bills", "number: BillNo", "- hr.bookings        # no rows, key id, work_day, partitioned", `# where: "row.deleted_at == null"`,
			},
			left: "ps.resource.last_name ps.invoice.kind ps.invoice.status",
			fill: map[string]string{
				"ps.resource.last_name": `'row.full_name.split(" ")[1]'`, "ps.invoice.kind": "DocType", "ps.invoice.status": `'row.State == "open" ? "issued" : "void"'`,
			},
			secrets: []string{"hr.people api_key pin"},
			costs:   []string{"hr.staff_rates cost_per_hour"},
			out:     []string{"hr.sessions", "public.audit_log", "public.queue"},
		},
		{
			file: "odd.sql", contracts: "ps.customer<My Schema.Kunde ps.time_entry<My Schema.Time Entry ps.invoice<My Schema.Invoice",
			rules: []string{
				"- from: psa.My_x0020_Schema.Time_x0020_Entry\n", `customer_id: "psa-{Kunden Nr}"`, "number: \"row.`Kunden Nr`\"", "email: \"row.`E-Mail`\"", `time_entry_id: "psa-{a}/{b}"`,
				`hours: 'div(decimal(row.Minutes), 60, 6, "half_even")'`, "note: null", `invoice_id: "psa-{Inv-Id}"`, `number: "no"`, `total: 'round(row.Summe, 2, "half_even")'`,
			},
			left: "ps.time_entry.billable ps.time_entry.status ps.invoice.legal_entity ps.invoice.kind ps.invoice.status",
			fill: map[string]string{
				"ps.time_entry.billable": "true", "ps.time_entry.status": "status",
				"ps.invoice.legal_entity": `"=FIRM"`, "ps.invoice.kind": `"=invoice"`, "ps.invoice.status": `"=issued"`,
			},
			secrets: []string{"My Schema.Kunde Paßwort:Hash"},
		},
	} {
		t.Run(c.file, func(t *testing.T) {
			dsn, conn := foreign(t, c.file)
			defer conn.Close(t.Context())
			t.Setenv("PSA_DSN", dsn)
			file := filepath.Join(t.TempDir(), "new.yml")
			d := initJSON(t, "--dsn", strings.Replace(dsn, "//postgres@", "//postgres:hunter2@", 1), "--source", "psa", "--out", file)
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var contracts []string
			for _, x := range d.Contracts {
				contracts = append(contracts, x.Contract+"<"+x.From)
			}
			if got := strings.Join(contracts, " "); got != c.contracts {
				t.Errorf("drafted are\n%s, want\n%s", got, c.contracts)
			}
			for _, line := range c.rules {
				if !strings.Contains(string(text), " "+line) {
					t.Errorf("the file has no %s", line)
				}
			}
			for _, x := range []string{dsn, "hunter2", "127.0.0.1:", "Unseen", "c0ffee", "saltysalt", "C-1"} { // where it is, and what is in its rows
				if strings.Contains(string(text), x) {
					t.Errorf("the file tells %s", x)
				}
			}
			if _, err := config.Load(file, config.Options{}); err != nil {
				t.Errorf("it is not read: %v", err)
			}
			fields, others := left(t, file)
			if got := strings.Join(fields, " "); got != c.left || len(others) > 0 || d.Left != len(fields) {
				t.Errorf("check names %s\nwant %s\nbeside %q; init said %d", got, c.left, others, d.Left)
			}

			// What has secrets is not captured, and what cannot be is told.
			var secrets, out []string
			for _, s := range d.Secrets {
				secrets = append(secrets, s.Table+" "+strings.Join(s.Columns, " "))
				for _, column := range s.Columns {
					if _, without, _ := strings.Cut(string(text), "\n    without:\n"); !slices.Contains(d.Tables, s.Table) || !regexp.MustCompile(`^(      - .*\n)*      - "?`+regexp.QuoteMeta(s.Table+"."+column)+`"?\n`).MatchString(without) {
						t.Errorf("%s is not captured, or with its secret %s", s.Table, column)
					}
				}
			}
			var costs []string
			for _, s := range d.Costs {
				costs = append(costs, s.Table+" "+strings.Join(s.Columns, " "))
			}
			if !slices.Equal(costs, c.costs) || len(d.Grants) > 0 || d.NoRule != nil {
				t.Errorf("costs are in %q, want %q; to grant are %q, no rule: %v", costs, c.costs, d.Grants, d.NoRule)
			}
			for _, o := range d.LeftOut {
				out = append(out, o.Table)
				if o.Why == "" || o.Remedy == "" || !strings.Contains(string(text), "\n      # - "+o.Table) {
					t.Errorf("%s is left out without a word", o.Table)
				}
			}
			if !slices.Equal(secrets, c.secrets) || !slices.Equal(out, c.out) {
				t.Errorf("secrets are in %q, want %q; left out are %q, want %q", secrets, c.secrets, out, c.out)
			}

			// What is said to be done is done, and all is well.
			filled := string(text)
			for field, with := range c.fill {
				topic, name, _ := strings.Cut(strings.TrimPrefix(field, "ps."), ".")
				head, rule, _ := strings.Cut(filled, " to: ps."+topic+"\n")
				filled = head + " to: ps." + topic + "\n" + strings.Replace(rule, " "+name+`: ""`, " "+name+": "+with, 1)
			}
			if err := os.WriteFile(file, []byte(filled), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, _, errs := tw("check", "-c", file); code != exitOK {
				t.Fatalf("filled in, it is not good:\n%s", errs)
			}
			bad := compiles(t, file, len(contracts))
			if len(bad) > 0 {
				t.Errorf("the rules do not fit the tables: %q", bad)
			}
			again := initJSON(t, "--dsn", dsn, "--source", "psa", "--out", file, "--force")
			if len(again.Secrets) != len(d.Secrets) || !slices.Equal(again.Tables, d.Tables) {
				t.Errorf("drafted again, secrets are %v, tables %v", again.Secrets, again.Tables)
			}
		})
	}
}

// Lost if this fails: a login without rights is told that nothing is left to do, or
// is told a statement after which it still may not read.
func TestInitOfALoginWithFewRights(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	role := "few_" + filepath.Base(strings.Split(dsn, "?")[0])
	execute(t, conn, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN REPLICATION; CREATE SCHEMA "CRM"; CREATE TABLE "CRM".kunden (id int PRIMARY KEY, kundennr text NOT NULL, firma text NOT NULL);
		CREATE TABLE "CRM".rechnungen (id int PRIMARY KEY, rechnungsnr text NOT NULL, kunde_id int NOT NULL REFERENCES "CRM".kunden, netto numeric(14,2) NOT NULL);
		CREATE TABLE "CRM".events (id int PRIMARY KEY); CREATE TABLE flags (id int PRIMARY KEY); GRANT SELECT ON flags TO %[1]s`, role))
	defer execute(t, conn, fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", role))
	as := strings.Replace(dsn, "//postgres@", "//"+role+"@", 1)
	t.Setenv("CRM_DSN", as)
	file := filepath.Join(t.TempDir(), "new.yml")
	code, out, errs := tw("init", "--dsn", "env:CRM_DSN", "--source", "crm", "--out", file)
	if code != exitOK || strings.Contains(out, "0 fields left") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	for _, want := range []string{
		"No rule was drafted: the login may not read 3 of the 4 tables", "draft again with --force",
		fmt.Sprintf("  GRANT USAGE ON SCHEMA \"CRM\" TO %q;\n", role), fmt.Sprintf("  GRANT SELECT ON \"CRM\".\"kunden\" TO %q;\n", role), fmt.Sprintf("  GRANT SELECT ON \"CRM\".\"rechnungen\" TO %q;\n", role),
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if code, _, errs := tw("check", "-c", file); code != exitOK { // nothing was drafted that could be wrong
		t.Errorf("check: %s", errs)
	}
	d := initJSON(t, "--dsn", "env:CRM_DSN", "--source", "crm", "--out", file, "--force")
	if d.NoRule == nil || len(d.Grants) != 3 || len(d.Contracts) > 0 {
		t.Fatalf("it says %+v", d)
	}
	for _, g := range d.Grants {
		execute(t, conn, g)
	}
	d = initJSON(t, "--dsn", "env:CRM_DSN", "--source", "crm", "--out", file, "--force")
	if d.NoRule != nil || len(d.Grants) > 0 || len(d.Contracts) != 2 {
		t.Errorf("after the grants it says %+v", d)
	}
	if _, others := left(t, file); len(others) > 0 {
		t.Errorf("check names more than is left to do: %q", others)
	}
}

// Lost if this fails: hours of somebody's work are written over, or a password
// stands on a screen.
func TestInitRefuses(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("TALLYWIRE_CONFIG", "")
	t.Setenv("APP_DSN", dsn)
	does := func(want int, says string, args ...string) {
		t.Helper()
		code, out, errs := tw(append([]string{"init"}, args...)...)
		if code != want || !strings.Contains(out+errs, says) || strings.Contains(out+errs, "hunter2") {
			t.Errorf("init %q: exit %d, want %d, with %q in\n%s%s", args, code, want, says, out, errs)
		}
	}
	does(exitUsage, "--dsn names the database")
	does(exitUsage, "--source", "--dsn", dsn, "--source", "Not-A-Name")
	does(exitFailed, "TW-PG-UNAVAILABLE", "--dsn", "postgres://u:hunter2@127.0.0.1:1/x")
	does(exitFailed, "TW-PG-CONFIG", "--dsn", "postgres://u:hunter2@127.0.0.1:port/x")
	does(exitFailed, "TW-PG-REFUSED", "--dsn", dsn[:strings.LastIndex(dsn, "/")+1]+"nowhere?sslmode=disable")
	does(exitFailed, "TW-CONFIG-SECRET", "--dsn", "env:TW_TEST_NOT_SET_AT_ALL")
	does(exitFailed, "TW-PG-NO-TABLES", "--dsn", dsn)
	if exists(ownFile) {
		t.Error("a file is written although nothing was drafted")
	}

	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	execute(t, conn, "CREATE TABLE odd (id int PRIMARY KEY, hours int)")
	does(exitFailed, "TW-INIT-WRITE", "--dsn", "env:APP_DSN", "--source", "app", "--out", "no/such/dir/new.yml")
	if err := os.MkdirAll("no/such/dir", 0o700); err != nil {
		t.Fatal(err)
	}
	does(exitOK, "tallywire check -c no/such/dir/new.yml", "--dsn", "env:APP_DSN", "--source", "app", "--out", "no/such/dir/new.yml") // Remedy: TW-INIT-WRITE
	does(exitOK, "  tallywire check\n", "--dsn", "env:APP_DSN", "--source", "app")

	// No contract is drafted, and the file is good all the same.
	if code, _, errs := tw("check"); code != exitOK {
		t.Errorf("check: %s", errs)
	}
	const mine = "# mine\n"
	if err := os.WriteFile(ownFile, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	does(exitFailed, "TW-INIT-EXISTS", "--dsn", "env:APP_DSN", "--source", "app")
	does(exitFailed, "TW-INIT-EXISTS", "--dsn", "postgres://u:hunter2@127.0.0.1:1/x") // before anything is looked at
	if err := (&initOptions{out: ownFile}).write([]byte("x")); !problem.Has(err, errInitExists) {
		t.Errorf("one that came to be meanwhile: %v", err)
	}
	if text, _ := os.ReadFile(ownFile); string(text) != mine {
		t.Error("the file is written over")
	}
	if err := os.Chmod(ownFile, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(ownFile, "kept.yml"); err != nil { // another name of what is exchanged, not written over
		t.Fatal(err)
	}
	does(exitOK, "is written", "--dsn", "env:APP_DSN", "--source", "app", "--force") // Remedy: TW-INIT-EXISTS
	if text, _ := os.ReadFile("kept.yml"); string(text) != mine {
		t.Errorf("it is written in place: what was there is now\n%s", text)
	}
	if info, err := os.Stat(ownFile); err != nil || info.Mode() != 0o640 {
		t.Errorf("its mode is %v (%v)", info.Mode(), err)
	}
	if text, _ := os.ReadFile(ownFile); !strings.Contains(string(text), "dsn: env:APP_DSN\n") {
		t.Errorf("it is not written over, or without its reference:\n%s", text)
	}
}
