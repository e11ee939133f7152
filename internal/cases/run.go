// Run: files of cases found, and their rows run through the rules.

package cases

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/rules"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// Outcome is what came out of one case.
type Outcome struct {
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

// Find gives the files that are named, or those beside the configuration.
func Find(configFile string, args []string) (files []string, err error) {
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
			WithRemedy("Write one, %s say:\n\n%s", file, Minimal)
	}
	return files, nil
}

// Len is how many cases it has.
func (c *File) Len() int { return len(c.form.Cases) }

// Run gives the outcome of each case. An error is one of the rules against the
// table. open gives an empty Redis, for rules with lookups; it is asked once at most.
func (c *File) Run(ctx context.Context, open func(context.Context) (*redis.Client, error)) ([]Outcome, error) {
	c.open = open
	trial, err := mapping.NewTrial(c.stage, c.all)
	if err != nil {
		return nil, err
	}
	if _, looks := c.stage.Looks(); looks {
		rdb, err := open(ctx)
		if err != nil {
			return nil, err
		}
		trial.Use(rdb)
	}
	outs, fills := make([]Outcome, len(c.form.Cases)), c.stage.Fills(c.form.Topic)
	for i := range c.form.Cases {
		trial.Forget()
		in := change.Get()
		for j := range c.form.Cases[i].Rows {
			c.row(in, &c.form.Cases[i].Rows[j], fmt.Sprintf("cases[%d].rows[%d]", i, j))
		}
		b, rejected, err := trial.Apply(ctx, in)
		if problem.Has(err, mapping.ErrColumn) {
			e := problem.Of(err)
			err = e.WithRemedy("%s Where the table has it, add it to the columns in %s.", e.WhatToDo(), c.file)
		}
		if err != nil {
			return nil, err
		}
		for j := range b.Changes {
			if slices.Contains(fills, b.Changes[j].Table.Topic) { // not what the rows of other tables give
				outs[i].records = append(outs[i].records, recordOf(b, &b.Changes[j]))
			}
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
			f.text = rules.Text(b, col, v)
		}
		out.fields = append(out.fields, f)
	}
	return out
}
