// Command lookups measures a join whose sides all change beside its peer: time
// entries with their project, its customer and the rate in force, by tallywire
// (a mapping's lookups) and by Kafka Streams with
// foreign-key joins (on RocksDB, and in memory), in turns, over the same topics
// of one Apache Kafka. main.go is the command line; world.go the servers and
// topics; rows.go what is in them; live.go entries one by one; tallywire.go and streams.go the contenders,
// streams/ the peer's program; bench.go who runs when; watch.go the clock and
// the proof; report.go the report.
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

const help = `lookups measures tallywire's lookups beside Kafka Streams, in one run, in turns.

  go run ./benchmarks/lookups                                    all of it, some minutes
  go run ./benchmarks/lookups -entries 10000 -runs 1 -only load  does it work here? Its figures say nothing.
  go run ./benchmarks/lookups -contenders tallywire -cpuprofile /tmp/p a profile: /tmp/p-load-tallywire-1.prof

Sections (-only):
  load   -entries time entries arrive; right sides were read before
  fan    after a load in which one employee has 100,000 of the entries, one rate of
         his changes, and with it the cost of all of them
  live   the same, while entries of others are written one by one: how long each takes
Contenders (-contenders):
  %s

The servers are started here and stopped at the end: Apache Kafka, Postgres (tallywire's
control database), redis-server, a registry. Jars come from Maven and stay in the user's
cache. A run whose results are not exactly those expected is an error, not a figure.

`

type options struct {
	entries    int
	runs       int
	only       []string
	contenders []string
	binary     string
	profile    string
	out        string
	heap       int
	keep       bool
	command    string
}

func main() {
	var o options
	var only, contenders string
	flag.IntVar(&o.entries, "entries", 330_000, "time `entries`")
	flag.IntVar(&o.runs, "runs", 2, "`rounds` of each section")
	flag.StringVar(&only, "only", strings.Join(sections, ","), "the `sections` to run")
	flag.StringVar(&contenders, "contenders", strings.Join(names(), ","), "the `contenders` to run")
	flag.StringVar(&o.binary, "binary", "", "the tallywire to measure; none: it is built from here")
	flag.StringVar(&o.profile, "cpuprofile", "", "`prefix` of CPU profiles of tallywire, one for each run: PREFIX-<section>-<contender>-<round>.prof")
	flag.StringVar(&o.out, "out", "", "`file` whose section \"lookups\" the report becomes; none: only the terminal")
	flag.IntVar(&o.heap, "heap", 4096, "heap of Kafka Streams, `MB`")
	flag.BoolVar(&o.keep, "logs", false, "keep the folder with the logs of what was started, and say where")
	flag.StringVar(&o.command, "command", strings.TrimSpace("go run ./benchmarks/lookups "+strings.Join(os.Args[1:], " ")), "what the report says it was made with")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), help, strings.Join(names(), ", "))
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := o.parse(only, contenders)
	if err == nil {
		err = o.run(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lookups:", err)
		os.Exit(1)
	}
}

func (o *options) parse(only, contenders string) (err error) {
	if runtime.GOOS != "linux" {
		return errors.New("CPU time and memory of the contenders are read from /proc: run it on Linux")
	}
	if flag.NArg() > 0 {
		return fmt.Errorf("%q: it takes flags only; see -help", flag.Arg(0))
	}
	if o.runs < 1 || o.entries < 1000 {
		return errors.New("-runs begins at 1, -entries at 1,000")
	}
	if o.only, err = choose("-only", only, sections); err != nil {
		return err
	}
	o.contenders, err = choose("-contenders", contenders, names())
	return err
}

// choose gives the words of list in the order of all.
func choose(name, list string, all []string) (out []string, err error) {
	words := strings.Split(list, ",")
	for _, w := range words {
		if !slices.Contains(all, w) {
			return nil, fmt.Errorf("%s: %q is none of %s", name, w, strings.Join(all, ", "))
		}
	}
	for _, a := range all {
		if slices.Contains(words, a) {
			out = append(out, a)
		}
	}
	return out, nil
}
