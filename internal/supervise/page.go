// page.go: what the page reads from the control database and the warehouse.

package supervise

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/dial"
	"github.com/tallywire/tallywire/internal/secret"
)

func parkedFunc(pool *pgxpool.Pool) func(context.Context, int) ([]console.Parked, int, error) {
	if pool == nil {
		return nil
	}
	store := control.NewParked(pool)
	return func(ctx context.Context, limit int) ([]console.Parked, int, error) {
		ps, err := store.List(ctx, control.Filter{Limit: limit})
		if err != nil {
			return nil, 0, err
		}
		var n int
		if err := pool.QueryRow(ctx, "select count(*) from tallywire.parked where waits_for = ''").Scan(&n); err != nil {
			return nil, 0, fmt.Errorf("counting parked records: %w", err)
		}
		out := make([]console.Parked, len(ps))
		for i, p := range ps {
			out[i] = console.Parked{
				Stage: p.Stage, Topic: p.Topic, Key: p.Key, Code: p.Code, Reason: p.Reason, Remedy: p.Remedy,
				WaitsFor: p.WaitsFor, Attempts: p.Attempts, Since: p.FirstAt,
			}
		}
		return out, n, nil
	}
}

const marginRows = 14

// wires are who reads and writes what, as configured. Which tables a source
// captures is known when it runs; its topics all start with its name.
func (p *Pipeline) wires() []console.Wires {
	var out []console.Wires
	for _, s := range p.Sources {
		out = append(out, console.Wires{Kind: "source", Name: s.Name, Writes: []string{s.Name + "."}})
	}
	for _, t := range p.Transforms {
		out = append(out, console.Wires{Kind: "transform", Name: t.Name, Reads: append(append([]string(nil), t.Topics...), t.CoPartitioned...), Writes: t.Outputs})
	}
	for _, s := range p.Sinks {
		out = append(out, console.Wires{Kind: "sink", Name: s.Name, Reads: s.Topics})
	}
	return out
}

// openMargin reads ps.margin_by_project_month of the first warehouse sink. It
// takes the role that may see what is asked for and no more: tallywire_cost for
// labour cost and margin, tallywire_reader for all else (invariant 13).
func openMargin(cfg *config.Config, costs bool) (func(context.Context, string) (*console.Margin, error), func()) {
	dsn := ""
	for _, s := range cfg.Sinks {
		if s.Type == "warehouse" {
			var d secret.DSN
			if err := s.Lookup("dsn", &d); err == nil {
				dsn = d.Reveal()
			}
			break
		}
	}
	if dsn == "" {
		return nil, func() {}
	}
	pc, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, func() {} // the sink itself tells what is wrong with it
	}
	dial.Postgres(&pc.ConnConfig.Config)
	pc.MaxConns = 2
	pc.ConnConfig.RuntimeParams["application_name"] = "tallywire page"
	pc.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	pool, err := pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		return nil, func() {}
	}
	return func(ctx context.Context, month string) (m *console.Margin, err error) {
		err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			m, err = margin(ctx, tx, month, costs)
			return err
		})
		return m, err
	}, pool.Close
}

func margin(ctx context.Context, tx pgx.Tx, month string, costs bool) (*console.Margin, error) {
	role, cols := "tallywire_reader", "null::text, null::text, null::text"
	if costs {
		role = "tallywire_cost"
		cols = "round(labour_cost, 2)::text, round(margin, 2)::text, round(margin_pct, 1)::text"
	}
	if _, err := tx.Exec(ctx, "set local role "+role); err != nil {
		return nil, fmt.Errorf("taking the role %s: %w", role, err)
	}
	rows, err := tx.Query(ctx, `select to_char(month, 'YYYY-MM'), coalesce(sum(approved_hours), 0)::float8 from ps.margin_by_project_month group by month order by month desc limit 12`)
	if err != nil {
		return nil, fmt.Errorf("reading the months of the margin: %w", err)
	}
	out := &console.Margin{Costs: costs}
	type worked struct {
		Month string
		Hours float64
	}
	months, err := pgx.CollectRows(rows, pgx.RowToStructByPos[worked])
	if err != nil {
		return nil, fmt.Errorf("reading the months of the margin: %w", err)
	}
	if len(months) == 0 {
		return out, nil
	}
	most := 0.0
	for _, m := range months {
		out.Months = append(out.Months, m.Month)
		most = max(most, m.Hours)
	}
	// The newest month that is well under way; one that has just begun, or has
	// invoices dated ahead, tells little of a margin.
	for _, m := range slices.Backward(months) {
		if m.Hours*4 >= most {
			out.Month = m.Month
		}
	}
	for _, m := range out.Months {
		if m == month {
			out.Month = m
		}
	}
	first, err := time.Parse("2006-01", out.Month)
	if err != nil {
		return nil, fmt.Errorf("BUG: month %q: %w", out.Month, err)
	}
	rows, err = tx.Query(ctx, `select coalesce(legal_entity,''), coalesce(currency,''), coalesce(project_number,''), coalesce(project_name,'project '||project_id),
  round(coalesce(approved_hours,0), 2)::text, coalesce(waiting_entries,0), round(coalesce(revenue,0), 2)::text, `+cols+`, count(*) over ()
from ps.margin_by_project_month where month = $1 order by revenue desc nulls last, approved_hours desc nulls last, project_id, currency limit $2`, first, marginRows)
	if err != nil {
		return nil, fmt.Errorf("reading the margin: %w", err)
	}
	out.Rows, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (console.MarginRow, error) {
		var (
			m                 console.MarginRow
			cost, margin, pct *string
		)
		err := r.Scan(&m.LegalEntity, &m.Currency, &m.ProjectNumber, &m.ProjectName, &m.Hours, &m.Waiting, &m.Revenue, &cost, &margin, &pct, &out.Total)
		m.Cost, m.Margin, m.Pct = orEmpty(cost), orEmpty(margin), orEmpty(pct)
		return m, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the margin: %w", err)
	}
	return out, nil
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
