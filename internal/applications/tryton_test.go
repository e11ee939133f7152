package applications

import (
	"fmt"
	"testing"
)

var trytonRoot = root{
	name: "tryton-7.0", suite: "trixie",
	install: `apt-get update -qq
apt-get install -y -qq --no-install-recommends tryton-server tryton-proteus tryton-modules-timesheet-cost tryton-modules-account-invoice tryton-modules-project-invoice python3-psycopg2
`,
}

const trytonUpdated = "coalesce(r.write_date, r.create_date) AT TIME ZONE 'UTC' AS updated_at"

// trytonTop joins the work of the tree that a timesheet_work w names, k, and the
// project above it: Tryton keeps the way from the top to each work, as a text.
const trytonTop = ` LEFT JOIN project_work k ON w.origin = 'project.work,' || k.id LEFT JOIN project_work top ON top.id = split_part(k.path, '/', 1)::int `

// trytonSold says of which project the line of an invoice is, by what was invoiced
// with it, or with the line that a credit note takes back.
const trytonSold = `(SELECT DISTINCT l.id AS line, split_part(k.path, '/', 1)::int AS project FROM account_invoice_line l JOIN (
		SELECT e.invoice_line AS line, substr(w.origin, 14)::int AS work FROM timesheet_line e JOIN timesheet_work w ON w.id = e.work WHERE w.origin LIKE 'project.work,%'
		UNION SELECT invoice_line, id FROM project_work UNION SELECT invoice_line, work FROM project_work_invoiced_progress
	) s ON s.line = l.id OR 'account.invoice.line,' || s.line = l.origin JOIN project_work k ON k.id = s.work)`

// trytonBooks are the lines of invoices as Tryton's accounting booked them: credit
// is revenue, in the currency of the company.
const trytonBooks = `(SELECT i.id AS invoice, split_part(m.origin, ',', 2)::int AS line, m.credit - m.debit AS amount, sum(m.credit - m.debit) OVER (PARTITION BY i.id) AS total
	FROM account_invoice i JOIN account_move_line m ON m.move = i.move AND m.origin LIKE 'account.invoice.line,%' WHERE i.type = 'out')`

