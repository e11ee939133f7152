package applications

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

var redmineRoot = root{
	name: "redmine-5.0", suite: "bookworm",
	install: `apt-get update -qq
# Its questions about a database have no end where nobody answers.
echo redmine redmine/instances/default/dbconfig-install boolean false | debconf-set-selections
apt-get install -y -qq --no-install-recommends redmine redmine-pgsql
cat >/etc/redmine/default/database.yml <<'YAML'
production:
  adapter: postgresql
  encoding: utf8
  host: <%= ENV["PGHOST"] %>
  port: <%= ENV["PGPORT"] %>
  username: <%= ENV["PGUSER"] %>
  database: <%= ENV["PGDATABASE"] %>
YAML
cd /usr/share/redmine
bundle install --local --quiet # it takes the library for this database in
`,
}

// redmineTruth is Redmine's tables as SQL reads them. A float's text is the
// shortest number that is that float.
var redmineTruth = map[string]truth{
	"ps.project": {rows: redmineTop + `SELECT 'redmine-' || p.id AS project_id, identifier AS number, name, coalesce(v.value, 'none') AS customer_id, 'FIRM' AS legal_entity, 'EUR' AS currency,
		CASE status WHEN 1 THEN 'active' WHEN 5 THEN 'closed' WHEN 9 THEN 'archived' END AS status, NULL AS billing_type, NULL AS start_date, NULL AS end_date,
		NULL AS budget_hours, updated_on AT TIME ZONE 'UTC' AS updated_at FROM projects p ` + redmineCustomer},
	"ps.resource": {rows: `SELECT 'redmine-' || id AS resource_id, login AS number, firstname AS first_name, lastname AS last_name,
		(SELECT address FROM email_addresses e WHERE e.user_id = users.id AND is_default ORDER BY id DESC LIMIT 1) AS email, 'FIRM' AS legal_entity,
		NULL AS title, NULL AS hired_on, NULL AS left_on, status = 1 AS active, updated_on AT TIME ZONE 'UTC' AS updated_at FROM users WHERE type IN ('User', 'AnonymousUser')`},
	"ps.time_entry": {rows: `SELECT 'redmine-' || id AS time_entry_id, 'redmine-' || user_id AS resource_id, 'redmine-' || project_id AS project_id, issue_id::text AS task_number,
		spent_on AS work_date, ` + halfEven("hours::text::numeric") + ` AS hours, true AS billable, 'approved' AS status, comments AS note, NULL AS bill_rate,
		created_on AT TIME ZONE 'UTC' AS created_at, updated_on AT TIME ZONE 'UTC' AS updated_at FROM time_entries`, sums: []string{"sum(hours)"}},
	"ps.time_entry_costed": {
		rows: redmineTop + `SELECT 'redmine-' || t.id AS time_entry_id, 'redmine-' || t.user_id AS resource_id, 'redmine-' || t.project_id AS project_id,
		p.identifier AS project_number, v.value AS customer_id, v.value AS customer_name, 'FIRM' AS legal_entity, r.currency, spent_on AS work_date, ` + halfEven("hours::text::numeric") + ` AS hours,
		true AS billable, 'approved' AS status, r.login || '/' || r.valid_from AS cost_rate_id, r.rate, (` + halfEven("hours::text::numeric") + ` * r.rate)::numeric(24,10) AS cost,
		CASE WHEN r.rate IS NULL THEN 'rate of login ' || u.login || ' on ' || spent_on END AS waiting_for, t.updated_on AT TIME ZONE 'UTC' AS updated_at
		FROM time_entries t JOIN users u ON u.id = t.user_id JOIN projects p ON p.id = t.project_id ` + redmineCustomer + `
		LEFT JOIN LATERAL (SELECT * FROM finance.rates r WHERE r.login = u.login AND valid_from <= spent_on ORDER BY valid_from DESC LIMIT 1) r ON true`,
		sums: []string{"sum(cost)", "count(waiting_for)", "count(customer_id)"},
	},
	"ps.invoice": {rows: `SELECT 'finance-' || number AS invoice_id, number, customer AS customer_id, 'FIRM' AS legal_entity, kind, status, issued_on AS invoice_date, currency, total,
		changed_at AS updated_at FROM finance.invoices`, sums: []string{"sum(total)"}},
	"ps.invoice_line": {rows: `SELECT 'finance-' || invoice || '/' || line AS invoice_line_id, 'finance-' || invoice AS invoice_id, 'redmine-' || p.id AS project_id, l.description,
		quantity, unit_price, amount FROM finance.invoice_lines l JOIN projects p ON p.identifier = l.project`, sums: []string{"sum(amount)"}},
	// A credit note takes revenue away, in the month of its own date.
	marginView: margin(`up AS (SELECT id, id AS at, parent_id FROM projects UNION ALL SELECT u.id, p.id, p.parent_id FROM up u JOIN projects p ON p.id = u.parent_id),
		jobs AS (SELECT 'redmine-' || p.id AS project_id, identifier AS project_number, name AS project_name, coalesce(v.value, 'none') AS customer_id, 'FIRM' AS legal_entity, 'EUR' AS currency
			FROM projects p ` + redmineCustomer + `),
		entries AS (SELECT 'redmine-' || project_id AS project_id, spent_on AS day, h.hours, h.hours * (SELECT r.rate FROM finance.rates r JOIN users u USING (login)
			WHERE u.id = t.user_id AND valid_from <= spent_on ORDER BY valid_from DESC LIMIT 1) AS cost
			FROM time_entries t CROSS JOIN LATERAL (SELECT ` + halfEven("t.hours::text::numeric") + ` AS hours) h),
		lines AS (SELECT 'redmine-' || p.id AS project_id, issued_on AS day, CASE kind WHEN 'invoice' THEN amount ELSE -amount END AS amount
			FROM finance.invoices i JOIN finance.invoice_lines l ON l.invoice = i.number JOIN projects p ON p.identifier = l.project WHERE i.status = 'issued')`),
}

