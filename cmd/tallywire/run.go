// run.go: the configuration, running.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/build"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
)

func (a *app) runCmd() *cobra.Command {
	var without []string
	var profile string
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the sources, transforms and sinks of a configuration",
		Long: `run connects to what the configuration names, embeds what it does not name
(broker, registry, Redis, control database: for trying out), and runs every
component until SIGINT or SIGTERM. It then ends what is under way and stops;
the next start resumes there. A component that halts stops alone, says why on
the page, in status and in the log, and makes the exit code 1.

To scale out, start the same configuration on more machines, each with another
instance.`,
		Example: "  tallywire run -c tallywire.yml\n  tallywire run --without erp        # everything else, for example to replay it",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if profile != "" {
				stop, failed := startProfile(profile)
				if failed != nil {
					return failed
				}
				defer func() { err = errors.Join(err, stop()) }()
			}
			cfg, _, err := checked(a.configFile(), false)
			if err != nil {
				return err
			}
			if err := cfg.Without(without); err != nil {
				return err
			}
			log, err := obs.NewLog(a.err, cfg.Log.Level, cfg.Log.Format)
			if err != nil {
				return err
			}
			o := obs.New(log)
			o.ExposeProcess(build.Version())
			ctx := cmd.Context()
			go func() { // ends with ctx: from then on a second signal kills
				<-ctx.Done()
				a.unsignal()
			}()
			return a.runAll(ctx, cfg, o)
		},
	}
	c.Flags().StringSliceVar(&without, "without", nil, "leave these components out, by name")
	c.Flags().StringVar(&profile, "cpuprofile", "", "write a CPU profile to this file, from the start to the end (go tool pprof reads it)")
	return c
}

// startProfile gives what ends the profile.
func startProfile(name string) (stop func() error, err error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("making the CPU profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the CPU profile: %w", err), f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

func (a *app) runAll(ctx context.Context, cfg *config.Config, o *obs.Obs) error {
	return supervise.Run(ctx, cfg, o, supervise.RunOptions{Version: build.Version(), Ready: func(p *supervise.Parts, addr string) {
		for _, n := range p.Notes {
			o.Log.Info("embedded", "what", n[0], "at", n[1])
		}
		if p.StartedOver {
			fmt.Fprintln(a.err, "The embedded Kafka was not stopped cleanly. Its transactions cannot be trusted, so it starts over empty.")
		}
		o.Log.Info("serving", "page", "http://"+addr+"/", "metrics", "http://"+addr+"/metrics")
	}})
}
