package applications

import (
	"fmt"
	"testing"
)

var trytonRoot = root{
	name: "tryton-7.0", suite: "trixie",
	install: `apt-get update -qq
apt-get install -y -qq --no-install-recommends tryton-server tryton-proteus tryton-modules-timesheet-cost tryton-modules-account-invoice python3-psycopg2
`,
}

const trytonUpdated = "coalesce(r.write_date, r.create_date) AT TIME ZONE 'UTC' AS updated_at"

// trytonTruth is Tryton's tables as SQL reads them.
var trytonTruth = map[string]truth{
	"ps.time_entry": {rows: `SELECT 'tryton-' || id AS time_entry_id, 'tryton-' || employee AS resource_id, 'tryton-' || work AS project_id, NULL AS task_number, date AS work_date,
		` + halfEven("extract(epoch FROM duration) / 3600") + ` AS hours, true AS billable, 'approved' AS status, description AS note, NULL AS bill_rate,
		create_date AT TIME ZONE 'UTC' AS created_at, ` + trytonUpdated + ` FROM timesheet_line r`, sums: []string{"sum(hours)"}},
	"ps.time_entry_costed": {rows: `SELECT 'tryton-' || r.id AS time_entry_id, 'tryton-' || r.employee AS resource_id, 'tryton-' || r.work AS project_id, w.name AS project_number,
		NULL AS customer_id, NULL AS customer_name, f.name AS legal_entity, c.code AS currency, r.date AS work_date, ` + halfEven("extract(epoch FROM duration) / 3600") + ` AS hours,
		true AS billable, 'approved' AS status, 'tryton-' || r.employee || '/' || p.id AS cost_rate_id, p.cost_price::numeric(12,4) AS rate,
		(` + halfEven("extract(epoch FROM duration) / 3600") + ` * p.cost_price)::numeric(24,10) AS cost, CASE WHEN p.id IS NULL THEN 'price of employee ' || r.employee || ' on ' || r.date END AS waiting_for,
		` + trytonUpdated + ` FROM timesheet_line r JOIN timesheet_work w ON w.id = r.work JOIN company_company o ON o.id = r.company JOIN party_party f ON f.id = o.party
		JOIN currency_currency c ON c.id = o.currency LEFT JOIN LATERAL (SELECT * FROM company_employee_cost_price p WHERE p.employee = r.employee AND p.date <= r.date
		ORDER BY date DESC, id DESC LIMIT 1) p ON true`, sums: []string{"sum(cost)", "count(waiting_for)"}},
	"ps.cost_rate": {rows: `SELECT 'tryton-' || r.employee || '/' || r.id AS cost_rate_id, 'tryton-' || r.employee AS resource_id, r.date AS valid_from, NULL AS valid_to,
		cost_price::numeric(12,4) AS rate, c.code AS currency, ` + trytonUpdated + ` FROM company_employee_cost_price r
		JOIN company_employee e ON e.id = r.employee JOIN company_company o ON o.id = e.company JOIN currency_currency c ON c.id = o.currency`, sums: []string{"sum(rate)"}},
	"ps.invoice": {rows: `SELECT 'tryton-' || r.id AS invoice_id, r.number, 'tryton-' || r.party AS customer_id, f.name AS legal_entity,
		CASE WHEN l.amount < 0 THEN 'credit_note' ELSE 'invoice' END AS kind, CASE state WHEN 'cancelled' THEN 'void' ELSE 'issued' END AS status, invoice_date,
		c.code AS currency, abs(l.amount)::numeric(14,2) AS total, ` + trytonUpdated + `
		FROM account_invoice r JOIN currency_currency c ON c.id = r.currency JOIN company_company o ON o.id = r.company JOIN party_party f ON f.id = o.party
		JOIN (SELECT invoice, sum(round(quantity::text::numeric * unit_price, 2)) AS amount FROM account_invoice_line WHERE type = 'line' GROUP BY 1) l ON l.invoice = r.id
		WHERE r.type = 'out' AND state IN ('posted', 'paid', 'cancelled') AND number IS NOT NULL`, sums: []string{"sum(total)", "sum(total) FILTER (WHERE kind = 'credit_note')"}},
}

// Lost if this fails: a firm with Tryton cannot fill the contracts without
// writing a program, or reports other hours and amounts than its ERP.
func TestTryton(t *testing.T) {
	asked(t)
	dir, err := trytonRoot.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, trytonTruth)
	a := &application{dir: dir, env: []string{
		"PGDATABASE=application", fmt.Sprintf("TRYTOND_DATABASE_URI=postgresql://postgres@127.0.0.1:%d/application", w.pg.Port),
	}}
	a.run(t, "tryton/make.sh", "sh", "-s")
	a.run(t, "tryton/first.py", "python3", "-")
	w.capture(t, "tryton")
	loaded := w.await(t)
	a.run(t, "tryton/second.py", "python3", "-")
	w.sees(t, loaded, w.await(t), map[string]int{"ps.time_entry": 1000 - 10, "ps.time_entry_costed": 1000 - 10, "ps.cost_rate": 0, "ps.invoice": 3})
	w.finds(t)
}