// redmineTop finds the topmost project above each, redmineCustomer its customer.
const (
	redmineTop = `WITH RECURSIVE up AS (SELECT id, id AS at, parent_id FROM projects
		UNION ALL SELECT u.id, p.id, p.parent_id FROM up u JOIN projects p ON p.id = u.parent_id) `
	redmineCustomer = `JOIN up ON up.id = p.id AND up.parent_id IS NULL
		LEFT JOIN custom_values v ON v.customized_type = 'Project' AND v.custom_field_id = 1 AND v.customized_id = up.at AND v.value <> ''`
)

// Lost if this fails: a firm with Redmine cannot fill the contracts without
// writing a program, or gets hours that differ from those that it sees.
func TestRedmine(t *testing.T) {
	asked(t)
	dir, err := redmineRoot.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, redmineTruth)
	a := &application{dir: dir, env: []string{
		"PGHOST=127.0.0.1", "PGPORT=" + strconv.Itoa(w.pg.Port), "PGUSER=postgres", "PGDATABASE=application",
		"RAILS_ENV=production", "REDMINE_INSTANCE=default", "REDMINE_LANG=en", "SCHEMA=/dev/null",
	}}
	runner := []string{"sh", "-c", "mkdir -p /var/log/redmine/default /var/cache/redmine/default/tmp; cd /usr/share/redmine; exec bundle exec rails runner -"}
	a.run(t, "redmine/make.sh", "sh", "-s")
	a.run(t, "redmine/first.rb", runner...)
	w.finance(t, "../../examples/redmine")
	w.capture(t, "redmine")
	loaded := w.await(t)
	w.through(t, trouble{
		kill:  "SELECT count(*) > 700 FROM time_entries", // of 508, and 300 more
		flush: "SELECT EXISTS (SELECT FROM users WHERE lastname = 'Birch-Ash')",
	}, func() error { return a.enter(t, "redmine/second.rb", runner...) })
	w.sees(t, loaded, w.await(t), map[string]int{
		"ps.project": 1, "ps.resource": -1, "ps.time_entry": 300 - 20 + 1, "ps.time_entry_costed": 300 - 20 + 1, "ps.invoice": 2 - 1, "ps.invoice_line": 3 - 1 + 1,
		marginView: 4,
	})
	w.finds(t)
}

// finance makes the tables that the example has beside Redmine's, of its files.
func (w *world) finance(t *testing.T, example string) {
	t.Helper()
	tables, err := os.ReadFile(filepath.Join(example, "finance.sql"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.from.Exec(t.Context(), string(tables)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rates", "invoices", "invoice_lines"} {
		rows, err := os.ReadFile(filepath.Join(example, name+".csv"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.from.PgConn().CopyFrom(t.Context(), bytes.NewReader(rows), "COPY finance."+name+" FROM STDIN CSV HEADER"); err != nil {
			t.Fatalf("%s.csv: %v", name, err)
		}
	}
}
