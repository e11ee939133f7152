package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/records"
	"github.com/tallywire/tallywire/pipeline/transform"
)

// switchBed is a broker with people in a raw topic, and a transform of them.
type switchBed struct {
	t   *testing.T
	kc  *kafka.Cluster
	reg *avro.Registry
}

func newSwitchBed(t *testing.T, broker, url string, ids ...int64) *switchBed {
	t.Helper()
	b := &switchBed{t: t}
	var err error
	if b.kc, err = kafka.New(kafka.Config{Brokers: []string{broker}}, quiet()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.kc.Close)
	if b.reg, err = avro.NewRegistry(url); err != nil {
		t.Fatal(err)
	}
	people := (&change.Table{
		Source: "psa", Connector: &change.Connector{Name: "postgresql", Version: "1"}, Database: "psa", Schema: "public", Name: "person", Topic: "psa.public.person", OldFull: true, Key: []int{0},
		Columns: []change.Column{
			{Name: "id", Type: "bigint", Kind: change.Int, Width: 8, Precision: -1, Scale: -1},
			{Name: "name", Type: "text", Kind: change.String, Precision: -1, Scale: -1},
		},
	}).Index()
	outs := records.NewOutputs(b.kc, b.reg, func(t *change.Table) kafka.TopicSpec { return kafka.TopicSpec{Name: t.Topic, Partitions: 2} }, 0, nil)
	batch, rs := change.Get(), new(records.Buffer)
	defer batch.Release()
	for i, id := range ids {
		c := batch.Append(people, change.Create)
		c.New = batch.Row(2)
		c.New[0], c.New[1] = change.IntValue(id), batch.SpanString(change.String, "somebody")
		c.Time, c.Pos = time.Now().UnixMicro(), change.Pos{LSN: uint64(i + 1)}
	}
	if err := outs.EnsureAll(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil {
		t.Fatal(err)
	}
	cl, err := b.kc.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range rs.Records {
		if err := cl.ProduceSync(t.Context(), &rs.Records[i]).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// runs runs the transform of a configuration until it has read its topic, and
// does what is to be done while it runs.
func (b *switchBed) runs(file string, meanwhile func()) {
	b.t.Helper()
	cfg, err := config.Load(file, config.Options{Static: true})
	if err != nil {
		b.t.Fatal(err)
	}
	env := &pipeline.Env{Kafka: b.kc, Registry: b.reg, Obs: obs.New(quiet().Log), Instance: cfg.Instance, Partitions: cfg.Partitions}
	p, err := supervise.Build(env, cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.reg.Contracts = env.Contracts
	ctx, stop := context.WithCancel(b.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- transform.Run(ctx, env, p.Transforms[0]) }()
	group := pipeline.GroupOf(p.Transforms[0].Name)
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		lags, err := b.kc.Admin().Lag(b.t.Context(), group)
		if l := lags[group]; err == nil && l.State == "Stable" && l.Lag.TotalByTopic()["psa.public.person"].Lag == 0 && len(l.Lag["psa.public.person"]) > 0 && !slices.ContainsFunc(slices.Collect(maps.Values(l.Lag["psa.public.person"])), func(m kadm.GroupMemberLag) bool { return m.Commit.At < 0 }) {
			break
		}
		if time.Since(began) > testkit.Patience {
			b.t.Fatal("the transform does not come to the end")
		}
	}
	if meanwhile != nil {
		meanwhile()
	}
	stop()
	if err := <-ended; err != nil {
		b.t.Fatal(err)
	}
}

// alive are the keys of the resources that there are.
func (b *switchBed) alive() []string {
	b.t.Helper()
	topic, err := b.kc.Topic(b.t.Context(), "ps.resource")
	if err != nil {
		b.t.Fatal(err)
	}
	ends, err := b.kc.Admin().ListEndOffsets(b.t.Context(), topic.Name)
	if err != nil {
		b.t.Fatal(err)
	}
	keys, dec, batch := map[string]bool{}, avro.NewDecoder(b.reg), change.Get()
	defer batch.Release()
	for p := range topic.Partitions {
		end, _ := ends.Lookup(topic.Name, p)
		err := kafka.Scan(b.t.Context(), b.kc.Shared(), topic, p, 0, end.Offset, func(r *kgo.Record) error {
			if r.Attrs.IsControl() {
				return nil
			}
			batch.Reset()
			if err := dec.Append(b.t.Context(), batch, change.Coord{Topic: topic}, r.Key, r.Value, kafka.Headers(r), 0); err != nil {
				return err
			}
			key := string(change.AppendKey(nil, batch, &batch.Changes[0]))
			if keys[key] = true; r.Value == nil {
				delete(keys, key)
			}
			return nil
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return slices.Sorted(maps.Keys(keys))
}

// Lost if this fails: a change of the rules leaves rows behind that nobody asked
// for, or the way back does.
func TestMappingSwitch(t *testing.T) {
	broker, url, _ := schemas(t)
	rules := func(key string) string {
		return `
kafka: {brokers: ["` + broker + `"]}
registry: {url: "` + url + `"}
partitions: 2
redis: {embedded: true}
control: {embedded: true}
sources: {psa: {type: postgres, dsn: env:TW_TEST_NOT_SET_AT_ALL}}
transforms: {canonical: {type: map, topics: [{from: psa.public.person, to: ps.resource, ` + key + `, fields: {number: id, last_name: name, legal_entity: "=DE", active: true}}]}}
`
	}
	dir := put(t, map[string]string{
		"old.yml": rules(`key: id`), "new.yml": rules(`key: "p-{id}", where: "row.id != 3"`),
		"other.yml": rules(`key: "p-{id}"`) + "\n",
	})
	b := newSwitchBed(t, broker, url, 1, 2, 3)
	does := func(want int, says []string, args ...string) (out string) {
		t.Helper()
		code, out, errs := tw(append([]string{"mapping", "switch"}, args...)...)
		if code != want {
			t.Errorf("%q: exit %d, want %d\n%s%s", args, code, want, out, errs)
		}
		for _, s := range says {
			if !strings.Contains(out+errs, s) {
				t.Errorf("%q does not say %q\n%s%s", args, s, out, errs)
			}
		}
		return out
	}
	holds := func(want ...string) {
		t.Helper()
		if got := b.alive(); !slices.Equal(got, want) {
			t.Errorf("there are %q, want %q", got, want)
		}
	}
	forth := []string{"-c", dir + "/new.yml", "--from", dir + "/old.yml"}
	back := []string{"canonical", "-c", dir + "/old.yml", "--from", dir + "/new.yml"}
	b.runs(dir+"/old.yml", func() {
		does(exitRefused, []string{"TW-SWITCH-ACTIVE: ", "with 1 members"}, append(forth, "--yes")...)
		does(exitOK, []string{"3 deletes would be written", "TW-SWITCH-ACTIVE: ", "nothing was changed"}, forth...)
	})
	holds("1", "2", "3")
	does(exitOK, []string{"3 records of the raw topics read; they would be read again from their start\n", "ps.resource: 3 deletes would be written, of keys that the new rules do not give\n", "nothing was changed; add --yes to do it\n"}, forth...)
	holds("1", "2", "3")
	does(exitOK, []string{"ps.resource: 3 deletes written", "canonical is switched; start its process with the new rules\n"}, append(forth, "--yes")...)
	holds()
	b.runs(dir+"/new.yml", nil)
	holds("p-1", "p-2")
	var res struct {
		Done  bool
		Ended map[string]int64
	}
	if err := json.Unmarshal([]byte(does(exitOK, nil, append(back, "--yes", "-o", "json")...)), &res); err != nil || !res.Done || res.Ended["ps.resource"] != 3 {
		t.Error(res, err)
	}
	b.runs(dir+"/old.yml", nil)
	holds("1", "2", "3")
	does(exitOK, []string{"nothing to delete"}, "-c", dir+"/old.yml", "--from", dir+"/old.yml")
	does(exitUsage, []string{"--from names the configuration"}, "-c", dir+"/old.yml")
	does(exitFailed, []string{"TW-MAP-TRANSFORM: "}, "canonicl", "-c", dir+"/old.yml", "--from", dir+"/new.yml")

	// A rule that moved to another transform is not ended under it.
	moved := strings.Replace(rules(`key: id`), "transforms: {canonical:", "transforms: {other: {type: map, topics: [{from: psa.public.people, to: ps.time_entry, key: id}]}, canonical:", 1)
	moved = strings.ReplaceAll(strings.ReplaceAll(moved, "canonical:", "swapped:"), "other:", "canonical:")
	file := put(t, map[string]string{"moved.yml": moved}) + "/moved.yml"
	does(exitFailed, []string{"TW-CONFIG-VALUE: ", `transform "swapped" may give keys of ps.resource`, "leave it out of a copy"}, "canonical", "-c", file, "--from", dir+"/old.yml")

	// A key that an ERP posts by is not changed unless its user says so: it would
	// be posted again.
	sink := `
sinks: {erp: {type: rest, url: "http://erp", company: C, token_url: "http://erp/token", client_id: tallywire, client_secret: env:TW_TEST_NOT_SET_AT_ALL, go_live: 2026-07-01}}
`
	erp := rules(`key: "p-{id}"`) + sink
	file = put(t, map[string]string{"erp.yml": erp}) + "/erp.yml"
	posts := []string{"canonical", "-c", file, "--from", dir + "/old.yml"}
	twice := "TW-SWITCH-POSTS: the new rules do not give 3 keys of ps.resource, which go to erp"
	does(exitOK, []string{"3 deletes would be written", twice, "--anew SINK"}, posts...)
	does(exitRefused, []string{twice}, append(posts, "--yes")...)
	does(exitUsage, []string{`no sink "warehouse"`}, append(posts, "--anew", "warehouse")...)
	holds("1", "2", "3")
	// Remedy: TW-SWITCH-POSTS
	does(exitOK, []string{"ps.resource: 3 deletes written"}, append(posts, "--anew", "erp", "--yes")...)
	holds()
}
