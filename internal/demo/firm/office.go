// The generator's back office: sales, people, payroll and invoicing, with
// what makes a warehouse's life hard: customers that come after their
// projects, rates that change in retrospect, are removed and put back.

package firm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// recallOffice promises customers to the projects and rates to the people that
// have none. Only the first worker minds projects and invoices.
func (w *worker) recallOffice(ctx context.Context) error {
	rows, err := w.conn.Query(ctx, `SELECT e.id, e.legal_entity, COALESCE(max(r.valid_to), e.hired_on) FROM employee e LEFT JOIN cost_rate r ON r.employee_id = e.id
		WHERE e.active AND e.id % $1 = $2 GROUP BY e.id HAVING count(*) FILTER (WHERE r.valid_to IS NULL AND r.id IS NOT NULL) = 0 ORDER BY e.id`, w.g.o.Workers, w.n)
	if err != nil {
		return fmt.Errorf("reading who has no rate: %w", err)
	}
	var id int64
	var entity string
	var from time.Time
	if _, err := pgx.ForEachRow(rows, []any{&id, &entity, &from}, func() error {
		s := staff{id: id, hired: dayOf(from)}
		for i, e := range entities {
			if e.code == entity {
				s.entity = i
			}
		}
		w.busy[id] = true
		w.after(15*time.Second, 30*time.Second, false, func(ctx context.Context) error { return w.rateOfHire(ctx, s) })
		return nil
	}); err != nil {
		return fmt.Errorf("reading who has no rate: %w", err)
	}
	if w.n != 0 {
		return nil
	}
	if rows, err = w.conn.Query(ctx, "SELECT DISTINCT p.customer_id, p.legal_entity FROM project p WHERE NOT EXISTS (SELECT FROM customer c WHERE c.id = p.customer_id)"); err != nil {
		return fmt.Errorf("reading which projects have no customer: %w", err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&id, &entity}, func() error {
		customer, code := id, entity
		w.after(time.Second, 2*time.Second, true, func(ctx context.Context) error { return w.addCustomer(ctx, customer, code) })
		return nil
	}); err != nil {
		return fmt.Errorf("reading which projects have no customer: %w", err)
	}
	if rows, err = w.conn.Query(ctx, "SELECT id FROM invoice WHERE status = 'draft' ORDER BY id DESC LIMIT $1", poolMax); err != nil {
		return fmt.Errorf("reading draft invoices: %w", err)
	}
	if w.invoices, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
		return fmt.Errorf("reading draft invoices: %w", err)
	}
	return nil
}

// office does one transaction of the back office.
func (w *worker) office(ctx context.Context) error {
	switch n := w.rnd.IntN(100); {
	case n < 20:
		return w.changeRate(ctx)
	case n < 24:
		return w.removeRate(ctx)
	case w.n != 0:
		return w.enter(ctx, 1+w.rnd.IntN(8))
	case n < 50:
		return w.sell(ctx)
	case n < 56:
		return w.hire(ctx)
	case n < 60:
		return w.editMasterData(ctx)
	case n < 80:
		return w.writeInvoice(ctx, "invoice")
	case n < 93:
		return w.issueInvoice(ctx)
	}
	return w.writeInvoice(ctx, "credit_note")
}

// somebody is a random person of this worker, with a rate to work on.
func (w *worker) somebody() (staff, bool) {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	for range 20 {
		s := w.g.people[w.rnd.IntN(len(w.g.people))]
		if s.id%int64(w.g.o.Workers) == int64(w.n) && !w.busy[s.id] {
			return s, true
		}
	}
	return staff{}, false
}

type rateRow struct {
	id       int64
	from     time.Time
	to       *time.Time
	rate     string
	currency string
}

func (w *worker) latestRate(ctx context.Context, s staff) (r rateRow, found bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err = w.conn.QueryRow(ctx, "SELECT id, valid_from, valid_to, rate::text, currency::text FROM cost_rate WHERE employee_id = $1 ORDER BY valid_from DESC, id DESC LIMIT 1", s.id).
		Scan(&r.id, &r.from, &r.to, &r.rate, &r.currency)
	if errors.Is(err, pgx.ErrNoRows) {
		return r, false, nil
	}
	if err != nil {
		return r, false, fmt.Errorf("reading a person's rate: %w", err)
	}
	return r, true, nil
}

