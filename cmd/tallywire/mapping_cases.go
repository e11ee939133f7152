// mapping_cases.go: cases run through the rules, and what differs told.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/mapping"
)

func (a *app) mappingTestCmd() *cobra.Command {
	var update bool
	c := &cobra.Command{
		Use:   "test [FILE|DIR ...]",
		Short: "Test the rules by cases in files: rows in, records out",
		Long: `test runs rows that a file names through the rules of a transform and compares
what comes out. It connects to nothing and reads no secret, so that it runs
wherever the configuration lies, in CI too. A file:

  ` + strings.ReplaceAll(strings.TrimSuffix(minimalCase, "\n"), "\n", "\n  ") + `

  columns   the source's columns with their types, as psql shows them; an enum or
            a type of an extension is written as text
  replica_identity   default or full: what the source sends of old rows
  defaults  what columns hold that a row does not name; else they are null
  rows      op: create (the default), update, delete, read. row: the row. old: of
            an update what was different before. unsent: large columns that an
            update left as they were and that were not sent
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

// difference is one thing that is not as a case says.
type difference struct {
	File   string  `json:"file"`
	Line   int     `json:"line"`
	Case   string  `json:"case"`
	What   string  `json:"what"`            // about which record or row, in words
	Field  string  `json:"field,omitempty"` // "": about the whole
	Want   *string `json:"want"`            // with Field; null is null
	Got    *string `json:"got"`
	number int     // of the case in its file
}

// outcome is what came out of one case.
type outcome struct {
	records  []outRecord
	rejected []outRejection
}

type outRecord struct {
	topic, key, op string
	fields         []outField
}

func (r *outRecord) String() string {
	if r.op == "delete" {
		return fmt.Sprintf("%s %s, deleted", r.topic, r.key)
	}
	return r.topic + " " + r.key
}

type outField struct {
	col   *change.Column
	known bool
	text  *string // nil: null
}

func (r *outRecord) field(name string) *outField {
	for i := range r.fields {
		if r.fields[i].col.Name == name {
			return &r.fields[i]
		}
	}
	return nil
}

type outRejection struct {
	row        int
	code, text string
}

func (a *app) mappingTest(ctx context.Context, args []string, update bool) error {
	r, err := readRules(a.configFile())
	if err != nil {
		return err
	}
	files, err := caseFiles(a.configFile(), args)
	if err != nil {
		return err
	}
	res := struct {
		OK          bool         `json:"ok"`
		Cases       int          `json:"cases"`
		Files       int          `json:"files"`
		Differences []difference `json:"differences"`
		Written     []written    `json:"written,omitempty"`
	}{Files: len(files), Differences: []difference{}}
	var errs []error
	for _, file := range files {
		c, err := loadCases(file, r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		res.Cases += len(c.form.Cases)
		outs, err := c.run(ctx)
		if err != nil {
			errs = append(errs, r.place(err))
			continue
		}
		ds := c.compare(outs)
		if update && len(ds) > 0 {
			w, err := c.update(ctx, r, outs, ds)
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
			failed[fmt.Sprint(d.File, d.number)] = true
		}
		switch {
		case len(failed) > 0:
			fmt.Fprintf(w, "%d of %s of %s are not as expected; --update would write what came out\n", len(failed), counted(res.Cases, "case"), counted(res.Files, "file"))
		case len(errs) == 0:
			fmt.Fprintf(w, "%s of %s are as expected\n", counted(res.Cases, "case"), counted(res.Files, "file"))
		}
	}); err != nil {
		return err
	}
	if !res.OK && len(errs) == 0 {
		return exit(exitFailed)
	}
	return errors.Join(errs...)
}

// counted is "1 case" or "2 cases".
func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// caseFiles are those that are named, or those beside the configuration.
func caseFiles(configFile string, args []string) (files []string, err error) {
	named := len(args) > 0
	if !named {
		args = []string{filepath.Join(filepath.Dir(configFile), "mappings")}
	}
	for _, arg := range args {
		info, err := os.Stat(arg)
		switch {
		case err != nil && !named:
			continue
		case err != nil:
			return nil, errNoCase.New("reading cases: %w", err)
		case !info.IsDir():
			files = append(files, arg)
			continue
		}
		err = filepath.WalkDir(arg, func(name string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (strings.HasSuffix(name, ".test.yml") || strings.HasSuffix(name, ".test.yaml")) {
				files = append(files, name)
			}
			return err
		})
		if err != nil {
			return nil, errNoCase.New("reading cases: %w", err)
		}
	}
	if len(files) == 0 {
		file := filepath.Join(args[0], "invoice_line.test.yml")
		return nil, errNoCase.New("there is no *.test.yml in %s", strings.Join(args, ", ")).
			WithRemedy("Write one, %s say:\n\n%s", file, minimalCase)
	}
	return files, nil
}

// run gives the outcome of each case. An error is one of the rules against the
// table.
func (c *cases) run(ctx context.Context) ([]outcome, error) {
	trial, err := mapping.NewTrial(c.stage, c.all)
	if err != nil {
		return nil, err
	}
	outs := make([]outcome, len(c.form.Cases))
	for i := range c.form.Cases {
		in := change.Get()
		for j := range c.form.Cases[i].Rows {
			c.row(in, &c.form.Cases[i].Rows[j], fmt.Sprintf("cases[%d].rows[%d]", i, j))
		}
		b, rejected, err := trial.Apply(ctx, in)
		if err != nil {
			return nil, err
		}
		for j := range b.Changes {
			outs[i].records = append(outs[i].records, recordOf(b, &b.Changes[j]))
		}
		b.Release()
		for _, r := range rejected {
			x := outRejection{row: r.Row, text: r.Err.Error()}
			if e := problem.Of(r.Err); e != nil {
				x.code, x.text = e.ID, e.Text
			}
			outs[i].rejected = append(outs[i].rejected, x)
		}
	}
	return outs, nil
}

// recordOf is a record as a case speaks of it.
func recordOf(b *change.Batch, d *change.Change) outRecord {
	out := outRecord{topic: d.Table.Topic, key: strings.ReplaceAll(string(change.AppendKey(nil, b, d)), "\x1f", "|"), op: "upsert"}
	if d.New == nil {
		out.op = "delete"
	}
	for i, v := range d.Row() {
		col := &d.Table.Columns[i]
		f := outField{col: col, known: !v.IsUnchanged()}
		if f.known {
			f.text = valueText(b, col, v)
		}
		out.fields = append(out.fields, f)
	}
	return out
}

// compare tells what differs, of all cases.
func (c *cases) compare(outs []outcome) (ds []difference) {
	for i := range outs {
		k := &c.form.Cases[i]
		add := func(d difference) {
			d.File, d.Line, d.Case, d.number = c.file, c.doc.Line(fmt.Sprintf("cases[%d]", i)), k.Name, i
			ds = append(ds, d)
		}
		if k.Records == nil && k.Rejected == nil {
			add(difference{What: fmt.Sprintf("it does not say what must come out; %s", outs[i].summary())})
			continue
		}
		c.compareRecords(k, &outs[i], add)
		compareRejected(k, &outs[i], add)
	}
	return ds
}

// summary says in short what came out.
func (o *outcome) summary() string {
	var all []string
	for i := range o.records {
		all = append(all, o.records[i].String())
	}
	for _, r := range o.rejected {
		all = append(all, fmt.Sprintf("row %d was rejected with %s", r.row+1, r.code))
	}
	if len(all) == 0 {
		return "nothing came out"
	}
	return "out came " + strings.Join(all, "; ")
}

func (c *cases) compareRecords(k *mappingCase, o *outcome, add func(difference)) {
	var want []caseRecord
	if k.Records != nil {
		want = *k.Records
	}
	for _, p := range pairs(want, o.records) {
		switch {
		case p.got < 0:
			add(difference{What: fmt.Sprintf("record %d did not come: %s", p.want+1, want[p.want].String())})
		case p.want < 0:
			add(difference{What: "a record came that is not expected: " + o.records[p.got].String()})
		default:
			what := fmt.Sprintf("record %d, %s", p.want+1, o.records[p.got].String())
			for _, d := range c.differing(&want[p.want], &o.records[p.got]) {
				d.What = what
				add(d)
			}
		}
	}
}

func (r *caseRecord) String() string {
	if r.Key.Text == "" {
		return strings.TrimSpace(r.Topic + map[string]string{"delete": ", deleted"}[r.Op])
	}
	return r.Topic + " " + r.Key.Text + map[string]string{"delete": ", deleted"}[r.Op]
}

// differing are the fields of a record that are not as they must be.
func (c *cases) differing(w *caseRecord, g *outRecord) (ds []difference) {
	for _, x := range []struct{ name, want, got string }{{"topic", w.Topic, g.topic}, {"key", w.Key.Text, g.key}, {"op", w.Op, g.op}} {
		if x.want != x.got && (x.name != "key" || x.want != "") {
			ds = append(ds, difference{Field: x.name, Want: &x.want, Got: &x.got})
		}
	}
	if w.Topic != g.topic {
		return ds
	}
	for i := range g.fields {
		f := &g.fields[i]
		written, named := w.Fields[f.col.Name]
		if !named {
			continue
		}
		want, err := fieldText(f.col, written)
		if err != nil {
			panic("BUG: a field that was checked cannot be read: " + err.Error())
		}
		got := f.text
		if !f.known {
			none := "(not known of a delete)"
			got = &none
		}
		if (want == nil) != (got == nil) || want != nil && *want != *got {
			ds = append(ds, difference{Field: f.col.Name, Want: want, Got: got})
		}
	}
	return ds
}

// pair is an expected record and what came for it; -1: none.
type pair struct{ want, got int }

// pairs lines up what is expected with what came: one by one when they are as
// many, else by the longest run of those that are of one topic, op and key.
func pairs(want []caseRecord, got []outRecord) (out []pair) {
	if len(want) == len(got) {
		for i := range want {
			out = append(out, pair{i, i})
		}
		return out
	}
	same := func(i, j int) bool {
		return want[i].Topic == got[j].topic && want[i].Op == got[j].op && (want[i].Key.Text == "" || want[i].Key.Text == got[j].key)
	}
	longest := make([][]int, len(want)+1) // of what follows i and j
	for i := range longest {
		longest[i] = make([]int, len(got)+1)
	}
	for i := len(want) - 1; i >= 0; i-- {
		for j := len(got) - 1; j >= 0; j-- {
			longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			if same(i, j) {
				longest[i][j] = max(longest[i][j], longest[i+1][j+1]+1)
			}
		}
	}
	i, j := 0, 0
	for i < len(want) || j < len(got) {
		switch {
		case i < len(want) && j < len(got) && same(i, j) && longest[i][j] == longest[i+1][j+1]+1:
			out = append(out, pair{i, j})
			i, j = i+1, j+1
		case j == len(got) || i < len(want) && longest[i+1][j] >= longest[i][j+1]:
			out = append(out, pair{i, -1})
			i++
		default:
			out = append(out, pair{-1, j})
			j++
		}
	}
	return out
}

func compareRejected(k *mappingCase, o *outcome, add func(difference)) {
	var want []caseRejection
	if k.Rejected != nil {
		want = *k.Rejected
	}
	for i := range max(len(want), len(o.rejected)) {
		switch {
		case i >= len(o.rejected):
			add(difference{What: fmt.Sprintf("no row was rejected with %s", want[i].Error)})
		case i >= len(want):
			r := o.rejected[i]
			add(difference{What: fmt.Sprintf("row %d was rejected: %s: %s", r.row+1, r.code, r.text)})
		default:
			r, what := o.rejected[i], fmt.Sprintf("rejection %d, of row %d", i+1, o.rejected[i].row+1)
			if want[i].Error != r.code {
				add(difference{What: what, Field: "error", Want: &want[i].Error, Got: &r.code})
			}
			if !strings.Contains(r.text, want[i].Contains) {
				add(difference{What: what, Field: "contains", Want: &want[i].Contains, Got: &r.text})
			}
		}
	}
}

// printDifferences groups them by case and record.
func printDifferences(w io.Writer, ds []difference) {
	last := difference{number: -1}
	for _, d := range ds {
		if d.File != last.File || d.number != last.number {
			fmt.Fprintf(w, "%s:%d: %s\n", d.File, d.Line, d.Case)
			last = difference{}
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

// written is what --update changed.
type written struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Case string `json:"case"`
	What string `json:"what"`
}

// fieldsNamed are the fields that a record of a case names, in the contract's order.
func fieldsNamed(w *caseRecord, g *outRecord) (out []string) {
	for i := range g.fields {
		if _, named := w.Fields[g.fields[i].col.Name]; named {
			out = append(out, g.fields[i].col.Name)
		}
	}
	return slices.Clip(out)
}
