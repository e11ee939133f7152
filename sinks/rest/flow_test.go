// The sink in the deliver loop: Kafka, the registry, the parked store.

package rest

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/registry"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/deliver"
	"github.com/tallywire/tallywire/pipeline/records"
)

// flow is a rig behind a Kafka.
type flow struct {
	*rig
	env  *pipeline.Env
	outs *records.Outputs
	cl   *kgo.Client
}

func newFlow(t *testing.T, r *rig) *flow {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	o := obs.New(log)
	broker, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", log)
	must(err)
	t.Cleanup(func() {
		if err := broker.Close(); err != nil {
			t.Error(err)
		}
	})
	cluster, err := kafka.New(kafka.Config{Brokers: []string{broker.Addr()}}, o)
	must(err)
	t.Cleanup(cluster.Close)
	reg, err := registry.New(t.Context(), cluster, log)
	must(err)
	t.Cleanup(reg.Close)
	web := httptest.NewServer(reg)
	t.Cleanup(web.Close)
	f := &flow{rig: r, env: &pipeline.Env{Kafka: cluster, Control: r.pool, Obs: o, Instance: "one", Partitions: 3}}
	f.env.Registry, err = avro.NewRegistry(web.URL)
	must(err)
	f.outs = records.NewOutputs(f.env.Kafka, f.env.Registry, func(tt *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: tt.Topic, Partitions: 3, Compact: true}
	}, 0, nil)
	for _, tt := range []*change.Table{customers, resources, projects, entries} {
		_, err := f.outs.Ensure(t.Context(), tt)
		must(err)
	}
	f.cl, err = cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	must(err)
	t.Cleanup(f.cl.Close)
	return f
}

// put writes records to their topics.
func (f *flow) put(rs ...record) {
	f.t.Helper()
	b := batch(f.place(rs...))
	defer b.Release()
	out := new(records.Buffer)
	if err := f.outs.Encode(out, b, 0, b.Len()); err != nil {
		f.t.Fatal(err)
	}
	ptrs := make([]*kgo.Record, len(out.Records))
	for i := range out.Records {
		ptrs[i] = &out.Records[i]
	}
	if err := f.cl.ProduceSync(f.t.Context(), ptrs...).FirstErr(); err != nil {
		f.t.Fatal(err)
	}
}

// deliver runs the sink as the configuration would make it, until stop.
func (f *flow) deliver() (stop func()) {
	f.t.Helper()
	maker, ok := pipeline.Sinks.Find("rest")
	if !ok {
		f.t.Fatal("the kind rest is not registered")
	}
	spec, err := maker(f.env, "erp", func(into any) error {
		*into.(*Config) = f.cfg
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	spec.Tick = 20 * time.Millisecond
	ctx, cancel := context.WithCancel(f.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- deliver.Run(ctx, f.env, spec) }()
	stopped := false
	stop = func() {
		f.t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
		if err := spec.Sink.(*Sink).Close(); err != nil {
			f.t.Error(err)
		}
	}
	f.t.Cleanup(stop)
	return stop
}

func (f *flow) parked() []control.Parked {
	f.t.Helper()
	ps, err := control.NewParked(f.pool).List(f.t.Context(), control.Filter{Stage: "erp"})
	if err != nil {
		f.t.Fatal(err)
	}
	return ps
}

// drained waits until the group has committed all there is.
func (f *flow) drained() {
	f.t.Helper()
	adm := f.env.Kafka.Admin()
	f.until(func() bool {
		lags, err := adm.Lag(f.t.Context(), pipeline.GroupOf("erp"))
		if err != nil {
			f.t.Fatal(err)
		}
		left := int64(0)
		l := lags[pipeline.GroupOf("erp")]
		for _, ps := range l.Lag {
			for _, p := range ps {
				if p.End.Offset > 0 && p.Commit.At < p.End.Offset {
					left++
				}
			}
		}
		return left == 0 && len(l.Lag) > 0
	})
}

// TestRejectedCustomerIsMendedInTheFlow: what depends on it is parked, the rest
// flows, and one retry of the customer brings all of it. A reset of the group
// after that posts nothing.
func TestRejectedCustomerIsMendedInTheFlow(t *testing.T) {
	f := newFlow(t, newRig(t, erp.Options{}, nil))
	f.erp.SetFaults(erp.Faults{RejectCustomers: []string{"C-002"}})
	stop := f.deliver()
	f.put(firm(30)...)
	f.until(func() bool { return len(f.times()) == 20 && len(f.parked()) == 12 })
	waits := map[string]int{}
	for _, p := range f.parked() {
		waits[p.Topic+" "+p.WaitsFor]++
		if p.Topic == topicCustomer && (p.Code != ErrRejected.ID || !strings.Contains(p.Reason, "posting group is missing")) {
			t.Errorf("the customer's problem is %s: %s", p.Code, p.Reason)
		}
	}
	if waits["ps.customer "] != 1 || waits["ps.project ps.customer/2"] != 1 || waits["ps.time_entry ps.project/2"] != 10 {
		t.Errorf("parked: %v", waits)
	}
	f.erp.SetFaults(erp.Faults{})
	if n, err := control.NewParked(f.pool).RequestRetry(t.Context(), "erp", topicCustomer, "2"); err != nil || n != 1 {
		t.Fatalf("asking for a retry: %d, %v", n, err)
	}
	f.until(func() bool { return len(f.parked()) == 0 })
	f.once(30)

	stop()
	before := f.writes()
	offsets := kadm.Offsets{}
	for _, topic := range Topics() {
		for p := range int32(3) {
			offsets.AddOffset(topic, p, 0, -1)
		}
	}
	rs, err := f.env.Kafka.Admin().CommitOffsets(t.Context(), pipeline.GroupOf("erp"), offsets)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
	f.deliver()
	f.put(entry(31, 1, 1))
	f.drained()
	if n := f.writes() - before; n != 1 {
		t.Errorf("the reset made %d writes, want the one of the new entry", n)
	}
	f.once(31)
}