// changeRate raises a rate from a day in the past on: the one in force ends
// there. When it began only just, its amount is corrected in place.
func (w *worker) changeRate(ctx context.Context) error {
	s, ok := w.somebody()
	if !ok {
		return w.enter(ctx, 1)
	}
	r, found, err := w.latestRate(ctx, s)
	if err != nil || !found {
		return err
	}
	today := w.g.today()
	least := max(dayOf(r.from)+1, today-45)
	factor := fmt.Sprintf("1.%04d", 50+w.rnd.IntN(400))
	if least >= today || r.to != nil {
		return w.txn(ctx, RateChanged, statement{"UPDATE cost_rate SET rate = rate * $2::text::numeric, updated_at = now() WHERE id = $1", []any{r.id, factor}})
	}
	from := (least + day(w.rnd.IntN(int(today-least)))).time()
	return w.txn(ctx, RateChanged,
		statement{
			"INSERT INTO cost_rate SELECT $2, employee_id, $3, NULL, rate * $4::text::numeric, currency, now() FROM cost_rate WHERE id = $1",
			[]any{r.id, w.g.ids.costRate.Add(1), from, factor},
		},
		statement{"UPDATE cost_rate SET valid_to = $2, updated_at = now() WHERE id = $1", []any{r.id, from}})
}

// removeRate deletes a rate, as payroll does by mistake, and puts it back
// seconds later.
func (w *worker) removeRate(ctx context.Context) error {
	s, ok := w.somebody()
	if !ok {
		return w.enter(ctx, 1)
	}
	r, found, err := w.latestRate(ctx, s)
	if err != nil || !found {
		return err
	}
	if err := w.txn(ctx, RateRemoved, statement{"DELETE FROM cost_rate WHERE id = $1", []any{r.id}}); err != nil {
		return err
	}
	w.busy[s.id] = true
	w.after(2*time.Second, 4*time.Second, false, func(ctx context.Context) error {
		delete(w.busy, s.id)
		return w.txn(ctx, RatePutBack, statement{
			"INSERT INTO cost_rate VALUES ($1, $2, $3, $4, $5::text::numeric, $6, now())",
			[]any{r.id, s.id, r.from, r.to, r.rate, r.currency},
		})
	})
	return nil
}

// sell brings a project; half of the time its customer follows seconds later.
func (w *worker) sell(ctx context.Context) error {
	e := w.rnd.IntN(len(entities))
	ent := entities[e]
	id := w.g.ids.project.Add(1)
	w.g.mu.Lock()
	customer := w.g.clients[e][w.rnd.IntN(len(w.g.clients[e]))]
	w.g.mu.Unlock()
	fresh := w.rnd.IntN(2) == 0
	if fresh {
		customer = w.g.ids.customer.Add(1)
	}
	var numbers, names []string
	var billable []bool
	for n, name := range taskNames {
		numbers, names, billable = append(numbers, taskNumber(n)), append(names, name), append(billable, n != len(taskNames)-1)
	}
	err := w.txn(ctx, ProjectSold,
		statement{
			"INSERT INTO project VALUES ($1, $2, $3, $4, $5, $6, 'active', $7, $8, NULL, $9::int, now())",
			[]any{
				id, fmt.Sprintf("P%05d", id), projectName(int(id), customer), customer, ent.code, ent.currency,
				[]string{"time_and_materials", "fixed_fee"}[w.rnd.IntN(2)], w.g.today().time(), 100 + w.rnd.IntN(3000),
			},
		},
		statement{"INSERT INTO task SELECT $1, n, name, b FROM unnest($2::text[], $3::text[], $4::boolean[]) AS t(n, name, b)", []any{id, numbers, names, billable}})
	if err != nil {
		return err
	}
	w.g.mu.Lock()
	w.g.sold[e] = append(w.g.sold[e], job{id, customer, priceOf(id)})
	w.g.mu.Unlock()
	if fresh {
		w.after(time.Second, 3*time.Second, true, func(ctx context.Context) error { return w.addCustomer(ctx, customer, ent.code) })
	}
	return nil
}

func (w *worker) addCustomer(ctx context.Context, id int64, code string) error {
	e := 0
	for i := range entities {
		if entities[i].code == code {
			e = i
		}
	}
	err := w.txn(ctx, CustomerAdded, statement{
		"INSERT INTO customer VALUES ($1, $2, $3, $4, $5, NULL, $6, true, now()) ON CONFLICT (id) DO NOTHING",
		[]any{id, fmt.Sprintf("C%05d", id), customerName(int(id-1)) + fmt.Sprintf(" %d", id), code, entities[e].country, fmt.Sprintf("accounts@c%05d.example", id)},
	})
	if err == nil {
		w.g.mu.Lock()
		w.g.clients[e] = append(w.g.clients[e], id)
		w.g.mu.Unlock()
	}
	return err
}

