// The generator's people and their timesheets: enter, edit, submit, approve,
// reject, enter again.

package firm

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const poolMax = 50_000 // ids of a state that a worker remembers

// recall reads the entries that wait for somebody, and promises what an
// earlier Run, or a lost session, left undone.
func (w *worker) recall(ctx context.Context) error {
	w.drafts, w.submitted, w.rejected, w.invoices = w.drafts[:0], w.submitted[:0], w.rejected[:0], w.invoices[:0]
	w.later, w.busy = nil, map[int64]bool{}
	rows, err := w.conn.Query(ctx, "SELECT id, status FROM time_entry WHERE status <> 'approved' AND id % $1 = $2 ORDER BY id DESC LIMIT $3", w.g.o.Workers, w.n, poolMax)
	if err != nil {
		return fmt.Errorf("reading open entries: %w", err)
	}
	var id int64
	var status string
	if _, err := pgx.ForEachRow(rows, []any{&id, &status}, func() error {
		switch status {
		case "draft":
			w.drafts = append(w.drafts, id)
		case "submitted":
			w.submitted = append(w.submitted, id)
		default:
			w.rejected = append(w.rejected, id)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("reading open entries: %w", err)
	}
	return w.recallOffice(ctx)
}

// act does one transaction of everyday work.
func (w *worker) act(ctx context.Context) error {
	var n int
	switch d := w.rnd.IntN(10); {
	case d < 6:
		n = 1 + w.rnd.IntN(3)
	case d < 9:
		n = 4 + w.rnd.IntN(22)
	default:
		n = 26 + w.rnd.IntN(maxTxn-25)
	}
	if err := w.pace(ctx); err != nil {
		return err
	}
	what := w.rnd.IntN(1000)
	switch {
	case len(w.drafts) > poolMax/2:
		what = 500 // submit
	case len(w.submitted) > poolMax/2:
		what = 700 // approve
	}
	switch {
	case what < 350:
		return w.enter(ctx, n)
	case what < 480 && len(w.drafts) > 0:
		return w.edit(ctx, n)
	case what < 690 && len(w.drafts) > 0:
		return w.move(ctx, Submitted, &w.drafts, &w.submitted, n, "draft", "submitted")
	case what < 860 && len(w.submitted) > 0:
		return w.move(ctx, Approved, &w.submitted, nil, n, "submitted", "approved")
	case what < 905 && len(w.submitted) > 0:
		return w.move(ctx, Rejected, &w.submitted, &w.rejected, min(n, 10), "submitted", "rejected")
	case what < 932 && len(w.rejected) > 0:
		return w.reenter(ctx, n)
	case what < 940 && len(w.drafts) > 0:
		return w.discard(ctx, min(n, 5))
	case what >= 940:
		return w.office(ctx)
	}
	return w.enter(ctx, n)
}

// take removes up to n random ids from a pool.
func (w *worker) take(pool *[]int64, n int) []int64 {
	p := *pool
	n = min(n, len(p))
	for i := range n {
		j := w.rnd.IntN(len(p) - i)
		p[j], p[len(p)-1-i] = p[len(p)-1-i], p[j]
	}
	out := append([]int64(nil), p[len(p)-n:]...)
	*pool = p[:len(p)-n]
	return out
}

func (w *worker) note() *string {
	switch n := w.rnd.IntN(300); {
	case n == 0: // so long that Postgres keeps it out of line: minutes of a meeting
		b := make([]byte, 3000+w.rnd.IntN(4000))
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ."[w.rnd.IntN(64)]
		}
		s := string(b)
		return &s
	case n < 100:
		return &noteTexts[w.rnd.IntN(len(noteTexts))]
	}
	return nil
}

func (w *worker) enter(ctx context.Context, n int) error {
	var ids, people, projects, prices []int64
	var tasks []string
	var dates, quarters []int32
	var billable []bool
	var notes []*string
	today := w.g.today()
	w.g.mu.Lock()
	for range n {
		p := w.g.people[w.rnd.IntN(len(w.g.people))]
		jobs := w.g.sold[p.entity]
		j := jobs[w.rnd.IntN(len(jobs))]
		d := today
		for back := w.rnd.IntN(4); back > 0 && d > p.hired; back-- {
			d = d.workday(-1)
		}
		task := w.rnd.IntN(len(taskNames))
		ids = append(ids, w.own(&w.g.ids.entry))
		people, projects, tasks = append(people, p.id), append(projects, j.id), append(tasks, taskNumber(task))
		dates, quarters = append(dates, int32(d)), append(quarters, int32(1+w.rnd.IntN(20)))
		billable, notes = append(billable, task != len(taskNames)-1), append(notes, w.note())
		prices = append(prices, j.price+int64(p.level)*j.price/5)
	}
	w.g.mu.Unlock()
	err := w.txn(ctx, Entered, statement{
		`INSERT INTO time_entry
		SELECT id, person, project, task, date '1970-01-01' + d, q * 0.25, billable, 'draft', note, CASE WHEN billable THEN price / 10000.0 END, now(), now()
		FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::int[], $6::int[], $7::boolean[], $8::text[], $9::bigint[])
		  AS e(id, person, project, task, d, q, billable, note, price)`,
		[]any{ids, people, projects, tasks, dates, quarters, billable, notes, prices},
	})
	if err == nil {
		w.drafts = append(w.drafts, ids...)
	}
	return err
}

func (w *worker) edit(ctx context.Context, n int) error {
	ids := w.take(&w.drafts, n)
	w.drafts = append(w.drafts, ids...)
	return w.rewrite(ctx, Edited, ids, "draft")
}

func (w *worker) reenter(ctx context.Context, n int) error {
	ids := w.take(&w.rejected, n)
	err := w.rewrite(ctx, Reentered, ids, "rejected")
	if err == nil {
		w.drafts = append(w.drafts, ids...)
	}
	return err
}

func (w *worker) rewrite(ctx context.Context, kind Kind, ids []int64, from string) error {
	quarters, notes, keep := make([]int32, len(ids)), make([]*string, len(ids)), make([]bool, len(ids))
	for i := range ids {
		quarters[i], notes[i], keep[i] = int32(1+w.rnd.IntN(24)), w.note(), w.rnd.IntN(2) == 0
	}
	return w.txn(ctx, kind, statement{`UPDATE time_entry t SET status = 'draft', hours = e.q * 0.25,
		note = CASE WHEN e.keep THEN t.note ELSE e.note END, updated_at = now()
		FROM unnest($1::bigint[], $2::int[], $3::text[], $4::boolean[]) AS e(id, q, note, keep)
		WHERE t.id = e.id AND t.status = $5`, []any{ids, quarters, notes, keep, from}})
}

// move takes entries from one status to the next; nil: they are done with.
func (w *worker) move(ctx context.Context, kind Kind, from, to *[]int64, n int, was, is string) error {
	ids := w.take(from, n)
	err := w.txn(ctx, kind, statement{"UPDATE time_entry SET status = $2, updated_at = now() WHERE id = ANY($1) AND status = $3", []any{ids, is, was}})
	if err == nil && to != nil {
		*to = append(*to, ids...)
	}
	return err
}

func (w *worker) discard(ctx context.Context, n int) error {
	return w.txn(ctx, Deleted, statement{"DELETE FROM time_entry WHERE id = ANY($1) AND status = 'draft'", []any{w.take(&w.drafts, n)}})
}
