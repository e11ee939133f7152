// What the warehouse should hold, said in SQL over the PSA's own tables,
// without any of the code that carries it there.

package truth

import (
	"fmt"
	"strings"

	"github.com/tallywire/tallywire/avro"
)

// query is one entity on both sides: the same columns, the first being the
// key, as text.
type query struct {
	entity     string
	columns    []string
	restricted []bool // not to be shown (invariant 13)
	psa        string // SELECT with those columns, in any order
	warehouse  string
}

// ordered selects all rows by key, in byte order on both sides; where is "" or
// a condition on the key.
func ordered(q *query, from, where string) string {
	return fmt.Sprintf(`SELECT %s FROM (%s) AS q %s ORDER BY %s COLLATE "C"`, strings.Join(q.columns, ", "), from, where, q.columns[0])
}

// psaEntities are the canonical entities as the PSA's tables give them.
var psaEntities = map[string]string{
	"ps.customer": `SELECT id::text AS customer_id, number, name, legal_entity, country, tax_id, email, active, updated_at FROM public.customer`,
	"ps.project": `SELECT id::text AS project_id, number, name, customer_id::text AS customer_id, legal_entity, currency::text AS currency, status, billing_type,
		start_date, end_date, budget_hours, updated_at FROM public.project`,
	"ps.resource":  `SELECT id::text AS resource_id, number, first_name, last_name, email, legal_entity, title, hired_on, left_on, active, updated_at FROM public.employee`,
	"ps.cost_rate": `SELECT employee_id || '/' || id AS cost_rate_id, employee_id::text AS resource_id, valid_from, valid_to, rate, currency::text AS currency, updated_at FROM public.cost_rate`,
	"ps.time_entry": `SELECT id::text AS time_entry_id, employee_id::text AS resource_id, project_id::text AS project_id, task_number, work_date, hours, billable, status, note, bill_rate,
		created_at, updated_at FROM public.time_entry`,
	"ps.invoice":           `SELECT id::text AS invoice_id, number, customer_id::text AS customer_id, legal_entity, kind, status, invoice_date, currency::text AS currency, total, updated_at FROM public.invoice`,
	"ps.invoice_line":      `SELECT id::text AS invoice_line_id, invoice_id::text AS invoice_id, project_id::text AS project_id, description, quantity, unit_price, amount FROM public.invoice_line`,
	"ps.time_entry_costed": costed,
}

// costed finds for each entry its project, the project's customer and the rate
// in force on the work date: valid_from <= d and (valid_to is null or d <
// valid_to); of several one in the project's currency, then the latest
// valid_from, then the highest id. One in another currency is none.
const costed = `SELECT t.id::text AS time_entry_id, t.employee_id::text AS resource_id, t.project_id::text AS project_id,
		p.number AS project_number, p.customer_id::text AS customer_id, c.name AS customer_name, p.legal_entity, p.currency::text AS currency,
		t.work_date, t.hours, t.billable, t.status,
		CASE WHEN r.currency = p.currency THEN r.employee_id || '/' || r.id END AS cost_rate_id, CASE WHEN r.currency = p.currency THEN r.rate END AS rate, w.cost, w.waiting_for, t.updated_at
	FROM public.time_entry t
	LEFT JOIN public.project p ON p.id = t.project_id
	LEFT JOIN public.customer c ON c.id = p.customer_id
	LEFT JOIN LATERAL (
		SELECT x.id, x.employee_id, x.rate, x.currency FROM public.cost_rate x
		 WHERE x.employee_id = t.employee_id AND x.valid_from <= t.work_date AND (x.valid_to IS NULL OR t.work_date < x.valid_to)
		 ORDER BY (x.currency = p.currency) IS TRUE DESC, x.valid_from DESC, x.id DESC LIMIT 1) r ON true
	CROSS JOIN LATERAL (SELECT CASE
		WHEN p.id IS NULL THEN 'project ' || t.project_id
		WHEN r.id IS NULL THEN 'cost_rate of resource ' || t.employee_id || ' on ' || to_char(t.work_date, 'YYYY-MM-DD')
		WHEN r.currency <> p.currency THEN 'cost_rate ' || t.employee_id || ', which does not agree: ref.currency == project.currency'
		WHEN c.id IS NULL THEN 'customer ' || p.customer_id
		END AS waiting_for) v
	CROSS JOIN LATERAL (SELECT v.waiting_for, CASE WHEN v.waiting_for IS NULL THEN (t.hours * r.rate)::numeric(24,10) END AS cost) w`

