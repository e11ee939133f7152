// Command socket measures the walsender and the reader of its socket, and
// nothing behind them: each frame is counted and dropped. It reads backlogs and
// a live flow, eagerly (as any net.Conn is read) and with gathering, over each
// transport, and prints rows and CPU of both processes. main.go is the command
// line; world.go the server, its backlogs and the ways to it; measure.go one run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

type options struct {
	rows, runs int
	live       time.Duration
	over, out  string
}

func main() {
	if relayed() {
		return
	}
	var o options
	flag.IntVar(&o.rows, "rows", 500_000, "changes of each backlog")
	flag.IntVar(&o.runs, "runs", 3, "`times` that each is read, in turns")
	flag.DurationVar(&o.live, "live", 5*time.Second, "how long the live flow is followed; 0: not")
	flag.StringVar(&o.over, "over", "tcp,unix,tls,delay,veth", "transports")
	flag.StringVar(&o.out, "out", "", "`file` for the output, beside the terminal")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := o.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "socket:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) (err error) {
	out := io.Writer(os.Stdout)
	if o.out != "" {
		f, err := os.Create(o.out)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = io.MultiWriter(out, f)
	}
	w, err := newWorld(ctx, strings.Split(o.over, ","), o.rows)
	if w != nil {
		defer func() { err = errors.Join(err, w.close()) }()
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Made by `go run ./benchmarks/socket` on %s, %d CPUs, %s, Postgres %s.\n", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version(), w.pg.Version)
	fmt.Fprintf(out, "Backlogs of %d changes, binary: A in transactions of 1,000 inserts, B of 1 to 3 changes. Medians of %d runs.\n", o.rows, o.runs)
	fmt.Fprintf(out, "CPU s per million changes; the reader's without the forwarder of delay. KiB of a bite: what one read of the kernel gave.\n\n")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "backlog\tover\treader\tchanges/s\t(range)\tCPU walsender\tCPU reader\tKiB of a bite\t")
	for _, b := range []string{"a", "b"} {
		for _, over := range w.ways {
			got := map[bool][]result{}
			for range o.runs {
				for _, gather := range []bool{false, true} {
					r, err := w.read(ctx, over, b, gather)
					if err != nil {
						return fmt.Errorf("reading backlog %s over %s (gathering: %v): %w", b, over.name, gather, err)
					}
					got[gather] = append(got[gather], r)
				}
			}
			for _, gather := range []bool{false, true} {
				rs := got[gather]
				per := func(f func(result) float64) []float64 {
					var v []float64
					for _, r := range rs {
						v = append(v, f(r))
					}
					slices.Sort(v)
					return v
				}
				rate := per(func(r result) float64 { return float64(r.changes) / r.took.Seconds() })
				mid := func(f func(result) float64) float64 { return per(f)[len(rs)/2] }
				bite := "-"
				if gather {
					bite = fmt.Sprintf("%.0f", mid(func(r result) float64 { return float64(r.counts.Octets) / float64(max(r.counts.Bites, 1)) / 1024 }))
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%.0fk\t%.0f-%.0fk\t%.1f\t%.2f\t%s\t\n", strings.ToUpper(b), over.name, kind(gather),
					rate[len(rs)/2]/1e3, rate[0]/1e3, rate[len(rs)-1]/1e3,
					mid(func(r result) float64 { return r.sender.Seconds() / float64(r.changes) * 1e6 }),
					mid(func(r result) float64 { return r.self.Seconds() / float64(r.changes) * 1e6 }), bite)
			}
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if o.live == 0 {
		return nil
	}
	fmt.Fprintf(out, "\nA live flow, transactions of 5 inserts, followed for %s: clock read in the INSERT until the reader has the row.\n\n", o.live)
	t = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "transactions/s\tover\treader\trows/s\tp50 ms\tp95\tp99\tCPU % walsender\tCPU % reader\t")
	for _, rate := range []int{20, 1000, 5000} {
		for _, over := range w.ways {
			for _, gather := range []bool{false, true} {
				r, err := w.follow(ctx, over, rate, o.live, gather)
				if err != nil {
					return fmt.Errorf("following %d transactions a second over %s (gathering: %v): %w", rate, over.name, gather, err)
				}
				ms := func(q float64) float64 { return float64(r.late[int(q*float64(len(r.late)-1))].Microseconds()) / 1e3 }
				fmt.Fprintf(t, "%d\t%s\t%s\t%.0f\t%.2f\t%.2f\t%.2f\t%.1f\t%.1f\t\n", rate, over.name, kind(gather), float64(r.changes)/r.took.Seconds(),
					ms(.5), ms(.95), ms(.99), r.sender.Seconds()/r.took.Seconds()*100, r.self.Seconds()/r.took.Seconds()*100)
			}
		}
	}
	return t.Flush()
}

func kind(gather bool) string {
	if gather {
		return "gathering"
	}
	return "eager"
}
