package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/supervise"
)

// Lost if this fails: a replay of a map with lookups sets back what comes again by
// itself, and gives all twice; or not what its rules read of others.
func TestReplayedGroups(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	text := `
transforms:
  canonical:
    type: map
    topics:
      - {from: psa.public.cost_rate, to: ps.cost_rate, fields: {cost_rate_id: "{employee_id}/{id}", resource_id: employee_id}}
      - from: psa.public.project
        to: ps.project
        lookups: {customer: {topic: psa.public.customer, on: customer_id}}
        fields: {project_id: id, number: customer.number}
      - from: ps.cost_rate
        to: ps.invoice_line
        lookups: {project: {topic: ps.project, on: resource_id}}
        fields: {invoice_line_id: cost_rate_id, invoice_id: resource_id, project_id: project.number, description: resource_id, quantity: 1, unit_price: 1, amount: 1}
  costed:
` + examples.Costed()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, config.Options{Static: true})
	if err != nil {
		t.Fatal(err)
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	for _, c := range []struct {
		name, topic string
		want        []string
	}{
		{"canonical", "", []string{"canonical: psa.public.cost_rate psa.public.customer psa.public.project"}},
		{"canonical", "psa.public.project", []string{"canonical: psa.public.project"}},
		{"costed", "", []string{"costed.ps.time_entry_costed: ps.time_entry"}},
		{"costed.ps.time_entry_costed.right", "", []string{"costed.ps.time_entry_costed.right: ps.cost_rate ps.customer ps.project"}},
	} {
		groups, err := groupsOf(p, c.name, c.topic)
		if err != nil {
			t.Fatal(problem.Format(err))
		}
		var got []string
		for _, g := range groups {
			text := g.name + ":"
			for _, topic := range g.topics {
				text += " " + topic
			}
			got = append(got, text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %s sets back %q, want %q", c.name, c.topic, got, c.want)
		}
	}
	for _, c := range [][2]string{{"nobody", ""}, {"costed", "ps.project"}} {
		if groups, err := groupsOf(p, c[0], c[1]); !problem.Has(err, errGroup) {
			t.Errorf("%s %s: %v, %v", c[0], c[1], groups, err)
		}
	}
}
