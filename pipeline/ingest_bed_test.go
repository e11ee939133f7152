// The bed that ingest is tested in: a broker (kfake, or Apache Kafka) behind a
// proxy that loses what a test says, a registry, a source that behaves as a
// Postgres slot does, and a reader that counts every change.

package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// registryServer speaks as much of Confluent's REST API as an encoder needs.
type registryServer struct {
	*httptest.Server
	mu      sync.Mutex
	ids     map[string]int
	down    bool
	refused chan struct{} // one element for each request while down, if there is room
}

func newRegistryServer(t testing.TB) *registryServer {
	r := &registryServer{ids: map[string]int{}, refused: make(chan struct{}, 1)}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registryServer) setDown(down bool) {
	r.mu.Lock()
	r.down = down
	r.mu.Unlock()
}

func (r *registryServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	reply := func(code int, v any) {
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			panic(err)
		}
	}
	if r.down {
		select {
		case r.refused <- struct{}{}:
		default:
		}
		reply(http.StatusServiceUnavailable, map[string]any{"error_code": 50003, "message": "down"})
		return
	}
	byID := func(id int) string {
		for text, n := range r.ids {
			if n == id {
				return text
			}
		}
		return ""
	}
	switch {
	case q.Method == http.MethodPost && strings.HasPrefix(q.URL.Path, "/subjects/"):
		body, err := io.ReadAll(q.Body)
		var in struct{ Schema string }
		if err != nil || json.Unmarshal(body, &in) != nil {
			reply(http.StatusBadRequest, map[string]any{"error_code": 400})
			return
		}
		if r.ids[in.Schema] == 0 {
			r.ids[in.Schema] = len(r.ids) + 1
		}
		subject := strings.Split(q.URL.Path, "/")[2]
		reply(http.StatusOK, map[string]any{"id": r.ids[in.Schema], "version": 1, "subject": subject, "schema": in.Schema})
	case strings.HasPrefix(q.URL.Path, "/schemas/ids/"):
		id, _ := strconv.Atoi(strings.Split(q.URL.Path, "/")[3])
		reply(http.StatusOK, map[string]any{"schema": byID(id), "subject": "s", "version": 1, "id": id})
	default:
		reply(http.StatusNotFound, map[string]any{"error_code": 404, "message": q.URL.Path})
	}
}

type bed struct {
	t        testing.TB
	source   string
	proxy    *testkit.KafkaProxy
	fake     *kfake.Cluster // nil on Apache Kafka
	registry *registryServer
	env      *Env           // through the proxy
	direct   *kafka.Cluster // beside it
}

// onBoth runs a test on kfake and on Apache Kafka.
func onBoth(t *testing.T, test func(t *testing.T, b *bed)) {
	t.Run("kfake", func(t *testing.T) { test(t, newBed(t, "")) })
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		test(t, newBed(t, testkit.SharedKafka(t).Addr()))
	})
}

var beds atomic.Int64

