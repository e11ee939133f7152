// reload.go: tables of a source are read anew, beside its stream.

package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline/ingest"
)

var errNoReload = problem.Define("TW-RELOAD-SOURCE", problem.Halt,
	"There is no such source, or it cannot read tables anew.",
	"Use the name of a Postgres source in the configuration.")

// reloadable is a source that can read tables anew while it runs.
type reloadable interface {
	// PlanReload gives what the source is to be asked, and of each table that the
	// patterns select about how many rows it would read; -1: not known.
	PlanReload(ctx context.Context, patterns []string, where string, sweep bool) (ask []byte, rows map[string]int64, err error)
}

type reloadFlags struct {
	where string
	sweep bool
	yes   bool
	wait  time.Duration
}

func (a *app) reloadCmd() *cobra.Command {
	f := reloadFlags{}
	c := &cobra.Command{
		Use:   "reload SOURCE [TABLE…]",
		Short: "Read tables of a source anew, beside its stream",
		Long: `reload has a Postgres source read the rows of tables again and send them to
their topics, while it goes on with the stream: rows of before a table was
published, the value of a column that was added with a default, or rows that
somebody has deleted from a topic. Without --yes it only shows what would be read.

TABLE is schema.table, with * for any run of characters; without one it is all
tables of the source. Rows are read in chunks of the table's key, half of the
time at most, and are held against the changes that the stream delivers
meanwhile: what is newer counts. How far it is lies in Kafka, with the rows: after
a crash it goes on where it was. A row comes as an "r", whether or not it is in
its topic already.

What went at the source while nobody looked stays, such as the rows of a partition
that was detached or truncated by itself, or of a table that was dropped and made
again. With --sweep it ends: once a table is read, all that was made of rows that
came before and not since is deleted, as if each had been deleted at the source.
Whatever is read downstream of it deletes it, too, so look first at what is gone.
Rows that are parked are there and did not come: nothing is deleted before they are
mended or discarded.

A source that does not run begins with it when it does. "tallywire status" shows
how far it is.`,
		Example: `  tallywire reload psa public.invoice                     # shows what would happen
  tallywire reload psa public.invoice --yes
  tallywire reload psa "public.module_*" --yes
  tallywire reload psa public.ledger --sweep --yes          # deletes what is gone
  tallywire reload psa public.time_entry --where "work_date >= '2026-11-01'" --yes`,
		Args: func(_ *cobra.Command, args []string) error {
			if f.sweep && f.where != "" {
				return usage{fmt.Errorf("--sweep wants all rows of a table, so no --where\nsee: tallywire reload --help")}
			}
			if len(args) == 0 {
				return usage{fmt.Errorf("want one SOURCE and its tables\nsee: tallywire reload --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.reload(cmd.Context(), args[0], args[1:], f)
		},
	}
	c.Flags().StringVar(&f.where, "where", "", "only rows for which this SQL condition is true")
	c.Flags().BoolVar(&f.sweep, "sweep", false, "end what was made of rows that are not in the table any more")
	c.Flags().BoolVar(&f.yes, "yes", false, "do it")
	c.Flags().DurationVar(&f.wait, "wait", 10*time.Second, "for how long to wait for the source to take it up; 0: not at all")
	return c
}

func (a *app) reload(ctx context.Context, name string, tables []string, f reloadFlags) error {
	cfg, err := a.load()
	if err != nil {
		return err
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		return err
	}
	var source reloadable
	for _, s := range p.Sources {
		if s.Name == name {
			source, _ = s.Source.(reloadable)
		}
	}
	if source == nil {
		return errNoReload.New("%q is no source that can read tables anew", name)
	}
	if len(tables) == 0 {
		tables = []string{"*"}
	}
	ask, rows, err := source.PlanReload(ctx, tables, f.where, f.sweep)
	if err != nil {
		return err
	}
	id, taken := "", false
	if f.yes {
		kc, err := cluster(ctx, cfg)
		if err != nil {
			return err
		}
		defer kc.Close()
		if id, err = ingest.Ask(ctx, kc, name, ask); err != nil {
			return err
		}
		if taken, err = answered(ctx, kc, name, id, f.wait); err != nil {
			return err
		}
	}
	return a.print(map[string]any{"done": f.yes, "request": id, "taken_up": taken, "tables": rows}, func(w io.Writer) {
		fmt.Fprintln(w, "TABLE\tROWS, ABOUT")
		for _, t := range slices.Sorted(maps.Keys(rows)) {
			n := "-"
			if rows[t] >= 0 {
				n = strconv.FormatInt(rows[t], 10)
			}
			fmt.Fprintf(w, "%s\t%s\n", t, n)
		}
		if f.sweep {
			fmt.Fprintln(w, "\nwhat was made of rows that are not there any more is deleted when a table is read")
		}
		switch {
		case !f.yes:
			fmt.Fprintln(w, "\nnothing was done; --yes reads them anew")
		case taken:
			fmt.Fprintf(w, "\n%s reads them anew; tallywire status shows how far it is\n", name)
		default:
			fmt.Fprintf(w, "\n%s is asked for it, and has not taken it up yet: it does when it runs\n", name)
		}
	})
}
