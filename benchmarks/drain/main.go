// Command drain measures the whole flow: a backlog of changes in the PSA is
// there before tallywire starts, and the clock runs until the warehouse has
// them all. It does so on the embedded parts (kfake, miniredis) and on real
// ones (Apache Kafka, redis-server), several times each, checks that PSA and
// warehouse then hold the same, and writes a report. main.go is the command
// line; world.go the servers; measure.go the clock; parts.go where the time goes; report.go the report.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"

	sections "github.com/tallywire/tallywire/benchmarks/internal/report"
	// What the configuration names.
	_ "github.com/tallywire/tallywire/sinks/warehouse"
	_ "github.com/tallywire/tallywire/sources/postgres"
	_ "github.com/tallywire/tallywire/transforms/join"
	_ "github.com/tallywire/tallywire/transforms/mapping"
)

type options struct {
	runs    int
	changes int64
	parts   string
	out     string
	profile string
	log     string
	command string
}

func main() {
	var o options
	flag.IntVar(&o.runs, "runs", 5, "`times` that the backlog is drained, on each kind of parts")
	flag.Int64Var(&o.changes, "changes", 200_000, "changes of a backlog")
	flag.StringVar(&o.parts, "parts", "embedded,real", "kinds of parts to run on")
	flag.StringVar(&o.out, "out", "", "`file` whose section \"drain\" the report becomes; none: only the terminal")
	flag.StringVar(&o.profile, "cpuprofile", "", "`file` for a CPU profile of the drains")
	flag.StringVar(&o.log, "log", "", "`file` for tallywire's log")
	flag.StringVar(&o.command, "command", "go run ./benchmarks/drain", "what the report says it was made with")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := o.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "drain:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) (err error) {
	if o.runs < 1 || o.changes < 1 {
		return fmt.Errorf("-runs and -changes begin at 1")
	}
	log := slog.New(slog.DiscardHandler)
	if o.log != "" {
		f, err := os.Create(o.log)
		if err != nil {
			return err
		}
		defer f.Close()
		log = slog.New(slog.NewTextHandler(f, nil))
	}
	rep := &report{o: o, machine: machine(), versions: versions(ctx, o.parts)}
	for _, kind := range strings.Split(o.parts, ",") {
		if kind != "embedded" && kind != "real" {
			return fmt.Errorf("-parts: %q is neither embedded nor real", kind)
		}
		res, err := o.measure(ctx, kind, log)
		if err != nil {
			return fmt.Errorf("on %s parts: %w", kind, err)
		}
		rep.results = append(rep.results, res)
	}
	text := rep.text()
	fmt.Print("\n" + text)
	if o.out == "" {
		return nil
	}
	return sections.Replace(o.out, "drain", text)
}

// measure drains on one kind of parts.
func (o *options) measure(ctx context.Context, kind string, log *slog.Logger) (res *result, err error) {
	dir, err := os.MkdirTemp("", "tallywire-drain")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Printf("%s parts: starting the servers and seeding the firm …\n", kind)
	w, err := newWorld(ctx, kind, dir, log)
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return nil, err
	}
	var profile *os.File
	if o.profile != "" {
		name := strings.TrimSuffix(o.profile, filepath.Ext(o.profile)) + "-" + kind + filepath.Ext(o.profile)
		if profile, err = os.Create(name); err != nil {
			return nil, err
		}
		defer profile.Close()
	}
	res = &result{kind: kind}
	if res.load, err = w.timed(ctx, w.rows, nil); err != nil {
		return nil, fmt.Errorf("loading the firm: %w", err)
	}
	fmt.Printf("  initial load: %s\n", res.load)
	if w.profiled = profile != nil; w.profiled {
		if err := pprof.StartCPUProfile(profile); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	for n := range o.runs {
		r, err := w.timed(ctx, 0, w.backlog(o.changes, n))
		if err != nil {
			return nil, fmt.Errorf("run %d: %w", n+1, err)
		}
		fmt.Printf("  run %d: %s\n", n+1, r)
		res.runs = append(res.runs, r)
	}
	if res.compared, err = w.verify(ctx); err != nil {
		return nil, err
	}
	fmt.Printf("  PSA and warehouse compared: %d rows, no difference\n", res.compared)
	return res, nil
}
