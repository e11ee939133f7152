package applications

import (
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
	"ps.project": {rows: `SELECT 'redmine-' || id AS project_id, identifier AS number, name, 'none' AS customer_id, 'FIRM' AS legal_entity, 'EUR' AS currency,
		CASE status WHEN 1 THEN 'active' WHEN 5 THEN 'closed' WHEN 9 THEN 'archived' END AS status, NULL AS billing_type, NULL AS start_date, NULL AS end_date,
		NULL AS budget_hours, updated_on AT TIME ZONE 'UTC' AS updated_at FROM projects`},
	"ps.resource": {rows: `SELECT 'redmine-' || id AS resource_id, login AS number, firstname AS first_name, lastname AS last_name, NULL AS email, 'FIRM' AS legal_entity,
		NULL AS title, NULL AS hired_on, NULL AS left_on, status = 1 AS active, updated_on AT TIME ZONE 'UTC' AS updated_at FROM users WHERE type IN ('User', 'AnonymousUser')`},
	"ps.time_entry": {rows: `SELECT 'redmine-' || id AS time_entry_id, 'redmine-' || user_id AS resource_id, 'redmine-' || project_id AS project_id, issue_id::text AS task_number,
		spent_on AS work_date, ` + halfEven("hours::text::numeric") + ` AS hours, true AS billable, 'approved' AS status, comments AS note, NULL AS bill_rate,
		created_on AT TIME ZONE 'UTC' AS created_at, updated_on AT TIME ZONE 'UTC' AS updated_at FROM time_entries`, sums: []string{"sum(hours)"}},
}

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
	w.capture(t, "redmine.yml")
	loaded := w.await(t)
	a.run(t, "redmine/second.rb", runner...)
	w.sees(t, loaded, w.await(t), map[string]int{"ps.project": 1, "ps.resource": -1, "ps.time_entry": 300 - 20 + 1})
	w.finds(t)
}
