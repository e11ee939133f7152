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
	"ps.cost_rate": {rows: `SELECT 'tryton-' || employee || '/' || id AS cost_rate_id, 'tryton-' || employee AS resource_id, date AS valid_from, NULL AS valid_to,
		cost_price::numeric(12,4) AS rate, 'EUR' AS currency, ` + trytonUpdated + ` FROM company_employee_cost_price r`, sums: []string{"sum(rate)"}},
	"ps.invoice": {rows: `SELECT 'tryton-' || r.id AS invoice_id, r.number, 'tryton-' || r.party AS customer_id, 'FIRM' AS legal_entity,
		CASE WHEN l.amount < 0 THEN 'credit_note' ELSE 'invoice' END AS kind, CASE state WHEN 'cancelled' THEN 'void' ELSE 'issued' END AS status, invoice_date,
		c.code AS currency, abs(l.amount)::numeric(14,2) AS total, ` + trytonUpdated + `
		FROM account_invoice r JOIN currency_currency c ON c.id = r.currency
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
	if _, err := w.from.Exec(t.Context(), "ALTER TABLE company_employee_cost_price REPLICA IDENTITY FULL"); err != nil { // as its file says
		t.Fatal(err)
	}
	w.capture(t, "tryton.yml")
	loaded := w.await(t)
	a.run(t, "tryton/second.py", "python3", "-")
	w.sees(t, loaded, w.await(t), map[string]int{"ps.time_entry": 1000 - 10, "ps.cost_rate": 0, "ps.invoice": 3})
	w.finds(t)
}
