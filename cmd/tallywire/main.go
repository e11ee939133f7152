// Command tallywire carries changes from a PSA to the warehouse and the ERP, in
// order, exactly once where the far side allows it. main.go is the root of the
// command line: its output, its errors, its exit codes.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1 // a problem; it is printed with its code and remedy
	exitUsage   = 2 // the command line is wrong
	exitDiffer  = 3 // verify, demo, mapping preview: the two sides differ
	exitUnwell  = 4 // doctor, status: something named is not well
	exitRefused = 5 // replay, remove: refused, nothing was changed
)

// exit is an error that carries only an exit code: all else was printed.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// usage marks an error of the command line.
type usage struct{ error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{out: stdout, err: stderr, unsignal: stop}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return a.code(root.ExecuteContext(ctx))
}

// code prints an error and gives its exit code.
func (a *app) code(err error) int {
	var (
		e exit
		u usage
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return int(e)
	case errors.As(err, &u):
		fmt.Fprintf(a.err, "%s\n", u)
		return exitUsage
	case strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "unknown flag") ||
		strings.HasPrefix(err.Error(), "unknown shorthand"):
		fmt.Fprintf(a.err, "%s\n", err) // as cobra words it
		return exitUsage
	}
	if a.json() {
		enc := json.NewEncoder(a.err)
		enc.SetIndent("", "  ")
		if enc.Encode(map[string]any{"errors": problem.Reports(err)}) == nil {
			return exitFailed
		}
	}
	fmt.Fprint(a.err, problem.Format(err))
	return exitFailed
}

// app is what the commands share.
type app struct {
	out, err io.Writer
	unsignal func() // a second Ctrl-C ends the process at once

	file   string
	output string
}

func (a *app) json() bool { return a.output == "json" }

// print gives v as JSON, or calls text.
func (a *app) print(v any, text func(w io.Writer)) error {
	if a.json() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	text(w)
	return w.Flush()
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "tallywire",
		Short: "Carry every change from the PSA to the warehouse and the ERP, exactly once",
		Long: `tallywire captures changes from a PSA's database, turns them into canonical
records, costs time entries with the rate in force on the work date, and
delivers to the warehouse and the ERP: in order, exactly once where the far
side allows it.

Start with  tallywire demo;  then have  tallywire init  draft a configuration
for your database, or write one from examples/demo/tallywire.yml, and use  check,
doctor, run.

Exit codes: 0 done; 1 failed, the problem is printed with its code and what to
do; 2 the command line is wrong; 3 the two sides differ (verify, demo, mapping
preview); 4 something is not well (doctor, status); 5 refused, nothing was
changed (replay, remove).`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usage{fmt.Errorf("--output is text or json, not %q", a.output)}
			}
			return nil
		},
	}
	c.PersistentFlags().StringVarP(&a.file, "config", "c", "", "configuration file (default: $TALLYWIRE_CONFIG, else tallywire.yml; to look at the demo, .tallywire/tallywire.yml)")
	c.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "text or json")
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage{fmt.Errorf("%w\nsee: %s --help", err, cmd.CommandPath())}
	})
	c.CompletionOptions.HiddenDefaultCmd = true
	c.AddCommand(a.demoCmd(), a.initCmd(), a.runCmd(), a.checkCmd(), a.doctorCmd(), a.statusCmd(), a.contractsCmd(), a.consumeCmd(),
		a.mappingCmd(), a.parkedCmd(), a.reloadCmd(), a.removeCmd(), a.replayCmd(), a.schemaCmd(), a.topicsCmd(), a.verifyCmd(), a.versionCmd(), a.docsCmd())
	return c
}

const (
	ownFile  = "tallywire.yml"
	demoFile = ".tallywire/tallywire.yml"
)

// configFile is the file that -c names, or $TALLYWIRE_CONFIG, or tallywire.yml.
func (a *app) configFile() string {
	if a.file != "" {
		return a.file
	}
	if f := os.Getenv("TALLYWIRE_CONFIG"); f != "" {
		return f
	}
	return ownFile
}

// load reads the configuration for a command that looks at what runs: where
// there is no other, that of the demo.
func (a *app) load() (*config.Config, error) { return config.Load(a.runningFile(), config.Options{}) }

// runningFile is configFile or, where there is none, that of the demo.
func (a *app) runningFile() string {
	file := a.configFile()
	if named := a.file != "" || os.Getenv("TALLYWIRE_CONFIG") != ""; !named && !exists(ownFile) && exists(demoFile) {
		return demoFile
	}
	return file
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func exactly(n int, names string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usage{fmt.Errorf("want %s\nsee: %s --help", names, c.CommandPath())}
		}
		return nil
	}
}

func none(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage{fmt.Errorf("%q is one word too many\nsee: %s --help", args[0], c.CommandPath())}
	}
	return nil
}
