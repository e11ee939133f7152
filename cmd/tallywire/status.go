// status.go: what the running process says of itself.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

var errNotRunning = problem.Define("TW-NOT-RUNNING", problem.Retry,
	"No running tallywire answers.",
	"Start it with tallywire run or tallywire demo, or name its address with --url.")

func (a *app) statusCmd() *cobra.Command {
	var url string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the components of the running process: state, rate, lag, latency",
		Long: `status asks the running process over HTTP. Exit code 4 when a component is
halted or retrying, or has been starting for over a minute: it waits for what
may never come. Latencies are from the commit at the source, over the last
minute. For a database it says how much of its log is sent, received, in Kafka
and acknowledged: the first rung that stands far behind names what is slow.
Of tables that came, went or were altered it says what their topics do not hold,
since when, and what to do; what runs on has no exit code.`,
		Example: "  tallywire status\n  tallywire status --output json | jq '.components[] | {name, state, lag_total}'",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				cfg, err := a.load()
				if err != nil {
					return err
				}
				url = "http://" + cfg.HTTP.Listen
			}
			st, err := fetchStatus(cmd.Context(), url)
			if err != nil {
				return err
			}
			if err := a.print(st, func(w io.Writer) { printStatus(w, st) }); err != nil {
				return err
			}
			for _, c := range st.Components {
				if c.State.Down() || c.State == obs.Retrying || c.State == obs.Starting && st.At.Sub(c.Since) > time.Minute {
					return exit(exitUnwell)
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&url, "url", "", "address of the process (default: http.listen of the configuration)")
	return c
}

func fetchStatus(ctx context.Context, url string) (console.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var st console.Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/api/status", nil)
	if err != nil {
		return st, usage{fmt.Errorf("--url: %w", err)}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, errNotRunning.New("asking %s: %w", url, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return st, errNotRunning.New("%s answers %s: it is starting", url, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(&st); err != nil {
		return st, errNotRunning.New("reading the answer of %s: %w", url, err)
	}
	return st, nil
}

func printStatus(w io.Writer, st console.Status) {
	fmt.Fprintln(w, "KIND\tNAME\tSTATE\tIN\tOUT\tLAG\tP50\tP95\tWAITING\tPARKED")
	for _, c := range st.Components {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s\t%d\t%d\n", c.Kind, c.Name, c.State, c.In, c.Out, c.LagTotal, millis(c.P50), millis(c.P95), c.Waiting, c.Parked)
	}
	for _, c := range st.Components {
		if why := c.Reason + c.Progress; why != "" {
			fmt.Fprintf(w, "\n%s %s, %s for %s: %s", c.Kind, c.Name, c.State, st.At.Sub(c.Since).Round(time.Second), why)
		}
		if c.Remedy != "" {
			fmt.Fprintf(w, "\n  remedy: %s", strings.ReplaceAll(c.Remedy, "\n", "\n  "))
		}
		for _, n := range c.Notices {
			fmt.Fprintf(w, "\n%s %s, since %s: %s: %s", c.Kind, c.Name, n.Since.Format(time.DateTime+"Z"), n.Code, n.Text)
			fmt.Fprintf(w, "\n  remedy: %s", strings.ReplaceAll(n.Remedy, "\n", "\n  "))
		}
		if len(c.Ladder) > 0 {
			fmt.Fprintf(w, "\n%s %s: behind the head of the log %s", c.Kind, c.Name, ladder(c.Ladder))
		}
	}
	fmt.Fprintln(w)
}

// ladder says how far each rung is behind the first, the head.
func ladder(rungs []obs.Rung) string {
	var out []string
	for _, r := range rungs[1:] {
		out = append(out, r.Name+" "+octets(rungs[0].At-min(r.At, rungs[0].At)))
	}
	return strings.Join(out, ", ")
}

func octets(n uint64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

func millis(ms float64) string {
	if ms == 0 {
		return "-"
	}
	if ms < 1000 {
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.1f s", ms/1000)
}
