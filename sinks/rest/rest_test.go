// What these tests have in common: the ERP over a socket, a control database,
// and batches as the deliver loop makes them.

package rest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
	"github.com/tallywire/tallywire/pipeline"
)

func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	leak.Main(m)
}

var (
	customers = contract(topicCustomer)
	resources = contract(topicResource)
	projects  = contract(topicProject)
	entries   = contract(topicTime)
)

func contract(topic string) *change.Table {
	cs, err := avro.Pack()
	if err != nil {
		panic(err)
	}
	return cs[topic].Table
}

// rig is one ERP, one control database and the topics of one Kafka.
type rig struct {
	t      testing.TB
	erp    *erp.Server
	cfg    Config
	pool   *pgxpool.Pool
	sink   *Sink
	topics map[string]*change.Topic
	next   map[string]int64
}

func newRig(t testing.TB, opt erp.Options, tune func(*Config)) *rig {
	t.Helper()
	opt.Dir, opt.ClientSecret = t.TempDir(), "s3"
	if opt.RatePer5Min == 0 {
		opt.RatePer5Min = 1 << 30
	}
	s, err := erp.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	pool, err := control.Open(t.Context(), testkit.NewDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	r := &rig{t: t, erp: s, pool: pool}
	r.cfg = DefaultConfig()
	r.cfg.URL, r.cfg.TokenURL, r.cfg.Company = s.URL(), s.TokenURL(), s.Company()
	r.cfg.ClientID, r.cfg.ClientSecret, r.cfg.Scope = "tallywire", secret.Of("s3"), ""
	r.cfg.GoLive = day("2026-03-01")
	r.cfg.Rate, r.cfg.Burst, r.cfg.Timeout = 1e6, 1000, 5*time.Second
	r.cfg.BreakFor = 50 * time.Millisecond
	if tune != nil {
		tune(&r.cfg)
	}
	r.restart("one")
	r.newTopics(1)
	return r
}

// restart makes a new sink, as a new process would.
func (r *rig) restart(owner string) {
	r.t.Helper()
	s, err := New(r.cfg, r.pool, "erp", owner)
	if err != nil {
		r.t.Fatal(err)
	}
	r.sink = s
	r.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

// newTopics is a Kafka that started over: other ids, offsets from 0.
func (r *rig) newTopics(id byte) {
	r.topics, r.next = map[string]*change.Topic{}, map[string]int64{}
	for i, n := range Topics() {
		r.topics[n] = &change.Topic{Name: n, ID: [16]byte{id, byte(i)}, Partitions: 1}
	}
}

func day(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return t
}

// record is one record of a topic: values by column, as text; nil is a tombstone.
type record struct {
	t      *change.Table
	key    string
	values map[string]string
}

func customer(id int, more ...string) record {
	v := map[string]string{"number": fmt.Sprintf("C-%03d", id), "name": fmt.Sprintf("Customer %d", id), "country": "de", "active": "t"}
	return record{customers, strconv.Itoa(id), with(v, more)}
}

func employee(id int, more ...string) record {
	v := map[string]string{"number": fmt.Sprintf("E-%03d", id), "first_name": "Ann", "last_name": fmt.Sprintf("O'Hara %d", id), "hired_on": "2020-01-31", "active": "t"}
	return record{resources, strconv.Itoa(id), with(v, more)}
}

func project(id, cust int, more ...string) record {
	v := map[string]string{"number": fmt.Sprintf("P-%03d", id), "name": fmt.Sprintf("Project %d", id), "customer_id": strconv.Itoa(cust)}
	return record{projects, strconv.Itoa(id), with(v, more)}
}

func entry(id, res, proj int, more ...string) record {
	v := map[string]string{"resource_id": strconv.Itoa(res), "project_id": strconv.Itoa(proj), "task_number": "10", "work_date": "2026-03-02", "hours": "750", "status": "approved"}
	return record{entries, strconv.Itoa(id), with(v, more)}
}

func with(v map[string]string, more []string) map[string]string {
	for i := 0; i < len(more); i += 2 {
		v[more[i]] = more[i+1]
	}
	return v
}

func gone(r record) record { return record{r.t, r.key, nil} }

// placed is a record at its place in Kafka.
type placed struct {
	record
	at change.Coord
}

func (r *rig) place(rs ...record) []placed {
	out := make([]placed, len(rs))
	for i, x := range rs {
		out[i] = placed{x, change.Coord{Topic: r.topics[x.t.Topic], Offset: r.next[x.t.Topic]}}
		r.next[x.t.Topic]++
	}
	return out
}

func batch(ps []placed) *change.Batch {
	b := change.Get()
	for _, p := range ps {
		vals := b.Row(len(p.t.Columns))
		for i, c := range p.t.Columns {
			v, has := p.values[c.Name]
			switch {
			case i == 0:
				vals[i] = b.SpanString(change.String, p.key)
			case p.values == nil:
				vals[i] = change.UnchangedValue()
			case !has:
				vals[i] = empty(b, c)
			case c.Kind == change.Bool:
				vals[i] = change.BoolValue(v == "t")
			case c.Kind == change.Date:
				vals[i] = change.DateValue(day(v).Unix() / 86400)
			case c.Kind == change.Decimal:
				n, err := strconv.ParseInt(v, 10, 64)
				if err != nil {
					panic(err)
				}
				vals[i] = change.DecimalValue(n, 2)
			default:
				vals[i] = b.SpanString(c.Kind, v)
			}
		}
		c := b.Append(p.t, change.Update)
		c.Coord, c.New = p.at, vals
		if p.values == nil {
			c.Op, c.New, c.Old = change.Delete, nil, vals
		}
	}
	return b
}

// empty is the value of a field that a test does not speak of.
func empty(b *change.Batch, c change.Column) change.Value {
	switch {
	case c.Nullable:
		return change.NullValue()
	case c.Kind == change.Bool:
		return change.BoolValue(false)
	case c.Kind == change.Date:
		return change.DateValue(0)
	case c.Kind == change.Decimal:
		return change.DecimalValue(0, c.Scale)
	case c.Kind == change.TimestampTZ:
		return change.TimestampTZValue(0)
	}
	return b.SpanString(c.Kind, "")
}

// try writes once.
func (r *rig) try(ps []placed) ([]pipeline.Failure, error) {
	b := batch(ps)
	defer b.Release()
	return r.sink.Write(r.t.Context(), b)
}

// write does as the deliver loop: a Retry error brings the batch again, after
// the time that it asks for.
func (r *rig) write(ps []placed) []pipeline.Failure {
	r.t.Helper()
	for {
		fs, err := r.try(ps)
		if err == nil {
			return fs
		}
		p := problem.Of(err)
		if p == nil || p.Class != problem.Retry {
			r.t.Fatalf("writing: %v", err)
		}
		r.t.Logf("again: %v (after %v)", err, p.After)
		timer := time.NewTimer(max(p.After, 10*time.Millisecond))
		select {
		case <-timer.C:
		case <-r.t.Context().Done():
			r.t.Fatal("no end of retries")
		}
	}
}

// ok writes and wants no failure.
func (r *rig) ok(ps []placed) {
	r.t.Helper()
	if fs := r.write(ps); len(fs) > 0 {
		r.t.Fatalf("failures: %v", fs)
	}
}

// times counts the ledger's entries by external reference.
func (r *rig) times() map[string]int {
	out := map[string]int{}
	for _, x := range r.erp.Records()["timeRegistrationEntries"] {
		out[x.Fields["externalReference"]]++
	}
	return out
}

// once wants each of the entries 1 to n in the ledger, once, and no other.
func (r *rig) once(n int) {
	r.t.Helper()
	got := r.times()
	for i := 1; i <= n; i++ {
		ref := fmt.Sprintf("ps.time_entry/%d", i)
		if got[ref] != 1 {
			r.t.Errorf("%s is in the ledger %d times", ref, got[ref])
		}
		delete(got, ref)
	}
	if len(got) > 0 {
		r.t.Errorf("the ledger holds others: %v", got)
	}
}

// writes counts what was posted and patched, whatever came of it.
func (r *rig) writes() (n int64) {
	for k, v := range r.erp.Stats() {
		if strings.HasPrefix(k, "POST") || strings.HasPrefix(k, "PATCH") {
			n += v
		}
	}
	return n
}

func (r *rig) intents() (n int) {
	r.t.Helper()
	if err := r.pool.QueryRow(r.t.Context(), `select count(*) from tallywire.intents`).Scan(&n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// firm is customers, employees and projects 1 to 3, and entries 1 to n.
func firm(n int) []record {
	var rs []record
	for i := 1; i <= n; i++ {
		rs = append(rs, entry(i, i%3+1, i%3+1, "hours", strconv.Itoa(i*25)))
	}
	for i := 1; i <= 3; i++ {
		rs = append(rs, project(i, i), employee(i), customer(i))
	}
	return rs
}

func isCode(err error, c problem.Code) bool {
	var p *problem.Error
	return errors.As(err, &p) && p.ID == c.ID
}
