package mapping_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// examine asks the mapping of cost rates, as Make builds it, what it says of a
// table; nil: of none.
func examine(t *testing.T, table *change.Table, failure error) []pipeline.Finding {
	t.Helper()
	env := &pipeline.Env{Tables: func(_ context.Context, topic string) (*change.Table, error) {
		if topic != rates.Topic {
			t.Errorf("asked for %s", topic)
		}
		return table, failure
	}}
	specs, err := mapping.Make(env, "canonical", func(into any) error {
		cfg := config()
		cfg.Dedupe.Mode = "off"
		*into.(*mapping.Config) = cfg
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return specs[0].Stages[0].(pipeline.Doctor).Doctor(t.Context())
}

// Lost if this fails: a mapping of twelve fields takes twelve starts, and what
// every delete lacks is found by the first delete.
func TestDoctor(t *testing.T) {
	alike := func(edit func(*change.Table)) *change.Table {
		c := *rates
		c.Columns = append([]change.Column(nil), rates.Columns...)
		edit(&c)
		return c.Index()
	}
	down := errors.New("down")
	for name, c := range map[string]struct {
		table *change.Table
		err   error
		want  []string // in the error of each finding; "" is well
	}{
		"fits":    {rates, nil, []string{""}},
		"unknown": {nil, nil, nil},
		"unasked": {nil, down, []string{"down"}},
		"all that is wrong": {alike(func(t *change.Table) {
			t.Columns[1].Name, t.Columns[2].Name, t.Columns[4].Kind = "staff_id", "from_day", change.String
		}), nil, []string{`no column "employee_id" for field cost_rate_id`, `no column "employee_id" for field resource_id`, `no column "valid_from"`, "column rate of"}},
		"part of the canonical key is not in the key": {alike(func(t *change.Table) { t.OldFull = false }), nil, []string{""}},
		"no key":   {alike(func(t *change.Table) { t.OldFull, t.Key = false, nil }), nil, []string{"has no key, so what its rows gave in ps.cost_rate cannot be remembered"}},
		"keys fit": {alike(func(t *change.Table) { t.OldFull, t.Key = false, []int{0, 1} }), nil, []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			fs := examine(t, c.table, c.err)
			if len(fs) != len(c.want) {
				t.Fatalf("%d findings, want %d: %v", len(fs), len(c.want), fs)
			}
			for i, f := range fs {
				switch {
				case c.want[i] == "" && f.Err != nil:
					t.Errorf("it is well, and is said: %v", f.Err)
				case c.want[i] != "" && (f.Err == nil || !strings.Contains(f.Err.Error(), c.want[i])):
					t.Errorf("finding %d is %v, want %q", i, f.Err, c.want[i])
				}
			}
		})
	}
	fs := examine(t, alike(func(t *change.Table) { t.OldFull, t.Key = false, nil }), nil)
	if p := problem.Of(fs[0].Err); p == nil || !strings.Contains(p.WhatToDo(), "ALTER TABLE public.cost_rate REPLICA IDENTITY FULL") || p.Where == "" {
		t.Errorf("the remedy or the place is missing: %+v", p)
	}
	fs = examine(t, alike(func(t *change.Table) { t.OldFull, t.Key = false, []int{0, 1} }), nil)
	if !strings.Contains(fs[0].Advice, "in currency as it is") {
		t.Errorf("advice %q does not name the column that may be large", fs[0].Advice)
	}
	fs = examine(t, alike(func(t *change.Table) { t.Columns = append(t.Columns[:3:3], t.Columns[4:6]...) }), nil) // without valid_to and updated_at
	if said := fs[len(fs)-1].Advice; !strings.Contains(said, "nothing fills valid_to:") {
		t.Errorf("of a table without two columns, one of which falls back to the commit: %q", said)
	}
	// Where columns are left out, FULL would have the server refuse updates.
	fs = examine(t, alike(func(t *change.Table) { t.OldFull, t.Partial, t.Key = false, true, []int{0, 1} }), nil)
	if !strings.Contains(fs[0].Advice, "but not while columns of it are left out") {
		t.Errorf("advice %q has its updates fail", fs[0].Advice)
	}
}

// If this failed, a column that a lookup names would be missed by the first row, which
// halts all, or doctor would say that all is wrong where all is well.
func TestDoctorOfLookups(t *testing.T) {
	rules, all, raw := firm(t)
	examine := func(edit func(*change.Table) *change.Table) (errs []string) {
		env := &pipeline.Env{Contracts: all, Partitions: partitions, Tables: func(_ context.Context, topic string) (*change.Table, error) {
			for _, table := range raw {
				if table.Topic == topic {
					return edit(table), nil
				}
			}
			return nil, nil
		}}
		specs, err := mapping.Make(env, "m", func(into any) error {
			*into.(*mapping.Config) = rules
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range specs {
			for _, stage := range spec.Stages {
				d, is := stage.(pipeline.Doctor)
				if !is {
					continue
				}
				for _, f := range d.Doctor(t.Context()) {
					if f.Err != nil {
						errs = append(errs, f.Err.Error())
					}
				}
			}
		}
		return errs
	}
	if errs := examine(func(table *change.Table) *change.Table { return table }); len(errs) > 0 {
		t.Errorf("all is well, and it says:\n%s", strings.Join(errs, "\n"))
	}
	errs := strings.Join(examine(func(table *change.Table) *change.Table {
		c := *table
		c.Columns = append([]change.Column(nil), table.Columns...)
		switch table.Name {
		case "task":
			c.Columns[1].Name = "parent"
		case "rate":
			c.Columns[2].Kind, c.Columns[2].Type = change.String, "text"
		case "mail":
			c.Key = nil
		case "person":
			c.Columns[1].Kind, c.Columns[1].Type = change.Bytes, "bytea"
		}
		return c.Index()
	}), "\n")
	for _, want := range []string{`psa.public.task has no column "parent_id"`, "column valid_from of psa.public.rate is text, and in_force wants a date", "psa.public.mail has no primary key", "person"} {
		if !strings.Contains(errs, want) {
			t.Errorf("it does not say %q:\n%s", want, errs)
		}
	}
}
