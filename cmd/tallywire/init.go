// init.go: a first configuration for a database that no configuration describes.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/draft"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/sources/postgres"
)

var (
	errInitExists = problem.Define("TW-INIT-EXISTS", problem.Halt,
		"The configuration that is to be written is there already.",
		"Name another file with --out; or write over it with --force.")
	errInitWrite = problem.Define("TW-INIT-WRITE", problem.Halt,
		"The drafted configuration cannot be written.",
		"Name a file with --out whose directory is there and may be written to.")
)

// surveyPatience bounds the whole look at a database.
const surveyPatience = 5 * time.Minute

type initOptions struct {
	dsn, out, source string
	schemas          []string
	force            bool
}

func (a *app) initCmd() *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use:   "init",
		Short: "Look at a Postgres database and draft a configuration for it",
		Long: `init looks at a Postgres database and writes a first configuration: the tables
that can be captured, with their keys and sizes, and for each built-in contract
a rule from the table that fits best, with what was guessed and why. What could
not be guessed stands as "" and is named, with its line, by tallywire check.

It reads the catalog and the planner's statistics in a read-only transaction,
and no row of any table. The DSN is not written: the configuration names an
environment variable. Columns that look like secrets (passwords, tokens, keys)
are not captured: the file lists them, and the publication is made without them.

The login should be the one that capture will use: it needs LOGIN, REPLICATION
and SELECT on the tables. What it lacks is told, with the statement that helps.`,
		Example: `  tallywire init --dsn postgres://tallywire@db.example.com/redmine
  tallywire init --dsn file:redmine.dsn       # the DSN is in a file: its password is in no shell's history
  tallywire init --dsn env:ERP_DSN --schema sales,hr --source erp --out erp.yml
  tallywire init --dsn env:ERP_DSN --force -o json | jq '.contracts'`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.init(cmd.Context(), &o) },
	}
	c.Flags().StringVar(&o.dsn, "dsn", "", "the database: postgres://user@host:port/database, env:NAME or file:PATH")
	c.Flags().StringVar(&o.out, "out", "", "the file to write (default: that of --config, else tallywire.yml)")
	c.Flags().StringSliceVar(&o.schemas, "schema", nil, "schemas to look at, with commas between (default: all but the server's own)")
	c.Flags().StringVar(&o.source, "source", "", "name of the source, which its topics begin with (default: the database's)")
	c.Flags().BoolVar(&o.force, "force", false, "write over the file if it is there")
	return c
}

var sourceForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

func (a *app) init(ctx context.Context, o *initOptions) error {
	if o.out == "" {
		o.out = a.configFile()
	}
	if o.dsn == "" {
		return usage{errors.New("--dsn names the database\nsee: tallywire init --help")}
	}
	dsn, err := initDSN(o.dsn)
	if err != nil {
		return err
	}
	if o.source == "" {
		o.source = postgres.SourceName(dsn)
	}
	if !sourceForm.MatchString(o.source) {
		return usage{fmt.Errorf("--source: the name %q is not of the form a-z, then a-z, 0-9 or _, 40 at most", o.source)}
	}
	if exists(o.out) && !o.force { // before anything is looked at
		return errInitExists.New("%s is there", o.out)
	}
	ctx, cancel := context.WithTimeout(ctx, surveyPatience)
	defer cancel()
	db, err := postgres.Survey(ctx, dsn, o.source, o.schemas)
	if err != nil {
		return err
	}
	d, err := draft.Make(db)
	if err != nil {
		return err
	}
	ref := "env:" + strings.ToUpper(o.source) + "_DSN"
	if isReference(o.dsn) {
		ref = o.dsn
	}
	if err := o.write(d.YAML(ref)); err != nil {
		return err
	}
	res := initResult(d, o.out, ref, a.next(o.out, ref))
	return a.print(res, res.text)
}

func isReference(s string) bool {
	return strings.HasPrefix(s, "env:") || strings.HasPrefix(s, "file:")
}

// initDSN takes what a configuration takes, and a DSN with a password: it is
// used, and not written.
func initDSN(s string) (secret.DSN, error) {
	if !isReference(s) {
		return secret.DSNOf(s), nil
	}
	dsn, err := secret.ResolveDSN(s, os.LookupEnv)
	if err != nil {
		return dsn, secret.ErrSecret.New("--dsn: %w", err)
	}
	return dsn, nil
}

