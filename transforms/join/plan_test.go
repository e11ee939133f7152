package join

import (
	"testing"

	"github.com/tallywire/tallywire/avro"
)

// If this failed, a row that is found by one in force would be looked up before it is
// known which one is.
func TestWhatChoosesIsLookedUpFirst(t *testing.T) {
	all, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	plan, bad := Compile(Rule{Name: "costed", From: "ps.time_entry", Contracts: all, Lookups: map[string]Lookup{
		"project":     {Topic: "ps.project", On: "project_id"},
		"customer":    {Topic: "ps.customer", On: "project.customer_id"},
		"entity":      {Topic: "ps.resource", On: "customer.legal_entity"},
		"by_currency": {Topic: "ps.customer", On: "cost_rate.currency"},
		"cost_rate":   {Topic: "ps.cost_rate", On: "resource_id", By: "resource_id", InForce: &Dated{From: "valid_from", At: "work_date"}, Agree: "ref.currency == entity.email"},
	}})
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	rounds := map[string]int{}
	for _, r := range plan.p.refs {
		rounds[r.name] = r.round
	}
	if rounds["entity"] != 3 || rounds["cost_rate"] != 3 || rounds["by_currency"] != 4 || plan.p.rounds != 4 {
		t.Errorf("looked up in the rounds %v of %d", rounds, plan.p.rounds)
	}
}