// margin by project, month and currency: cost by work date, revenue by invoice date;
// no cost and no margin while an approved entry of the month waits, and in no currency
// while one waits of which that is not known.
const margin = `SELECT m.project_id || '/' || m.month || COALESCE('/' || m.currency, '') AS key, p.legal_entity, m.currency, m.project_id::text AS project_id, p.number AS project_number, p.name AS project_name,
		p.customer_id::text AS customer_id, m.month, m.approved_hours, m.waiting_entries, m.waiting_hours, m.labour_cost, m.revenue,
		m.revenue - m.labour_cost AS margin, (m.revenue - m.labour_cost) / NULLIF(m.revenue, 0) * 100 AS margin_pct
	FROM (
		SELECT COALESCE(h.project_id, v.project_id) AS project_id, COALESCE(h.month, v.month) AS month, COALESCE(h.currency, v.currency) AS currency,
			COALESCE(h.hours, 0)::numeric(38,6) AS approved_hours, COALESCE(h.waiting, 0) AS waiting_entries, COALESCE(h.waiting_hours, 0)::numeric(38,6) AS waiting_hours,
			CASE WHEN COALESCE(h.waiting, 0) = 0 AND NOT EXISTS (SELECT FROM (` + costed + `) o WHERE o.status = 'approved' AND o.currency IS NULL
				AND o.project_id = COALESCE(h.project_id, v.project_id)::text AND date_trunc('month', o.work_date::timestamp)::date = COALESCE(h.month, v.month))
				THEN COALESCE(h.cost, 0)::numeric(38,10) END AS labour_cost,
			COALESCE(v.revenue, 0)::numeric(38,2) AS revenue
		FROM (
			SELECT project_id::bigint AS project_id, date_trunc('month', work_date::timestamp)::date AS month, currency, sum(hours) AS hours, sum(cost) AS cost,
				count(*) FILTER (WHERE waiting_for IS NOT NULL) AS waiting, sum(hours) FILTER (WHERE waiting_for IS NOT NULL) AS waiting_hours
			FROM (` + costed + `) e WHERE status = 'approved' GROUP BY 1, 2, 3
		) h FULL JOIN (
			SELECT l.project_id, date_trunc('month', i.invoice_date::timestamp)::date AS month, i.currency::text AS currency, sum(CASE WHEN i.kind = 'credit_note' THEN -l.amount ELSE l.amount END) AS revenue
			FROM public.invoice_line l JOIN public.invoice i ON i.id = l.invoice_id
			WHERE i.status = 'issued' AND i.invoice_date IS NOT NULL GROUP BY 1, 2, 3
		) v ON v.project_id = h.project_id AND v.month = h.month AND v.currency = h.currency
	) m LEFT JOIN public.project p ON p.id = m.project_id`

// Margin is the name of the margin view among the entities.
const Margin = "ps.margin_by_project_month"

var marginColumns = []string{
	"key", "legal_entity", "currency", "project_id", "project_number", "project_name", "customer_id", "month", "approved_hours",
	"waiting_entries", "waiting_hours", "labour_cost", "revenue", "margin", "margin_pct",
}

// Entities lists what is compared, in order.
var Entities = []string{"ps.customer", "ps.project", "ps.resource", "ps.cost_rate", "ps.time_entry", "ps.invoice", "ps.invoice_line", "ps.time_entry_costed", Margin}

func queryOf(entity string) (*query, error) {
	if entity == Margin {
		q := &query{
			entity: Margin, columns: marginColumns, psa: margin, restricted: make([]bool, len(marginColumns)),
			warehouse: "SELECT project_id || '/' || month || COALESCE('/' || currency, '') AS key, * FROM " + Margin,
		}
		for i, c := range marginColumns {
			q.restricted[i] = c == "labour_cost" || c == "margin" || c == "margin_pct"
		}
		return q, nil
	}
	contracts, err := avro.Pack()
	if err != nil {
		return nil, fmt.Errorf("reading the contracts: %w", err)
	}
	c, psa := contracts[entity], psaEntities[entity]
	if c == nil || psa == "" {
		return nil, fmt.Errorf("there is no entity %q to compare; there are %s", entity, strings.Join(Entities, ", "))
	}
	q := &query{entity: entity, psa: psa, warehouse: "SELECT * FROM " + entity}
	for _, f := range c.Fields {
		q.columns = append(q.columns, f.Name)
		q.restricted = append(q.restricted, f.Sensitivity == avro.Restricted)
	}
	return q, nil
}

// SQL is the SELECT over the PSA that gives an entity's rows, its columns in
// the order of the contract.
func SQL(entity string) (string, error) {
	q, err := queryOf(entity)
	if err != nil {
		return "", err
	}
	return ordered(q, q.psa, ""), nil
}
