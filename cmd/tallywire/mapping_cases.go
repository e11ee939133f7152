// mapping_cases.go: cases run through the rules, and what differs told.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	goredis "github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/cases"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/rules"
)

func (a *app) mappingTestCmd() *cobra.Command {
	var update bool
	c := &cobra.Command{
		Use:   "test [FILE|DIR ...]",
		Short: "Test the rules by cases in files: rows in, records out",
		Long: `test runs rows that a file names through the rules of a transform and compares
what comes out. It connects to nothing and reads no secret, so that it runs
wherever the configuration lies, in CI too. A file:

  ` + strings.ReplaceAll(strings.TrimSuffix(cases.Minimal, "\n"), "\n", "\n  ") + `

  columns   the source's columns with their types, as psql shows them; an enum or
            a type of an extension is written as text
  replica_identity   default or full: what the source sends of old rows
  defaults  what columns hold that a row does not name; else they are null
  tables    of rows that are looked up, by topic, each with columns, key, defaults
            and replica_identity: {psa.public.project: {key: [id], columns: {…}}}
  rows      topic: one of tables, else that of the file. op: create (the default), update, delete, read. row: the row. old: of
            an update what was different before. unsent: large columns that an
            update left as they were and that were not sent. committed: when, at
            the source; else 2026-01-01T00:00:00Z
  records   what must come out, in order, no more and no less. op: upsert (the
            default) or delete. Fields that are not named are not compared
  rejected  rows that must be parked: [{error: TW-MAP-EXPR, contains: a piece of
            the message}]

Values are written as Postgres prints them. Without FILE or DIR all *.test.yml
of mappings/ beside the configuration are run. --update writes what came out
into the files where it differs or is missing; read the difference, then commit.`,
		Example: `  tallywire mapping test
  tallywire mapping test -c tallywire.yml mappings/time_entry.test.yml
  tallywire mapping test --update      # write what comes out, then look: git diff`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.mappingTest(cmd.Context(), args, update) },
	}
	c.Flags().BoolVar(&update, "update", false, "write what came out where it differs or is missing")
	return c
}

func (a *app) mappingTest(ctx context.Context, args []string, update bool) (err error) {
	r, err := rules.Read(a.configFile())
	if err != nil {
		return err
	}
	files, err := cases.Find(a.configFile(), args)
	if err != nil {
		return err
	}
	res := struct {
		OK          bool               `json:"ok"`
		Cases       int                `json:"cases"`
		Files       int                `json:"files"`
		Differences []cases.Difference `json:"differences"`
		Written     []cases.Written    `json:"written,omitempty"`
	}{Files: len(files), Differences: []cases.Difference{}}
	var looking lookingUp
	defer func() {
		if wrong := looking.close(); wrong != nil {
			err = errors.Join(err, wrong)
		}
	}()
	var errs []error
	for _, file := range files {
		c, err := cases.Load(file, r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		res.Cases += c.Len()
		outs, err := c.Run(ctx, looking.open)
		if err != nil {
			errs = append(errs, r.Place(err))
			continue
		}
		ds := c.Compare(outs)
		if update && len(ds) > 0 {
			w, err := c.Update(ctx, r, outs, ds)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			res.Written = append(res.Written, w...)
			continue
		}
		res.Differences = append(res.Differences, ds...)
	}
	res.OK = len(res.Differences) == 0 && len(errs) == 0
	if err := a.print(res, func(w io.Writer) {
		printDifferences(w, res.Differences)
		for _, x := range res.Written {
			fmt.Fprintf(w, "%s:%d: %s: wrote %s\n", x.File, x.Line, x.Case, x.What)
		}
		failed := map[string]bool{}
		for _, d := range res.Differences {
			failed[fmt.Sprint(d.File, d.Number)] = true
		}
		switch {
		case len(failed) > 0:
			fmt.Fprintf(w, "%d of %s of %s are not as expected; --update would write what came out\n", len(failed), plural(res.Cases, "case"), plural(res.Files, "file"))
		case len(errs) == 0:
			fmt.Fprintf(w, "%s of %s are as expected\n", plural(res.Cases, "case"), plural(res.Files, "file"))
		}
	}); err != nil {
		return err
	}
	if !res.OK && len(errs) == 0 {
		return exit(exitFailed)
	}
	return errors.Join(errs...)
}

// printDifferences groups them by case and record.
func printDifferences(w io.Writer, ds []cases.Difference) {
	last := cases.Difference{Number: -1}
	for _, d := range ds {
		if d.File != last.File || d.Number != last.Number {
			fmt.Fprintf(w, "%s:%d: %s\n", d.File, d.Line, d.Case)
			last = cases.Difference{}
		}
		if d.What != last.What {
			fmt.Fprintf(w, "  %s\n", d.What)
			if d.Field != "" {
				fmt.Fprint(w, "    FIELD\tWANT\tGOT\n")
			}
		}
		if d.Field != "" {
			fmt.Fprintf(w, "    %s\t%s\t%s\n", d.Field, shownText(d.Want), shownText(d.Got))
		}
		last = d
	}
	if len(ds) > 0 {
		fmt.Fprintln(w)
	}
}

// shownText makes blanks and an empty text visible.
func shownText(s *string) string {
	switch {
	case s == nil:
		return "null"
	case *s == "" || strings.TrimSpace(*s) != *s || strings.ContainsAny(*s, "\n\t"):
		return fmt.Sprintf("%q", *s)
	}
	return *s
}

// lookingUp is a Redis in memory, for rules that look rows up; it is started when it is
// first asked for.
type lookingUp struct {
	server *embedded.MiniRedis
	rdb    *goredis.Client
}

func (l *lookingUp) open(ctx context.Context) (_ *goredis.Client, err error) {
	if l.rdb != nil {
		return l.rdb, nil
	}
	if l.server, err = embedded.StartMiniRedis("127.0.0.1:0"); err != nil {
		return nil, err
	}
	l.rdb, err = redis.Open(ctx, l.server.Addr())
	return l.rdb, err
}

func (l *lookingUp) close() error {
	var errs []error
	if l.rdb != nil {
		errs = append(errs, l.rdb.Close())
	}
	if l.server != nil {
		errs = append(errs, l.server.Close())
	}
	return errors.Join(errs...)
}