// write makes the file, or with force replaces the one that is there.
func (o *initOptions) write(text []byte) error {
	if o.force && exists(o.out) {
		if err := config.Replace(o.out, text); err != nil {
			return errInitWrite.New("writing %s: %w", o.out, plainPath(err))
		}
		return nil
	}
	f, err := os.OpenFile(o.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Close())
	}
	switch {
	case errors.Is(err, fs.ErrExist): // it came to be meanwhile, and is somebody's
		return errInitExists.New("%s is there", o.out)
	case err != nil:
		return errInitWrite.New("writing %s: %w", o.out, plainPath(err))
	}
	return nil
}

// plainPath is what is wrong, without the file, which was named.
func plainPath(err error) error {
	var p *fs.PathError
	var l *os.LinkError // of a rename
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &l):
		return l.Err
	}
	return err
}

// drafted is what init says of its work.
type drafted struct {
	File      string            `json:"file"`
	Source    string            `json:"source"`
	DSN       string            `json:"dsn"`
	Tables    []string          `json:"tables"`
	Secrets   []draftedSecrets  `json:"secrets"`
	Costs     []draftedSecrets  `json:"costs"`
	LeftOut   []draftedTable    `json:"left_out"`
	Contracts []draftedContract `json:"contracts"`
	Missing   []string          `json:"missing"`
	Near      []draftedNear     `json:"near"`
	NoRule    *draftedNone      `json:"no_rule,omitempty"`
	Grants    []string          `json:"grants"`
	Left      int               `json:"fields_left"`
	Problems  []problem.Report  `json:"problems"`
	Next      []string          `json:"next"`
}

