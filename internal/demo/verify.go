// verify.go: the PSA against everything that was made of it. Both sides may
// move meanwhile: a row that differs is looked at again, and only what differs
// every time until the bound is a difference.

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/demo/truth"
)

// VerifyOptions name the sides.
type VerifyOptions struct {
	PSA, Warehouse, Control string // DSNs; Control "": nothing is parked
	ERP                     string // base URL of the demo's ERP; "": not compared
	GoLive                  time.Time
	Settle                  time.Duration // how long differing rows are looked at again; 0: one look
}

// Difference is one row that is not as the PSA says.
type Difference struct {
	Where string `json:"where"` // "ps.time_entry", "ps.margin_by_project_month", "erp.customers"
	Key   string `json:"key"`
	What  string `json:"what"`
}

// Compared is one table or set.
type Compared struct {
	Where       string `json:"where"`
	Rows        int64  `json:"rows"`              // compared
	Parked      int64  `json:"parked,omitempty"`  // left out: they wait for a person
	Settled     int64  `json:"settled,omitempty"` // differed at first, and not when looked at again
	Differences int64  `json:"differences"`
}

// Verification is what Verify found.
type Verification struct {
	Compared    []Compared   `json:"compared"`
	Rows        int64        `json:"rows"`
	Differences int64        `json:"differences"`
	Settled     int64        `json:"settled"`
	Seconds     float64      `json:"seconds"`
	Examples    []Difference `json:"examples"` // 50 at most
}

// OK reports whether both sides are the same.
func (v *Verification) OK() bool { return v.Differences == 0 }

const maxExamples = 50

// Verify compares. A difference is no error.
func Verify(ctx context.Context, o VerifyOptions) (*Verification, error) {
	began := time.Now()
	v := &Verification{Compared: []Compared{}, Examples: []Difference{}}
	if err := v.warehouse(ctx, o); err != nil {
		return nil, err
	}
	if o.ERP != "" {
		if err := v.ledger(ctx, o); err != nil {
			return nil, err
		}
	}
	for _, c := range v.Compared {
		v.Rows += c.Rows
		v.Differences += c.Differences
		v.Settled += c.Settled
	}
	v.Seconds = time.Since(began).Seconds()
	return v, nil
}

// example keeps a difference for the reader.
func (v *Verification) example(d Difference) {
	if len(v.Examples) < maxExamples {
		v.Examples = append(v.Examples, d)
	}
}

func (v *Verification) warehouse(ctx context.Context, o VerifyOptions) error {
	psa, err := pgxpool.New(ctx, o.PSA)
	if err != nil {
		return fmt.Errorf("connecting to the PSA: %w", err)
	}
	defer psa.Close()
	wh, err := pgxpool.New(ctx, o.Warehouse)
	if err != nil {
		return fmt.Errorf("connecting to the warehouse: %w", err)
	}
	defer wh.Close()
	r, err := truth.Compare(ctx, psa, wh, truth.Options{Settle: o.Settle, Keep: maxExamples})
	if err != nil {
		return err
	}
	for _, e := range r.Entities {
		v.Compared = append(v.Compared, Compared{Where: e.Entity, Rows: e.PSA, Differences: e.Differences, Settled: e.Settled})
	}
	for _, d := range r.Differences {
		what := fmt.Sprintf("PSA %s, warehouse %s", d.PSA, d.Warehouse)
		if d.Column != "" {
			what = d.Column + ": " + what
		}
		v.example(Difference{Where: d.Entity, Key: d.Key, What: what})
	}
	return nil
}

// ledger looks until nothing differs that differed every time before, or the
// bound is reached.
func (v *Verification) ledger(ctx context.Context, o VerifyOptions) error {
	end := time.Now().Add(o.Settle)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var suspect map[[2]string]bool
	for {
		compared, diffs, err := lookAtLedger(ctx, o)
		if err != nil {
			return err
		}
		still := map[[2]string]bool{}
		var left []Difference
		for _, d := range diffs {
			k := [2]string{d.Where, d.Key}
			if suspect == nil || suspect[k] {
				still[k] = true
				left = append(left, d)
			} // else it differs for the first time: on its way
		}
		if suspect != nil {
			v.Settled += int64(len(suspect) - len(still))
		}
		if len(still) > 0 && time.Now().Before(end) {
			suspect = still
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			continue
		}
		for i := range compared {
			for k := range still {
				if k[0] == compared[i].Where {
					compared[i].Differences++
				}
			}
		}
		v.Compared = append(v.Compared, compared...)
		for _, d := range left {
			v.example(d)
		}
		return nil
	}
}

// lookAtLedger compares the ledger once: first the ledger, then the PSA, so
// that what is posted in between is not missed but looked at again.
func lookAtLedger(ctx context.Context, o VerifyOptions) (compared []Compared, diffs []Difference, err error) {
	parked, err := parkedKeys(ctx, o.Control)
	if err != nil {
		return nil, nil, err
	}
	ledger, err := erp.FetchLedger(ctx, o.ERP)
	if err != nil {
		return nil, nil, err
	}
	psa, err := pgx.Connect(ctx, o.PSA)
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to the PSA: %w", err)
	}
	defer psa.Close(context.WithoutCancel(ctx))
	err = pgx.BeginTxFunc(ctx, psa, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for _, s := range ledgerSets {
			want, err := readWanted(ctx, tx, s, o.GoLive)
			if err != nil {
				return err
			}
			n, held, d := compareLedger(s, want, ledger[s.set], parked)
			compared = append(compared, Compared{Where: "erp." + s.set, Rows: n, Parked: held})
			diffs = append(diffs, d...)
		}
		return nil
	})
	return compared, diffs, err
}

// parkedKeys are topic and key of what the sinks have parked.
func parkedKeys(ctx context.Context, dsn string) (map[[2]string]bool, error) {
	out := map[[2]string]bool{}
	if dsn == "" {
		return out, nil
	}
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connecting to the control database: %w", err)
	}
	defer c.Close(context.WithoutCancel(ctx))
	rows, err := c.Query(ctx, `select topic, key from tallywire.parked where kind = 'sink'`)
	if err != nil {
		return nil, fmt.Errorf("reading what is parked: %w", err)
	}
	var topic, key string
	_, err = pgx.ForEachRow(rows, []any{&topic, &key}, func() error { out[[2]string{topic, key}] = true; return nil })
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table: nothing was ever parked
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is parked: %w", err)
	}
	return out, nil
}

// Print writes it for a person.
func (v *Verification) Print(w io.Writer) {
	fmt.Fprintf(w, "  %-34s %12s %8s %12s\n", "compared with the PSA", "rows", "parked", "differences")
	for _, c := range v.Compared {
		fmt.Fprintf(w, "  %-34s %12s %8d %12d\n", c.Where, thousands(c.Rows), c.Parked, c.Differences)
	}
	fmt.Fprintf(w, "\n  %s rows compared in %.1f s, %d differences\n", thousands(v.Rows), v.Seconds, v.Differences)
	for _, d := range v.Examples {
		fmt.Fprintf(w, "    %s %s: %s\n", d.Where, d.Key, d.What)
	}
	if int64(len(v.Examples)) < v.Differences {
		fmt.Fprintf(w, "    … and others\n")
	}
}
