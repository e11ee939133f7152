package join_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/transforms/join"
)

// Lost if this fails: a topic that another writes, with another type of a field
// that is looked up, halts the lookups at its first record, after a doctor that said
// all was well.
func TestDoctor(t *testing.T) {
	tables := map[string]*change.Table{}
	_, right := join.New(compiled(t, costing()), join.Options{
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
		Tables: func(_ context.Context, topic string) (*change.Table, error) { return tables[topic], nil },
	})
	if fs := right.Doctor(t.Context()); len(fs) != 0 {
		t.Errorf("of topics that nobody wrote yet: %v", fs)
	}
	for _, topic := range []string{"ps.project", "ps.customer", "ps.cost_rate"} {
		tables[topic] = contracts[topic].Table
	}
	for _, f := range right.Doctor(t.Context()) {
		if f.Err != nil {
			t.Errorf("by their contracts: %v", f.Err)
		}
	}
	other := *contracts["ps.cost_rate"].Table
	other.Columns = append([]change.Column(nil), other.Columns...)
	other.Columns[other.Column("rate")].Kind = change.String
	other.Columns[other.Column("currency")].Name = "money"
	tables["ps.cost_rate"] = other.Index()
	var said []string
	for _, f := range right.Doctor(t.Context()) {
		if f.Err != nil {
			said = append(said, f.Err.Error())
		}
	}
	text := strings.Join(said, "\n")
	if len(said) != 2 || !strings.Contains(text, "field rate of a record of ps.cost_rate is") || !strings.Contains(text, "no field currency") {
		t.Errorf("the doctor says:\n%s", text)
	}
	// Remedy: TW-LOOKUP-COLUMN
	tables["ps.cost_rate"] = contracts["ps.cost_rate"].Table
	for _, f := range right.Doctor(t.Context()) {
		if f.Err != nil {
			t.Errorf("by their contracts again: %v", f.Err)
		}
	}
}