type draftedTable struct {
	Table  string `json:"table"`
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

type draftedSecrets struct {
	Table   string   `json:"table"`
	Columns []string `json:"columns"`
}

// draftedNear is a table that comes near a contract for which none was found.
type draftedNear struct {
	Contract string `json:"contract"`
	Table    string `json:"table"`
	Why      string `json:"why"`
}

// draftedNone is why there is no rule.
type draftedNone struct {
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

type draftedContract struct {
	Contract string   `json:"contract"`
	From     string   `json:"from"`
	Filled   int      `json:"filled"`
	Left     []string `json:"left"`
	Empty    []string `json:"empty"`
	Needs    string   `json:"needs,omitempty"`
}

func initResult(d *draft.Draft, file, ref string, next []string) *drafted {
	r := &drafted{
		File: file, Source: d.Source, DSN: ref, Next: next,
		Tables: []string{}, Secrets: []draftedSecrets{}, Costs: []draftedSecrets{}, Near: []draftedNear{}, Grants: append([]string{}, d.Grants()...), LeftOut: []draftedTable{}, Contracts: []draftedContract{}, Missing: []string{}, Problems: []problem.Report{},
	}
	for _, t := range d.Tables {
		switch {
		case t.Left != nil:
			r.LeftOut = append(r.LeftOut, draftedTable{t.Full(), t.Left.Text, t.Left.WhatToDo()})
		case t.Bound != "":
			why := t.Bound
			if len(t.Secrets) > 0 {
				why = strings.Join(t.Secrets, ", ") + ": " + why
			}
			r.LeftOut = append(r.LeftOut, draftedTable{t.Full(), why, "Capture it only if that is meant: add it to tables."})
		default:
			r.Tables = append(r.Tables, t.Full())
			if len(t.Secrets) > 0 {
				r.Secrets = append(r.Secrets, draftedSecrets{t.Full(), t.Secrets})
			}
			if costs := d.Costs(t); len(costs) > 0 {
				r.Costs = append(r.Costs, draftedSecrets{t.Full(), costs})
			}
		}
	}
	for _, o := range d.Others {
		r.LeftOut = append(r.LeftOut, draftedTable{o.Name, o.Why, o.Remedy})
	}
	if why, remedy := d.Nothing(); why != "" {
		r.NoRule = &draftedNone{why, remedy}
	}
	for _, rule := range d.Rules {
		left := rule.Blanks()
		r.Left += len(left)
		r.Contracts = append(r.Contracts, draftedContract{rule.Contract.Topic, rule.Table.Full(), len(rule.Fields) - len(left), append([]string{}, left...), append([]string{}, rule.Empty...), rule.Needs})
	}
	for _, m := range d.Missing {
		r.Missing = append(r.Missing, m.Topic)
		switch {
		case m.Like != nil:
			r.Near = append(r.Near, draftedNear{m.Topic, m.Like.Full(), "it is left out"})
		case m.Near != nil:
			r.Near = append(r.Near, draftedNear{m.Topic, m.Near.Full(), m.Why})
		}
	}
	for _, p := range d.Problems {
		r.Problems = append(r.Problems, problem.Reports(p)...)
	}
	return r
}

// next are the commands that follow.
func (a *app) next(file, ref string) (commands []string) {
	with := ""
	if a.file != "" || file != a.configFile() {
		with = " -c " + file
	}
	if name, env := strings.CutPrefix(ref, "env:"); env && os.Getenv(name) == "" {
		commands = append(commands, "export "+name+"='postgres://…'")
	}
	return append(commands, "tallywire check"+with, "tallywire doctor"+with, "tallywire run"+with)[:3]
}

func (r *drafted) text(w io.Writer) {
	fmt.Fprintf(w, "%s is written: source %s with %s\n\n", r.File, r.Source, plural(len(r.Tables), "table"))
	if len(r.Contracts) > 0 {
		fmt.Fprint(w, "CONTRACT\tFROM\tFILLED\tLEFT TO DO\n")
		for _, c := range r.Contracts {
			left := strings.Join(c.Left, ", ")
			if left == "" {
				left = "nothing"
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", c.Contract, c.From, c.Filled, left)
		}
		fmt.Fprintln(w)
	}
	if len(r.Missing) > 0 {
		fmt.Fprintf(w, "No table was found for %s.\n", strings.Join(r.Missing, ", "))
	}
	for _, n := range r.Near {
		fmt.Fprintf(w, "%s comes nearest to %s, but %s.\n", n.Table, n.Contract, n.Why)
	}
	for _, s := range r.Secrets {
		fmt.Fprintf(w, "%s is captured without %s, which look like secrets.\n", s.Table, strings.Join(s.Columns, ", "))
	}
	for _, s := range r.Costs {
		fmt.Fprintf(w, "%s is captured with %s, which look like costs or salaries: who may read its topic reads them.\n", s.Table, strings.Join(s.Columns, ", "))
	}
	var reasons []string
	tables := map[string][]string{}
	for _, t := range r.LeftOut {
		if tables[t.Why] == nil {
			reasons = append(reasons, t.Why)
		}
		tables[t.Why] = append(tables[t.Why], t.Table)
	}
	for _, why := range reasons { // of views there may be many
		fmt.Fprintf(w, "Left out: %s: %s.\n", strings.Join(tables[why], ", "), why)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "%s: %s\n  remedy  %s\n", p.Code, p.What, p.Remedy)
	}
	r.ends(w)
}

// ends says what is to be done, by statements and commands.
func (r *drafted) ends(w io.Writer) {
	switch {
	case r.NoRule != nil && len(r.Grants) > 0:
		fmt.Fprintf(w, "\nNo rule was drafted: %s.\nGrant what is to be read, and draft again with --force:\n", r.NoRule.Why)
	case r.NoRule != nil:
		fmt.Fprintf(w, "\nNo rule was drafted: %s.\n  remedy  %s\n", r.NoRule.Why, r.NoRule.Remedy)
	case len(r.Grants) > 0:
		fmt.Fprint(w, "\nTables that look like contracts may not be read. Grant that, and draft again with --force:\n")
	}
	for _, g := range r.Grants {
		fmt.Fprintf(w, "  %s;\n", g)
	}
	if r.NoRule != nil {
		fmt.Fprint(w, "\nNext, with raw topics alone:\n")
	} else {
		fmt.Fprintf(w, "\nNext, %s left to do, each named by check:\n", plural(r.Left, "field"))
	}
	for _, n := range r.Next {
		fmt.Fprintf(w, "  %s\n", n)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
