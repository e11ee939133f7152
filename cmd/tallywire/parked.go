// parked.go: what was taken out of the flow, and back into it.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline/parked"
)

func (a *app) parkedCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "parked",
		Short: "Show and retry records that were taken out of the flow",
		Long: `A record that a stage or a far side refuses is parked with its reason; what
depends on it waits behind it. Mend the cause (in the PSA, mostly: the newer
version replaces the parked one by itself), or retry when the far side was the
cause.`,
		Args: none,
	}
	c.AddCommand(a.parkedListCmd(), a.parkedRetryCmd(), a.parkedDiscardCmd())
	return c
}

type parkedLine struct {
	Stage     string    `json:"stage"`
	Kind      string    `json:"kind"`
	Topic     string    `json:"topic"`
	Key       string    `json:"key"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Code      string    `json:"code"`
	Reason    string    `json:"reason"`
	Remedy    string    `json:"remedy"`
	WaitsFor  string    `json:"waits_for,omitempty"`
	Attempts  int       `json:"attempts"`
	FirstAt   time.Time `json:"first_at"`
	LastAt    time.Time `json:"last_at"`
	Retry     bool      `json:"retry_requested"`
}

func (a *app) parkedListCmd() *cobra.Command {
	var f control.Filter
	c := &cobra.Command{
		Use: "list", Short: "List parked records with reason and remedy",
		Example: "  tallywire parked list\n  tallywire parked list --stage erp --output json",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			pool, err := controlPool(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer pool.Close()
			if f.Stage != "" {
				if err := knownStage(cfg, f.Stage); err != nil {
					return err
				}
			}
			return a.listParked(cmd, pool, f)
		},
	}
	c.Flags().StringVar(&f.Stage, "stage", "", "only of this source, transform or sink")
	c.Flags().StringVar(&f.Topic, "topic", "", "only of this topic")
	c.Flags().StringVar(&f.Key, "key", "", "only of this key")
	c.Flags().IntVar(&f.Limit, "limit", 1000, "so many at most")
	return c
}

func (a *app) listParked(cmd *cobra.Command, pool *pgxpool.Pool, f control.Filter) error {
	ps, err := control.NewParked(pool).List(cmd.Context(), f)
	if err != nil {
		return err
	}
	lines := make([]parkedLine, len(ps))
	for i, p := range ps {
		lines[i] = parkedLine{
			p.Stage, p.Kind, p.Topic, p.Key, p.Partition, p.Offset, p.Code, p.Reason, p.Remedy, p.WaitsFor,
			p.Attempts, p.FirstAt, p.LastAt, p.RetryAsked,
		}
	}
	return a.print(lines, func(w io.Writer) {
		if len(lines) == 0 {
			fmt.Fprintln(w, "nothing is parked")
			return
		}
		for _, l := range lines {
			fmt.Fprintf(w, "%s  %s  %s  %s\n  what    %s\n", l.Stage, l.Topic, l.Key, l.Code, l.Reason)
			if l.WaitsFor != "" {
				fmt.Fprintf(w, "  waits   for %s\n", l.WaitsFor)
			}
			if l.Remedy != "" {
				fmt.Fprintf(w, "  remedy  %s\n", l.Remedy)
			}
			fmt.Fprintf(w, "  since   %s, tried %d times\n", l.FirstAt.Format(time.RFC3339), l.Attempts)
		}
	})
}

func (a *app) parkedRetryCmd() *cobra.Command {
	return a.parkedDo(&cobra.Command{
		Use: "retry STAGE", Short: "Have parked records of a transform or sink tried again",
		Long: `retry asks the running process to try parked records of STAGE again: one key,
or all with --all, and says what became of them. What fails again is parked
again, with its newest reason. A record that was too large for its topic passes
once the topic's max.message.bytes was raised. What is not tried within --wait
is tried when STAGE runs, or comes to it.`,
		Example: "  tallywire parked retry erp --topic ps.customer --key 17\n  tallywire parked retry erp --all",
	}, "tried again", parked.Retry)
}

func (a *app) parkedDiscardCmd() *cobra.Command {
	return a.parkedDo(&cobra.Command{
		Use: "discard STAGE", Short: "Drop parked records of a transform or sink for good",
		Long: `discard drops parked records of STAGE: one key, or all with --all. What they
held is not delivered; the next version of a key is taken as if nothing had
been parked. The running process does it; what it has not done within --wait it
does when STAGE runs, or comes to it. --dry-run lists what would be dropped.`,
		Example: "  tallywire parked discard erp --topic ps.time_entry --key 4711\n  tallywire parked discard erp --all --dry-run",
	}, "dropped", parked.Discard)
}

type parkedAction func(context.Context, *kafka.Cluster, *pgxpool.Pool, control.Filter, time.Duration) (parked.Outcome, error)

func (a *app) parkedDo(c *cobra.Command, done string, do parkedAction) *cobra.Command {
	var topic, key string
	var all, dry bool
	var wait time.Duration
	c.Args = exactly(1, "one STAGE, the name of a source, transform or sink")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if !all && key == "" {
			return usage{fmt.Errorf("name a --key (and its --topic), or --all")}
		}
		if all && key != "" {
			return usage{fmt.Errorf("--all and --key exclude each other")}
		}
		ctx := cmd.Context()
		cfg, err := a.load()
		if err != nil {
			return err
		}
		if err := knownStage(cfg, args[0]); err != nil {
			return err
		}
		pool, err := controlPool(ctx, cfg)
		if err != nil {
			return err
		}
		defer pool.Close()
		f := control.Filter{Stage: args[0], Topic: topic, Key: key}
		if dry {
			return a.listParked(cmd, pool, f)
		}
		kc, err := cluster(ctx, cfg)
		if err != nil {
			return err
		}
		defer kc.Close()
		out, err := do(ctx, kc, pool, f, wait)
		if err != nil {
			return err
		}
		return a.print(out, func(w io.Writer) {
			if out.Asked == 0 {
				fmt.Fprintf(w, "nothing like that is parked at %s\n", args[0])
				return
			}
			fmt.Fprintf(w, "%d of %d records %s\n", out.Taken+out.Parked, out.Asked, done)
			if out.Parked > 0 {
				fmt.Fprintf(w, "%d failed again: tallywire parked list --stage %s tells why\n", out.Parked, args[0])
			}
			if out.Pending > 0 {
				fmt.Fprintf(w, "%d are asked for, and not done yet: %s does it when it runs, or comes to it\n", out.Pending, args[0])
			}
		})
	}
	c.Flags().StringVar(&topic, "topic", "", "only of this topic")
	c.Flags().StringVar(&key, "key", "", "only this key")
	c.Flags().BoolVar(&all, "all", false, "all of the stage (of the topic, if one is named)")
	c.Flags().BoolVar(&dry, "dry-run", false, "list what is meant, and do nothing")
	c.Flags().DurationVar(&wait, "wait", 10*time.Second, "for how long to wait for the stage; 0: not at all")
	return c
}

// knownStage fails unless the configuration has a component of that name. One
// that is wrong elsewhere does not keep anybody from what is parked.
func knownStage(cfg *config.Config, stage string) error {
	var names []string
	if p, err := supervise.Build(nil, cfg); err == nil {
		names = p.Names()
	}
	if len(names) == 0 || slices.Contains(names, stage) {
		return nil
	}
	err := fmt.Errorf("%s has no source, transform or sink %q", cfg.File, stage)
	if near := config.Nearest(stage, names); near != "" {
		err = fmt.Errorf("%w; did you mean %q?", err, near)
	}
	return usage{err}
}