// hire brings a person whose rate payroll enters later.
func (w *worker) hire(ctx context.Context) error {
	s := staff{id: w.own(&w.g.ids.employee), entity: w.rnd.IntN(len(entities)), level: w.rnd.IntN(3), hired: w.g.today().workday(-1)}
	err := w.txn(ctx, Hired, statement{
		"INSERT INTO employee VALUES ($1, $2, $3, $4, $5, $6, $7, $8, NULL, true, now())",
		[]any{
			s.id, fmt.Sprintf("E%05d", s.id), firstNames[w.rnd.IntN(len(firstNames))], lastNames[w.rnd.IntN(len(lastNames))],
			fmt.Sprintf("e%05d@haldenmoor.example", s.id), entities[s.entity].code, titles[s.level], s.hired.time(),
		},
	})
	if err != nil {
		return err
	}
	w.g.mu.Lock()
	w.g.addStaff(s)
	w.g.mu.Unlock()
	w.busy[s.id] = true
	w.after(5*time.Second, 10*time.Second, false, func(ctx context.Context) error { return w.rateOfHire(ctx, s) })
	return nil
}

func (w *worker) rateOfHire(ctx context.Context, s staff) error {
	delete(w.busy, s.id)
	return w.txn(ctx, RateOfHire, statement{
		"INSERT INTO cost_rate VALUES ($1, $2, $3, NULL, $4::bigint / 10000.0, $5, now())",
		[]any{w.g.ids.costRate.Add(1), s.id, s.hired.time(), baseRate(w.rnd, s.level), entities[s.entity].currency},
	})
}

// editMasterData renames a project, or moves a customer's mailbox.
func (w *worker) editMasterData(ctx context.Context) error {
	e := w.rnd.IntN(len(entities))
	w.g.mu.Lock()
	j := w.g.sold[e][w.rnd.IntN(len(w.g.sold[e]))]
	w.g.mu.Unlock()
	if w.rnd.IntN(2) == 0 {
		return w.txn(ctx, MasterDataEdited, statement{
			"UPDATE project SET name = $2, updated_at = now() WHERE id = $1",
			[]any{j.id, fmt.Sprintf("%s (phase %d)", projectName(int(j.id), j.customer), 2+w.rnd.IntN(8))},
		})
	}
	return w.txn(ctx, MasterDataEdited, statement{
		"UPDATE customer SET email = $2, updated_at = now() WHERE id = $1",
		[]any{j.customer, fmt.Sprintf("invoices.%d@c%05d.example", w.rnd.IntN(100), j.customer)},
	})
}

// writeInvoice writes a draft, or issues a credit note.
func (w *worker) writeInvoice(ctx context.Context, kind string) error {
	e := w.rnd.IntN(len(entities))
	w.g.mu.Lock()
	j := w.g.sold[e][w.rnd.IntN(len(w.g.sold[e]))]
	w.g.mu.Unlock()
	id := w.g.ids.invoice.Add(1)
	status, what, n := "draft", InvoiceWritten, 1+w.rnd.IntN(5)
	var date *time.Time
	if kind == "credit_note" {
		today := w.g.today().time()
		status, what, n, date = "issued", CreditNoteIssued, 1, &today
	}
	var lines, cents, quantities, prices []int64
	var texts []string
	total := int64(0)
	for range n {
		q, price := int64(1+w.rnd.IntN(160)), j.price+int64(w.rnd.IntN(levels))*j.price/5
		c := (q*price + 200) / 400
		lines, quantities, prices, cents = append(lines, w.g.ids.line.Add(1)), append(quantities, q*25), append(prices, price), append(cents, c)
		texts = append(texts, titles[w.rnd.IntN(len(titles))])
		total += c
	}
	err := w.txn(ctx, what,
		statement{
			"INSERT INTO invoice VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::bigint / 100.0, now())",
			[]any{id, invoiceNumber(kind, id), j.customer, entities[e].code, kind, status, date, entities[e].currency, total},
		},
		statement{
			"INSERT INTO invoice_line SELECT id, $1, $2, t, q / 100.0, p / 10000.0, c / 100.0 FROM unnest($3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[]) AS l(id, t, q, p, c)",
			[]any{id, j.id, lines, texts, quantities, prices, cents},
		})
	if err == nil && status == "draft" {
		w.invoices = append(w.invoices, id)
	}
	return err
}

func (w *worker) issueInvoice(ctx context.Context) error {
	if len(w.invoices) == 0 {
		return w.writeInvoice(ctx, "invoice")
	}
	ids := w.take(&w.invoices, 1+w.rnd.IntN(3))
	return w.txn(ctx, InvoiceIssued, statement{"UPDATE invoice SET status = 'issued', invoice_date = $2, updated_at = now() WHERE id = ANY($1) AND status = 'draft'", []any{ids, w.g.today().time()}})
}
