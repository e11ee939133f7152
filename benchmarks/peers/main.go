// Command peers measures capture against its peers: the same backlogs of one
// Postgres, read in turns by tallywire, by Debezium as its users tune it, and
// by pg_recvlogical, which only reads. main.go is the command line; world.go
// the servers; backlog.go what there is to read; watch.go the clock; one file
// for each contender; bench.go who runs when; report.go the report.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

const help = `peers measures tallywire beside Debezium and pg_recvlogical, in one run, in turns.

  make bench-peers                             all of it, about half an hour; writes benchmarks/RESULTS.md
  go run ./benchmarks/peers -state /var/tmp/tw-peers -only a,b -contenders tallywire,pg_recvlogical
                                               the backlogs only, without the slow ones: about a minute, once
                                               the backlogs have been made (the first time: another one)
  go run ./benchmarks/peers -rows 20000 -runs 1 -only a    does it work here? Its figures say nothing.

Sections (-only):
  a         backlog A: -rows inserts (2,000,000) in transactions of 1,000, into a topic of 1 partition
  b         backlog B: half as many changes, 60 %% inserts, 30 %% updates, 10 %% deletes, in transactions of 1 to 3
  a8        backlog A into a topic of 8 partitions
  snapshot  the initial load of the table that A filled
  start     from the start of the process to the first record in Kafka, topics existing
  latency   1,000 transactions/s of 5 rows: from the clock in the INSERT to a consumer
Contenders (-contenders), each in the sections that it can take part in:
  %s

The servers are started here and stopped at the end: Postgres, Apache Kafka (two
in the section latency), Apicurio Registry. Programs come from Maven and are
kept in the user's cache; pg_recvlogical is Debian's postgresql-client. A run
that does not deliver exactly the records expected is an error, not a figure.
Rates are steady ones, between 25 %% and 95 %% of the records.

The exit code is 1 when a ratio is missed, 2 when it could not be measured. The
report is written when everything was measured at full size, or with -out.

`

type options struct {
	rows       int64
	runs       int
	only       []string
	contenders []string
	state      string
	lock       string
	out        string
	binary     string
	profile    string
	keep       bool
	command    string
}

var sections = []string{"a", "b", "a8", "snapshot", "start", "latency"}

func main() {
	var o options
	var only, contenders string
	flag.Int64Var(&o.rows, "rows", fullRows, "`rows` of backlog A, at least 2,000; below the default it is a trial: no ratio is judged")
	flag.IntVar(&o.runs, "runs", 3, "`rounds` of each section")
	flag.StringVar(&only, "only", strings.Join(sections, ","), "the `sections` to run")
	flag.StringVar(&contenders, "contenders", strings.Join(names(), ","), "the `contenders` to run")
	flag.StringVar(&o.state, "state", "", "`folder` that keeps the backlogs for the next run (2.5 GB); none: made and removed")
	flag.StringVar(&o.lock, "lock", "", "`file` that is locked while measuring, so that those who share a machine take turns")
	flag.StringVar(&o.out, "out", "", "`file` for the report, between its markers; default benchmarks/RESULTS.md when all was measured")
	flag.StringVar(&o.binary, "binary", "", "the tallywire to measure; none: it is built from here")
	flag.StringVar(&o.profile, "cpuprofile", "", "`prefix` of CPU profiles of tallywire, one for each run: PREFIX-<section>-<contender>-<round>.prof")
	flag.BoolVar(&o.keep, "logs", false, "keep the logs of what was started, and say where")
	flag.StringVar(&o.command, "command", "go run ./benchmarks/peers "+strings.Join(os.Args[1:], " "), "what the report says it was made with")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), help, strings.Join(names(), ", "))
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	missed, err := 0, o.parse(only, contenders)
	if err == nil {
		missed, err = o.run(ctx)
	}
	stop()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(2)
	case missed > 0:
		os.Exit(1)
	}
}

func (o *options) parse(only, contenders string) error {
	if runtime.GOOS != "linux" {
		return errors.New("CPU time and memory of the contenders are read from /proc: run it on Linux")
	}
	if flag.NArg() > 0 {
		return fmt.Errorf("%q: it takes flags only; see -help", flag.Arg(0))
	}
	if o.runs < 1 || o.rows < 2*perTx {
		return fmt.Errorf("-runs begins at 1, -rows at %d", 2*perTx)
	}
	o.rows -= o.rows % (2 * perTx)
	var err error
	if o.only, err = choose("-only", only, sections); err != nil {
		return err
	}
	o.contenders, err = choose("-contenders", contenders, names())
	return err
}

// choose gives the words of list in the order of all.
func choose(name, list string, all []string) ([]string, error) {
	words := strings.Split(list, ",")
	for _, w := range words {
		if !slices.Contains(all, w) {
			return nil, fmt.Errorf("%s: %q is none of %s", name, w, strings.Join(all, ", "))
		}
	}
	var out []string
	for _, a := range all {
		if slices.Contains(words, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// trial says that the figures are not to be judged.
func (o *options) trial() bool { return o.rows < fullRows }