// trytonTruth is Tryton's tables as SQL reads them.
var trytonTruth = map[string]truth{
	"ps.project": {rows: `SELECT 'tryton-' || r.id AS project_id, r.name AS number, r.name, coalesce('tryton-' || r.party, 'none') AS customer_id, f.name AS legal_entity, c.code AS currency,
		s.name AS status, project_invoice_method AS billing_type, NULL AS start_date, NULL AS end_date, NULL AS budget_hours, ` + trytonUpdated + `
		FROM project_work r JOIN project_work_status s ON s.id = r.status JOIN company_company o ON o.id = r.company JOIN party_party f ON f.id = o.party
		JOIN currency_currency c ON c.id = o.currency WHERE r.path = r.id || '/'`},
	"ps.time_entry": {rows: `SELECT 'tryton-' || r.id AS time_entry_id, 'tryton-' || employee AS resource_id, coalesce('tryton-' || top.id, 'none') AS project_id, work::text AS task_number, date AS work_date,
		` + halfEven("extract(epoch FROM duration) / 3600") + ` AS hours, true AS billable, 'approved' AS status, description AS note, NULL AS bill_rate,
		r.create_date AT TIME ZONE 'UTC' AS created_at, ` + trytonUpdated + ` FROM timesheet_line r JOIN timesheet_work w ON w.id = r.work` + trytonTop, sums: []string{"sum(hours)", "count(DISTINCT project_id)"}},
	"ps.time_entry_costed": {rows: `SELECT 'tryton-' || r.id AS time_entry_id, 'tryton-' || r.employee AS resource_id, coalesce('tryton-' || top.id, 'none') AS project_id, top.name AS project_number,
		'tryton-' || top.party AS customer_id, g.name AS customer_name, f.name AS legal_entity, c.code AS currency, r.date AS work_date, ` + halfEven("extract(epoch FROM duration) / 3600") + ` AS hours,
		true AS billable, 'approved' AS status, 'tryton-' || r.employee || '/' || p.id AS cost_rate_id, p.cost_price::numeric(12,4) AS rate,
		(` + halfEven("extract(epoch FROM duration) / 3600") + ` * p.cost_price)::numeric(24,10) AS cost, CASE WHEN p.id IS NULL THEN 'price of employee ' || r.employee || ' on ' || r.date END AS waiting_for,
		` + trytonUpdated + ` FROM timesheet_line r JOIN timesheet_work w ON w.id = r.work` + trytonTop + `LEFT JOIN party_party g ON g.id = top.party
		JOIN company_company o ON o.id = r.company JOIN party_party f ON f.id = o.party
		JOIN currency_currency c ON c.id = o.currency LEFT JOIN LATERAL (SELECT * FROM company_employee_cost_price p WHERE p.employee = r.employee AND p.date <= r.date
		ORDER BY date DESC, id DESC LIMIT 1) p ON true`, sums: []string{"sum(cost)", "count(waiting_for)", "count(customer_id)"}},
	"ps.invoice_line": {rows: `SELECT 'tryton-' || l.id AS invoice_line_id, 'tryton-' || l.invoice AS invoice_id, 'tryton-' || s.project AS project_id, l.description,
		(sign(b.total) * l.quantity::text::numeric)::numeric(16,6) AS quantity, l.unit_price::numeric(12,4) AS unit_price, (sign(b.total) * b.amount)::numeric(14,2) AS amount
		FROM account_invoice_line l JOIN ` + trytonSold + ` s ON s.line = l.id JOIN ` + trytonBooks + ` b ON b.line = l.id AND b.invoice = l.invoice`, sums: []string{"sum(amount)", "count(DISTINCT project_id)"}},
	marginView: margin(`jobs AS (SELECT 'tryton-' || r.id AS project_id, r.name AS project_number, r.name AS project_name, coalesce('tryton-' || r.party, 'none') AS customer_id, f.name AS legal_entity, c.code AS currency
			FROM project_work r JOIN company_company o ON o.id = r.company JOIN party_party f ON f.id = o.party JOIN currency_currency c ON c.id = o.currency WHERE r.path = r.id || '/'
			UNION ALL SELECT 'none', NULL, NULL, NULL, NULL, c.code FROM company_company o JOIN currency_currency c ON c.id = o.currency),
		entries AS (SELECT coalesce('tryton-' || top.id, 'none') AS project_id, r.date AS day, h.hours, h.hours * (SELECT cost_price FROM company_employee_cost_price p
			WHERE p.employee = r.employee AND p.date <= r.date ORDER BY date DESC, id DESC LIMIT 1) AS cost
			FROM timesheet_line r CROSS JOIN LATERAL (SELECT ` + halfEven("extract(epoch FROM r.duration) / 3600") + ` AS hours) h JOIN timesheet_work w ON w.id = r.work` + trytonTop + `),
		lines AS (SELECT 'tryton-' || s.project AS project_id, i.invoice_date AS day, b.amount FROM account_invoice i JOIN ` + trytonBooks + ` b ON b.invoice = i.id JOIN ` + trytonSold + ` s ON s.line = b.line
			WHERE i.state IN ('posted', 'paid'))`),
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
	w.through(t, trouble{
		kill:  "SELECT count(*) > 1800 FROM timesheet_line", // of 1800, and 1200 more
		flush: "SELECT EXISTS (SELECT FROM project_work c JOIN project_work p ON p.id = c.parent WHERE c.name = 'East arm' AND p.name <> 'Harbour wall, 2026')",
	}, func() error { return a.enter(t, "tryton/second.py", "python3", "-") })
	w.sees(t, loaded, w.await(t), map[string]int{
		"ps.project": 0, "ps.time_entry": 1200 - 10, "ps.time_entry_costed": 1200 - 10, "ps.cost_rate": 0, "ps.invoice": 3 + 4, "ps.invoice_line": 4, marginView: 1,
	})
	w.finds(t)
}
