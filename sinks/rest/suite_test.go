package rest

import (
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
)

func TestSinkSuite(t *testing.T) {
	var r *rig
	pipelinetest.SinkSuite(t, pipelinetest.SinkCase{
		Topic: topicCustomer, Mark: "name", KeepsDeleted: true,
		New: func(tb testing.TB) pipeline.Sink {
			r = newRig(tb, erp.Options{}, nil)
			return r.sink
		},
		Read: func(tb testing.TB) map[string]string {
			out := map[string]string{}
			for _, c := range r.erp.Records()["customers"] {
				if had, twice := out[c.Fields["number"]]; twice {
					tb.Errorf("the customer with number %s is there twice: %q", c.Fields["number"], had)
				}
				out[c.Fields["number"]] = c.Fields["displayName"]
			}
			return out
		},
		Fill: func(b *change.Batch, row []change.Value, key, _ int) {
			row[1] = b.SpanString(change.String, pipelinetest.KeyOf(key)) // the number
			for i := range row {
				if row[i].Kind() == change.String && i > 2 { // within Business Central's lengths
					row[i] = b.SpanString(change.String, "DE")
				}
			}
		},
		Spoil: func(_ *change.Batch, c *change.Change) { c.New[1] = change.NullValue() },
	})
}

// TestBatchesOfTheContracts: the columns that the sink reads are those of the
// published contracts.
func TestBatchesOfTheContracts(t *testing.T) {
	r := newRig(t, erp.Options{}, func(c *Config) { c.GoLive = day("2020-01-01") })
	for _, topic := range Topics() {
		f := pipelinetest.NewFeed(t, topic)
		f.Fill = func(b *change.Batch, row []change.Value, _, _ int) {
			set := func(name, v string) {
				if i := f.Table.Column(name); i >= 0 {
					row[i] = b.SpanString(change.String, v)
				}
			}
			for _, name := range []string{"customer_id", "resource_id", "project_id"} {
				set(name, "1")
			}
			set("status", "approved")
			set("country", "DE")
		}
		b := f.Batch(1, 1)
		fs, err := r.sink.Write(t.Context(), b)
		b.Release()
		if err != nil || len(fs) > 0 {
			t.Fatalf("%s: %v, %v", topic, fs, err)
		}
	}
	r.once(1)
}
