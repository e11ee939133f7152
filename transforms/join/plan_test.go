package join

import (
	"slices"
	"testing"
)

// If this failed, a reference that is found by one in force would be looked up
// before it is known which one is.
func TestWhatChoosesIsLookedUpFirst(t *testing.T) {
	cfg := Defaults()
	cfg.References = append(slices.Clip(cfg.References[:2]),
		Reference{Name: "entity", Topic: "ps.resource", On: "customer.legal_entity"},
		cfg.References[2],
		Reference{Name: "by_currency", Topic: "ps.customer", On: "cost_rate.currency"})
	cfg.Agree = []Agree{{Field: "entity.email", With: "cost_rate.currency"}, {Field: "by_currency.name", With: "cost_rate.cost_rate_id"}}
	p, err := compile("costed", cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	rounds := map[string]int{}
	for _, r := range p.refs {
		rounds[r.name] = r.round
	}
	if rounds["entity"] != 3 || rounds["cost_rate"] != 3 || rounds["by_currency"] != 4 || p.rounds != 4 {
		t.Errorf("looked up in the rounds %v of %d", rounds, p.rounds)
	}
	// What is found by the one in force says nothing about which one it is.
	if a := p.ref("cost_rate").agrees; len(a) != 1 || a[0].with.ref != p.ref("entity").at {
		t.Errorf("chosen by %v", a)
	}
	if a := p.ref("by_currency").agrees; a != nil {
		t.Errorf("of one row, chosen by %v", a)
	}
}
