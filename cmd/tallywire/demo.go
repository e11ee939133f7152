// demo.go: the demo and verify.

package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/build"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/demo"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

func (a *app) demoCmd() *cobra.Command {
	o := demo.DefaultOptions()
	goLive := o.GoLive.Format(time.DateOnly)
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a firm's PSA, the whole flow, a warehouse and an ERP in one process",
		Long: `demo runs everything in one process, under --state-dir, on 127.0.0.1: a PSA
(Postgres 17) with a seeded firm and a generator that works like its day, Kafka,
the schema registry, Redis, the pipeline, a warehouse (another Postgres), an
ERP that speaks Business Central's API, and a page that shows the flow.

Ctrl-C stops it cleanly; starting again resumes with nothing twice. With --for
it works so long, lets the flow drain, compares the PSA with the warehouse and
the ERP's ledger row by row, prints a report, and exits with 3 when anything
differs.

--kafka real and --redis real run Apache Kafka (needs Java 17; its jars are
fetched once with Maven) and redis-server instead of the embedded ones.`,
		Example: `  tallywire demo
  tallywire demo --for 60s
  tallywire demo --for 60s --output json
  tallywire demo --kafka real --redis real --rate 500
  tallywire demo --reset --page-port 18080`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := time.Parse(time.DateOnly, goLive)
			if err != nil {
				return usage{fmt.Errorf("--go-live is a date such as 2026-06-24, not %q", goLive)}
			}
			o.GoLive = t
			for flag, v := range map[string]string{"--kafka": o.Kafka, "--redis": o.Redis} {
				if v != "embedded" && v != "real" {
					return usage{fmt.Errorf("%s is embedded or real, not %q", flag, v)}
				}
			}
			if o.For > 0 && len(o.Without) > 0 {
				return usage{fmt.Errorf("--for compares everything: it does not go with --without")}
			}
			if o.Rate <= 0 {
				return usage{fmt.Errorf("--rate is above 0, not %v", o.Rate)}
			}
			o.Version, o.Say = build.Version(), a.out
			if a.json() {
				o.Say = a.err
			}
			ctx := cmd.Context()
			go func() { // ends with ctx: from then on a second Ctrl-C kills
				<-ctx.Done()
				a.unsignal()
			}()
			rep, err := demo.Run(ctx, o)
			if err != nil {
				return err
			}
			if rep == nil {
				return nil
			}
			if err := a.print(rep, func(w io.Writer) { rep.Print(w) }); err != nil {
				return err
			}
			if !rep.Verification.OK() {
				return exit(exitDiffer)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.StateDir, "state-dir", o.StateDir, "where everything is kept")
	f.StringVar(&o.Kafka, "kafka", o.Kafka, "embedded or real (Apache Kafka)")
	f.StringVar(&o.Redis, "redis", o.Redis, "embedded or real (redis-server)")
	f.Float64Var(&o.Rate, "rate", o.Rate, "changes per second that the generator is asked for")
	f.DurationVar(&o.For, "for", 0, "work so long, then drain, verify, report and end")
	f.DurationVar(&o.Drain, "drain", o.Drain, "how long draining may take")
	f.StringSliceVar(&o.Without, "without", nil, "leave these components out, by name: to replay one, whose group must be idle")
	f.BoolVar(&o.Reset, "reset", false, "start over: remove what an earlier demo left")
	f.StringVar(&goLive, "go-live", goLive, "first work date that the ERP gets; what is older is history")
	f.StringVar(&o.LogLevel, "log-level", o.LogLevel, "debug, info, warn or error")
	f.StringVar(&o.LogFile, "log-file", "", "where the log goes (default: tallywire.log in the state directory)")
	f.IntVar(&o.Ports.Page, "page-port", o.Ports.Page, "port of the page")
	f.IntVar(&o.Ports.Kafka, "kafka-port", o.Ports.Kafka, "port of Kafka")
	f.IntVar(&o.Ports.Registry, "registry-port", o.Ports.Registry, "port of the schema registry")
	f.IntVar(&o.Ports.PSA, "psa-port", o.Ports.PSA, "port of the PSA's Postgres")
	f.IntVar(&o.Ports.Warehouse, "warehouse-port", o.Ports.Warehouse, "port of the Postgres with warehouse and control database")
	f.IntVar(&o.Ports.ERP, "erp-port", o.Ports.ERP, "port of the ERP")
	return c
}

var errVerify = problem.Define("TW-VERIFY", problem.Halt,
	"The configuration does not name what verify compares.",
	"verify compares the demo's PSA: run it beside a running demo.")

func (a *app) verifyCmd() *cobra.Command {
	var settle time.Duration
	c := &cobra.Command{
		Use:   "verify",
		Short: "Compare the demo's PSA with the warehouse and the ERP's ledger, row by row",
		Long: `verify compares a running, moving demo: every row of the PSA's tables with the
warehouse, the margin recomputed from the PSA in SQL with the view, and the
ERP's ledger with the approved time. Rows that differ are looked at again until
they settle, for --settle at most; what then still differs is a difference, and
the exit code is 3. It knows the demo's tables; for other systems it is an
example of how to check.`,
		Example: "  tallywire verify\n  tallywire verify --settle 2m --output json",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			o, err := verifyOptions(cfg)
			if err != nil {
				return err
			}
			o.Settle = settle
			v, err := demo.Verify(cmd.Context(), o)
			if err != nil {
				return ended(cmd.Context(), err)
			}
			if err := a.print(v, func(w io.Writer) { v.Print(w) }); err != nil {
				return err
			}
			if !v.OK() {
				return exit(exitDiffer)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&settle, "settle", time.Minute, "how long differing rows are looked at again")
	return c
}

// verifyOptions finds the sides in the configuration.
func verifyOptions(cfg *config.Config) (demo.VerifyOptions, error) {
	o := demo.VerifyOptions{Control: cfg.Control.DSN.Reveal()}
	var errs []error
	dsn := func(cs config.Components, kind string) string {
		for _, c := range cs {
			if c.Type == kind {
				var d secret.DSN
				errs = append(errs, c.Lookup("dsn", &d))
				return d.Reveal()
			}
		}
		return ""
	}
	o.PSA, o.Warehouse = dsn(cfg.Sources, "postgres"), dsn(cfg.Sinks, "warehouse")
	for _, c := range cfg.Sinks {
		if c.Type == "rest" {
			errs = append(errs, c.Lookup("url", &o.ERP), c.Lookup("go_live", &o.GoLive))
		}
	}
	if o.PSA == "" || o.Warehouse == "" {
		errs = append(errs, errVerify.New("%s names no source of type postgres or no sink of type warehouse", cfg.File))
	}
	return o, errors.Join(errs...)
}
