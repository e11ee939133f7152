// check.go: the configuration alone, and version.

package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/build"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/supervise"
)

func (a *app) checkCmd() *cobra.Command {
	var noSecrets bool
	c := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration without connecting to anything",
		Long: `check reads the configuration as run does: every key, type, value and secret,
and every component's own part; and the names of topics that it has, which Kafka
may not take, or not beside each other. It connects to nothing; doctor does that.
All mistakes are told at once, each with line, column and what to write.`,
		Example: "  tallywire check -c tallywire.yml\n  tallywire check --no-secrets      # where the secrets are not at hand, as in CI",
		Args:    none,
		RunE: func(*cobra.Command, []string) error {
			file := a.configFile()
			cfg, p, err := checked(file, noSecrets)
			if err != nil {
				return err
			}
			if err := errors.Join(topicUses(p).wrong(nil)...); err != nil {
				return err
			}
			res := struct {
				File       string   `json:"file"`
				OK         bool     `json:"ok"`
				Sources    int      `json:"sources"`
				Transforms int      `json:"transforms"`
				Sinks      int      `json:"sinks"`
				Groups     []string `json:"groups"`
				Empty      []string `json:"empty"`
			}{file, true, len(cfg.Sources), len(cfg.Transforms), len(cfg.Sinks), p.Groups(), p.Unfilled()}
			return a.print(res, func(w io.Writer) {
				if len(res.Empty) > 0 {
					fmt.Fprintf(w, "nothing fills %s here: unless another process does, what reads them finds them empty\n", strings.Join(res.Empty, ", "))
				}
				fmt.Fprintf(w, "%s is good: %d sources, %d transforms, %d sinks\n", file, res.Sources, res.Transforms, res.Sinks)
			})
		},
	}
	c.Flags().BoolVar(&noSecrets, "no-secrets", false, "check the form of env: and file: references without reading them")
	return c
}

// checked reads a configuration with every component's own part: what is wrong
// is told at once.
func checked(file string, noSecrets bool) (*config.Config, *supervise.Pipeline, error) {
	cfg, err := config.Load(file, config.Options{Static: noSecrets})
	if cfg == nil {
		return nil, nil, err
	}
	p, err2 := supervise.Build(nil, cfg)
	return cfg, p, errors.Join(err, cfg.Forgotten(), err2)
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  tallywire version --output json", Args: none,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit,omitempty"`
				Go      string `json:"go"`
			}{Version: build.Version(), Commit: build.Commit(), Go: runtime.Version()}
			return a.print(v, func(w io.Writer) { fmt.Fprintf(w, "tallywire %s (%s)\n", v.Version, v.Go) })
		},
	}
}