// newBed makes a bed on the broker at addr, or on kfake. Its names are its own:
// with -count a test comes back to a broker that holds what it left.
func newBed(t testing.TB, addr string) *bed {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "Test", "", "Benchmark", "").Replace(t.Name()))
	b := &bed{t: t, source: fmt.Sprintf("s%s-%d", name, beds.Add(1)), registry: newRegistryServer(t)}
	if addr == "" {
		var err error
		if b.fake, err = kfake.NewCluster(kfake.NumBrokers(1)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.fake.Close)
		addr = b.fake.ListenAddrs()[0]
	}
	proxy, err := testkit.NewKafkaProxy(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	b.proxy = proxy
	log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	o := obs.New(log)
	through, err := kafka.New(kafka.Config{Brokers: []string{proxy.Addr()}, Opts: []kgo.Opt{
		kgo.Dialer(proxy.Dial), kgo.RequestRetries(2), kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
	}}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(through.Close)
	if b.direct, err = kafka.New(kafka.Config{Brokers: []string{addr}}, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.direct.Close)
	reg, err := avro.NewRegistry(b.registry.URL)
	if err != nil {
		t.Fatal(err)
	}
	b.env = &Env{Kafka: through, Registry: reg, Obs: o, Instance: "test", Partitions: 3}
	return b
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (b *bed) topic() string { return b.source + ".public.item" }

func (b *bed) table() *change.Table {
	return (&change.Table{
		Source: b.source, Schema: "public", Name: "item", Topic: b.topic(), Key: []int{0}, OldFull: true,
		Columns: []change.Column{
			{Name: "id", Type: "bigint", Kind: change.Int, Width: 8, Precision: -1, Scale: -1},
			{Name: "note", Type: "text", Kind: change.String, Nullable: true, Precision: -1, Scale: -1},
		},
	}).Index()
}

// row is one change of the feed.
type row struct {
	op  change.Op
	id  int64
	was int64 // update: the key before, 0: the same
	val string
}

// feed is an upstream with a slot: it forgets what was acknowledged.
type feed struct {
	table *change.Table
	txs   [][]row // transaction n is txs[n-1]; its LSN is n

	mu        sync.Mutex
	confirmed int // the slot's confirmed position: transactions up to here are forgotten
	lost      []string
	runs      int
	active    bool

	// before is called ahead of sending transaction n; out is the run's.
	before func(n int)
	out    SourceOutlet
	// cut splits transactions: only the last batch of each is a boundary.
	cut bool
	all chan struct{} // closed when everything is confirmed
}

var errSlotInUse = problem.Define("TW-TEST-SLOT-IN-USE", problem.Retry, "The test's slot is in use.", "Wait.")

func newFeed(table *change.Table, txs [][]row) *feed {
	return &feed{table: table, txs: txs, all: make(chan struct{})}
}

type feedToken struct {
	LSN int `json:"lsn"`
}

func (f *feed) Run(ctx context.Context, out SourceOutlet) error {
	f.mu.Lock()
	if f.active {
		f.mu.Unlock()
		return errSlotInUse.New("slot of the feed")
	}
	f.active = true
	f.runs++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.active = false
		f.mu.Unlock()
	}()

	f.out = out
	resume, err := out.Resume(ctx)
	if err != nil {
		return err
	}
	var at feedToken
	if resume != nil {
		if err := json.Unmarshal(resume, &at); err != nil {
			return err
		}
	}
	f.mu.Lock()
	if at.LSN < f.confirmed {
		f.lost = append(f.lost, fmt.Sprintf("acknowledged up to %d, resumes after %d", f.confirmed, at.LSN))
	}
	next := max(at.LSN, f.confirmed) + 1
	f.mu.Unlock()
	if resume != nil { // it is committed, or it would not have been read
		f.confirm(resume)
	}
	for {
		var sent chan struct{}
		if next <= len(f.txs) {
			sent = make(chan struct{})
			close(sent)
		}
		// What is durable is looked at first, as often as can be.
		select {
		case r := <-out.Durable():
			f.confirm(r)
			continue
		default:
		}
		select {
		case r := <-out.Durable():
			f.confirm(r)
		case <-sent:
			if f.before != nil {
				f.before(next)
			}
			if err := f.send(ctx, out, next); err != nil {
				return err
			}
			next++
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *feed) send(ctx context.Context, out SourceOutlet, n int) error {
	rows := f.txs[n-1]
	per := len(rows)
	if f.cut {
		per = max(1, len(rows)/3)
	}
	for from := 0; from < len(rows); from += per {
		b := change.Get()
		to := min(from+per, len(rows))
		for i, r := range rows[from:to] {
			appendRow(b, f.table, r, n, from+i)
		}
		if to == len(rows) {
			b.Resume = fmt.Appendf(nil, `{"lsn":%d}`, n)
		}
		if err := out.Send(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func appendRow(b *change.Batch, t *change.Table, r row, lsn, ordinal int) {
	image := func(id int64) []change.Value {
		v := b.Row(2)
		v[0] = change.IntValue(id)
		v[1] = b.SpanString(change.String, r.val)
		return v
	}
	var was, is []change.Value
	switch r.op {
	case change.Delete:
		was = image(r.id)
	case change.Update:
		old := r.was
		if old == 0 {
			old = r.id
		}
		was, is = image(old), image(r.id)
	default:
		is = image(r.id)
	}
	c := b.Append(t, r.op)
	c.Old, c.New = was, is
	c.XID, c.Time = uint32(lsn), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro()+int64(lsn)*1000
	c.Pos = change.Pos{System: 1, Timeline: 1, LSN: uint64(lsn), Kind: change.PosCommit, Ordinal: uint64(ordinal + 1)}
}

func (f *feed) confirm(r Resume) {
	var at feedToken
	if err := json.Unmarshal(r, &at); err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if at.LSN > f.confirmed {
		f.confirmed = at.LSN
		if at.LSN == len(f.txs) {
			close(f.all)
		}
	}
}

func (f *feed) confirmedTo() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.confirmed
}

func inserts(txs, rows int) [][]row {
	var out [][]row
	for n := range txs {
		var tx []row
		for i := range rows {
			op := change.Update
			if n == 0 {
				op = change.Create
			}
			tx = append(tx, row{op: op, id: int64(i%7 + 1), val: fmt.Sprintf("value %d/%d", n, i)})
		}
		out = append(out, tx)
	}
	return out
}

// running runs a source until the test ends, or stop is called, which gives
// what RunIngest returned.
func running(b *bed, src Source, limits IngestLimits) (stop func() error, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = RunIngest(ctx, b.env, IngestSpec{Name: b.source, Source: src, IngestLimits: limits})
	}()
	stop = func() error {
		cancel()
		<-done
		return err
	}
	b.t.Cleanup(func() {
		if err := stop(); err != nil {
			b.t.Error(err)
		}
	})
	return stop, done
}

// run runs a source to its end and gives what RunIngest returned.
func runIngest(b *bed, ctx context.Context, src Source, limits IngestLimits) error {
	b.t.Helper()
	ended := make(chan error, 1)
	go func() {
		ended <- RunIngest(ctx, b.env, IngestSpec{Name: b.source, Source: src, IngestLimits: limits})
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(2 * testkit.Patience): // longer than any wait inside a source
		b.t.Fatal("waited for the source's end in vain")
		return nil
	}
}

func (b *bed) await(what string, ch <-chan struct{}) {
	b.t.Helper()
	select {
	case <-ch:
	case <-time.After(testkit.Patience):
		b.t.Fatalf("waited for %s in vain", what)
	}
}

// committed reads what a read-committed consumer sees of the raw topic.
func (b *bed) committed() []*kgo.Record {
	b.t.Helper()
	ctx := b.t.Context()
	topic, err := b.direct.Topic(ctx, b.topic())
	if problem.Has(err, kafka.ErrNoTopic) {
		return nil
	}
	if err != nil {
		b.t.Fatal(err)
	}
	cl, err := b.direct.Client()
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	ends, err := b.direct.Admin().ListEndOffsets(ctx, topic.Name)
	if err != nil {
		b.t.Fatal(err)
	}
	var out []*kgo.Record
	for p := range topic.Partitions {
		end, _ := ends.Lookup(topic.Name, p)
		err := kafka.Scan(ctx, cl, topic, p, 0, end.Offset, func(r *kgo.Record) error {
			if !r.Attrs.IsControl() {
				c := *r
				out = append(out, &c)
			}
			return nil
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return out
}

// checkOnce fails unless the raw topic holds each change of txs once and, per
// key, in order. Tombstones are counted with their delete.
func checkOnce(b *bed, txs [][]row) {
	b.t.Helper()
	type coord struct{ lsn, ordinal uint64 }
	seen := map[coord]int{}
	last := map[string]change.Pos{}
	for _, r := range b.committed() {
		var pos change.Pos
		for _, h := range r.Headers {
			if h.Key == kafka.HeaderPos {
				var err error
				if pos, err = change.ParsePos(h.Value); err != nil {
					b.t.Fatal(err)
				}
			}
		}
		if r.Value == nil {
			continue
		}
		seen[coord{pos.LSN, pos.Ordinal}]++
		k := string(r.Key)
		if pos.Compare(last[k]) < 0 {
			b.t.Errorf("key %x: %v comes after %v", k, pos, last[k])
		}
		last[k] = pos
		if !bytes.Contains(r.Value, []byte(txs[pos.LSN-1][pos.Ordinal-1].val)) {
			b.t.Errorf("change %v has another value", pos)
		}
	}
	missing, twice := 0, 0
	for n, tx := range txs {
		for i := range tx {
			switch c := seen[coord{uint64(n + 1), uint64(i + 1)}]; {
			case c == 0:
				missing++
			case c > 1:
				twice++
			}
		}
	}
	if missing > 0 || twice > 0 {
		b.t.Errorf("of the changes %d are missing and %d are there more than once", missing, twice)
	}
}

func (f *feed) check(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.lost {
		t.Errorf("the source was told to forget what is not in Kafka: %s", l)
	}
}
