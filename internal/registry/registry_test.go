package registry_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCluster(t testing.TB) *kafka.Cluster {
	log := slog.New(slog.DiscardHandler)
	e, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := kafka.New(kafka.Config{Brokers: []string{e.Addr()}}, obs.New(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func open(t testing.TB, c *kafka.Cluster) (*sr.Client, func()) {
	s, err := registry.New(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	cl, err := sr.NewClient(sr.URLs(h.URL), sr.HTTPClient(h.Client()))
	if err != nil {
		t.Fatal(err)
	}
	return cl, func() { h.Close(); s.Close() }
}

func rec(name string, fields ...string) sr.Schema {
	return sr.Schema{Schema: `{"type":"record","name":"` + name + `","fields":[` + strings.Join(fields, ",") + `]}`}
}

const (
	fieldA    = `{"name":"a","type":"string"}`
	fieldAInt = `{"name":"a","type":"int"}`
	fieldB    = `{"name":"b","type":["null","long"],"default":null}`
	fieldBMus = `{"name":"b","type":"long"}`
)

func wantCode(t *testing.T, err error, code int) {
	t.Helper()
	var re *sr.ResponseError
	if !errors.As(err, &re) || re.ErrorCode != code {
		t.Fatalf("want error %d, got %v", code, err)
	}
}

// If this failed, a registered schema could be lost, or a record be read with
// another one than it was written with.
func TestSchemasOutliveTheServer(t *testing.T) {
	c := newCluster(t)
	cl, stop := open(t, c)
	ctx := t.Context()
	one, err := cl.CreateSchema(ctx, "a/b %-value", rec("r", fieldA))
	if err != nil {
		t.Fatal(err)
	}
	two, err := cl.CreateSchema(ctx, "a/b %-value", rec("r", fieldA, fieldB))
	if err != nil {
		t.Fatal(err)
	}
	other, err := cl.CreateSchema(ctx, "other-value", sr.Schema{Schema: "  " + rec("r", fieldA).Schema + "\n"})
	if err != nil {
		t.Fatal(err)
	}
	if one.ID != other.ID || one.ID == two.ID || two.Version != 2 || other.Version != 1 {
		t.Fatalf("ids and versions: %+v, %+v, %+v", one, two, other)
	}
	if r := cl.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatFull}, "other-value"); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	stop()

	cl, stop = open(t, c)
	defer stop()
	text, err := cl.SchemaTextByID(ctx, two.ID)
	if err != nil || text != rec("r", fieldA, fieldB).Schema {
		t.Fatalf("schema %d is %q, %v", two.ID, text, err)
	}
	vs, err := cl.SubjectVersions(ctx, "a/b %-value")
	if err != nil || len(vs) != 2 {
		t.Fatalf("versions %v, %v", vs, err)
	}
	if r := cl.Compatibility(ctx, "other-value"); r[0].Err != nil || r[0].Level != sr.CompatFull {
		t.Fatalf("compatibility %+v", r[0])
	}
	again, err := cl.RegisterSchema(ctx, "a/b %-value", rec("r", fieldA), -1, -1)
	if err != nil || again != one.ID {
		t.Fatalf("registered again: id %d, want %d (%v)", again, one.ID, err)
	}
	next, err := cl.RegisterSchema(ctx, "new-key", sr.Schema{Schema: `"string"`}, -1, -1)
	if err != nil || next != two.ID+1 {
		t.Fatalf("next id %d, want %d (%v)", next, two.ID+1, err)
	}
}

func decimalOf(precision, scale int) string {
	return fmt.Sprintf(`{"name":"a","type":["null",{"type":"bytes","logicalType":"decimal","precision":%d,"scale":%d}],"default":null}`, precision, scale)
}

// If this failed, a reader would meet records that it cannot read.
func TestCompatibilityIsChecked(t *testing.T) {
	cl, stop := open(t, newCluster(t))
	defer stop()
	ctx := t.Context()
	for i, c := range []struct {
		level    sr.CompatibilityLevel
		old, new sr.Schema
		ok       bool
	}{
		{sr.CompatBackward, rec("r", fieldA), rec("r", fieldA, fieldB), true},
		{sr.CompatBackward, rec("r", fieldA), rec("r", fieldA, fieldBMus), false},
		{sr.CompatBackward, rec("r", fieldA, fieldBMus), rec("r", fieldA), true},
		{sr.CompatBackward, rec("r", fieldA), rec("r", fieldAInt), false},
		{sr.CompatForward, rec("r", fieldA), rec("r", fieldA, fieldBMus), true},
		{sr.CompatForward, rec("r", fieldA, fieldBMus), rec("r", fieldA), false},
		{sr.CompatFull, rec("r", fieldA), rec("r", fieldA, fieldBMus), false},
		{sr.CompatFull, rec("r", fieldA), rec("r", fieldA, fieldB), true},
		{sr.CompatNone, rec("r", fieldA), rec("r", fieldAInt), true},
		{sr.CompatBackward, rec("r", decimalOf(14, 2)), rec("r", decimalOf(16, 2)), true},
		{sr.CompatBackward, rec("r", decimalOf(14, 2)), rec("r", decimalOf(14, 4)), false},
	} {
		subject := fmt.Sprintf("s%d", i)
		if r := cl.SetCompatibility(ctx, sr.SetCompatibility{Level: c.level}, subject); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
		if _, err := cl.CreateSchema(ctx, subject, c.old); err != nil {
			t.Fatal(err)
		}
		res, err := cl.CheckCompatibility(ctx, subject, -1, c.new)
		if err != nil || res.Is != c.ok {
			t.Errorf("%d: checking: %+v, %v, want %v", i, res, err, c.ok)
		}
		_, err = cl.CreateSchema(ctx, subject, c.new)
		if c.ok && err != nil {
			t.Errorf("%d: refused: %v", i, err)
		}
		if !c.ok {
			wantCode(t, err, 409)
		}
	}
	// Transitive: each step is compatible with the last, the third not with the first.
	def := `{"name":"b","type":"string","default":""}`
	if r := cl.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatBackwardTransitive}); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	for i, s := range []sr.Schema{rec("r", fieldA, fieldBMus), rec("r", fieldA), rec("r", fieldA, def)} {
		_, err := cl.CreateSchema(ctx, "transitive", s)
		if i < 2 && err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			wantCode(t, err, 409)
		}
	}
}

// If this failed, a client would take a mistake for an outage, or the reverse.
func TestErrorsAreConfluents(t *testing.T) {
	cl, stop := open(t, newCluster(t))
	defer stop()
	ctx := t.Context()
	_, err := cl.SchemaByID(ctx, 7)
	wantCode(t, err, 40403)
	_, err = cl.SubjectVersions(ctx, "none")
	wantCode(t, err, 40401)
	_, err = cl.CreateSchema(ctx, "s", sr.Schema{Schema: `{"type":"record"}`})
	wantCode(t, err, 42201)
	_, err = cl.CreateSchema(ctx, "s", sr.Schema{Schema: `{}`, Type: sr.TypeJSON})
	wantCode(t, err, 42201)
	if _, err := cl.CreateSchema(ctx, "s", rec("r", fieldA)); err != nil {
		t.Fatal(err)
	}
	_, err = cl.SchemaByVersion(ctx, "s", 9)
	wantCode(t, err, 40402)
	_, err = cl.LookupSchema(ctx, "s", rec("r", fieldAInt))
	wantCode(t, err, 40403)
	_, err = cl.DeleteSubject(ctx, "s", sr.HardDelete)
	wantCode(t, err, 40405)
	if r := cl.SetMode(ctx, sr.ModeReadOnly, "s"); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	_, err = cl.CreateSchema(ctx, "s", rec("r", fieldA, fieldB))
	wantCode(t, err, 42205)
}

// If this failed, an id would come to name a second schema, and records be
// read with the wrong one.
func TestDeletedIDsStayTaken(t *testing.T) {
	c := newCluster(t)
	cl, stop := open(t, c)
	ctx := t.Context()
	first, err := cl.CreateSchema(ctx, "s", rec("r", fieldA))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.DeleteSubject(ctx, "s", sr.SoftDelete); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.SchemaByID(ctx, first.ID); err != nil {
		t.Fatalf("a soft-deleted schema can no longer be read: %v", err)
	}
	_, err = cl.DeleteSubject(ctx, "s", sr.HardDelete)
	wantCode(t, err, 42205) // the newest id
	stop()
	cl, stop = open(t, c)
	defer stop()
	second, err := cl.CreateSchema(ctx, "s", rec("r", fieldAInt))
	if err != nil || second.ID == first.ID || second.Version != 2 {
		t.Fatalf("second %+v after first %+v (%v)", second, first, err)
	}
	if err := cl.DeleteSchema(ctx, "s", 1, sr.HardDelete); err != nil {
		t.Fatal(err)
	}
	_, err = cl.SchemaByID(ctx, first.ID)
	wantCode(t, err, 40403)
}

// Two registries on one Kafka. If this failed, both could give one id to two
// schemas, and each would read the other's records wrong.
func TestTwoRegistriesGiveEachIDOnce(t *testing.T) { rivalry(t, newCluster(t)) }

func rivalry(t *testing.T, c *kafka.Cluster) {
	t.Helper()
	ctx := t.Context()
	var cls [2]*sr.Client
	for i := range cls {
		cl, stop := open(t, c)
		defer stop()
		cls[i] = cl
	}
	const n = 12
	var mu sync.Mutex
	byID := map[int]string{}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range n {
				// Half of the schemas are the same in all four workers.
				s := rec(fmt.Sprintf("r%d_%d", i, w*(i%2)), fieldA)
				id, err := cls[w%2].RegisterSchema(ctx, fmt.Sprintf("s%d_%d", i, w), s, -1, -1)
				if err != nil {
					t.Errorf("worker %d: %v", w, err)
					return
				}
				mu.Lock()
				if was, ok := byID[id]; ok && was != s.Schema {
					t.Errorf("id %d names two schemas: %s and %s", id, was, s.Schema)
				}
				byID[id] = s.Schema
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for id, s := range byID {
		if other, dup := seen[s]; dup {
			t.Errorf("schema %s has ids %d and %d", s, id, other)
		}
		seen[s] = id
		for i, cl := range cls {
			if text, err := cl.SchemaTextByID(ctx, id); err != nil || text != s {
				t.Errorf("registry %d: id %d is %q, want %q (%v)", i, id, text, s, err)
			}
		}
	}
	// What a foreign reader of the topic sees must say the same.
	cl, err := c.Client(kgo.ConsumeTopics(registry.Topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	schemas := 0
	for schemas < 4*n {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatal(err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if strings.HasPrefix(string(r.Key), `{"keytype":"SCHEMA","subject":"s`) {
				schemas++
			}
		})
	}
}
