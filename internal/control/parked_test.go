package control_test

import (
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func parked(key string, offset int64, waits string) control.Parked {
	return control.Parked{
		Stage: "erp", Kind: control.KindSink, Topic: "ps.project", TopicID: [16]byte{1}, Partition: 2, Offset: offset,
		Key: key, RecordKey: []byte(key), Value: []byte{1, 0, 2}, Headers: []control.Header{{Key: "h", Value: []byte{0, 255}}},
		Millis: 1_780_000_000_000, Code: "TW-X", Reason: "not\x00taken", Remedy: "Mend it.", WaitsFor: waits,
	}
}

// What is parked must be all of the record, and the newest version of it.
func TestParkedStore(t *testing.T) {
	ctx := t.Context()
	pg := testkit.NewPostgres(t, "")
	if err := pg.CreateDatabase(ctx, "control"); err != nil {
		t.Fatal(err)
	}
	dsn := pg.DSN("control")
	// Two processes that start at once both migrate.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			p, err := control.Open(ctx, dsn)
			if err != nil {
				t.Error(err)
				return
			}
			p.Close()
		})
	}
	wg.Wait()
	pool, err := control.Open(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := control.NewParked(pool)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	list := func(f control.Filter) []control.Parked {
		t.Helper()
		ps, err := s.List(ctx, f)
		must(err)
		return ps
	}
	must(s.Put(ctx, []control.Parked{parked("1", 10, ""), parked("2", 11, "ps.customer/7")}))
	must(s.Put(ctx, []control.Parked{parked("1", 10, "")})) // tried again
	must(s.Put(ctx, []control.Parked{parked("1", 9, "")}))  // older
	ps := list(control.Filter{Key: "1"})
	if len(ps) != 1 || ps[0].Offset != 10 || ps[0].Attempts != 2 || string(ps[0].Value) != "\x01\x00\x02" ||
		len(ps[0].Headers) != 1 || string(ps[0].Headers[0].Value) != "\x00\xff" || ps[0].Reason != "not\uFFFDtaken" {
		t.Fatalf("%+v", ps)
	}
	must(s.Put(ctx, []control.Parked{parked("1", 12, "")})) // newer
	if ps = list(control.Filter{Key: "1"}); ps[0].Offset != 12 || ps[0].Attempts != 1 {
		t.Fatalf("the newer version did not replace: %+v", ps)
	}
	if p, w, err := s.Count(ctx, "erp"); err != nil || p != 1 || w != 1 {
		t.Fatalf("%d parked, %d waiting, %v", p, w, err)
	}

	here := []control.PartID{{Topic: "ps.project", Partition: 2}}
	due := func(parts []control.PartID, patience time.Duration) int {
		t.Helper()
		ps, err := s.Due(ctx, "erp", parts, patience, 100)
		must(err)
		return len(ps)
	}
	if n := due(here, time.Hour); n != 0 {
		t.Fatalf("%d are due before anybody asked", n)
	}
	if n, err := s.Release(ctx, "erp", []string{"ps.customer/8", "ps.customer/7"}); n != 1 || err != nil {
		t.Fatalf("released %d, %v", n, err)
	}
	if n := due(here, time.Hour); n != 1 {
		t.Fatalf("%d are due after the release", n)
	}
	if n := due([]control.PartID{{Topic: "ps.project", Partition: 1}}, time.Hour); n != 0 {
		t.Fatalf("%d of another partition are due", n)
	}
	must(s.Put(ctx, []control.Parked{parked("2", 11, "ps.customer/7")})) // waits again
	if n := due(here, time.Hour); n != 0 {
		t.Fatalf("%d are due after another try", n)
	}
	if n := due(here, 0); n != 1 {
		t.Fatalf("%d are due when patience ends", n)
	}
	if n, err := s.RequestRetry(ctx, "erp", "", "1"); n != 1 || err != nil {
		t.Fatalf("asked for %d, %v", n, err)
	}
	if n := due(here, time.Hour); n != 1 {
		t.Fatalf("%d are due after the request", n)
	}

	must(s.Replace(ctx, "erp", here, []control.Parked{parked("3", 20, "")}))
	if ps = list(control.Filter{Stage: "erp"}); len(ps) != 1 || ps[0].Key != "3" {
		t.Fatalf("after Replace: %+v", ps)
	}
	must(s.Delete(ctx, "erp", []control.Ref{{Topic: "ps.project", RecordKey: []byte("3")}}))
	if ps = list(control.Filter{}); len(ps) != 0 {
		t.Fatalf("after Delete: %+v", ps)
	}

	must(pg.Down(ctx))
	if err := s.Put(ctx, []control.Parked{parked("1", 1, "")}); problem.Of(err) == nil || problem.Of(err).Class != problem.Retry {
		t.Fatalf("a server that is gone: %v, want a problem of class retry", err)
	}
}

// A wrong DSN must not print its password.
func TestDSNIsNotPrinted(t *testing.T) {
	_, err := control.Open(t.Context(), "postgres://u:s3cret@host:notaport/db")
	if !problem.Has(err, control.ErrDSN) {
		t.Fatal(err)
	}
	if s := err.Error(); containsSecret(s) {
		t.Fatalf("the password is in %q", s)
	}
}

func containsSecret(s string) bool {
	for i := 0; i+6 <= len(s); i++ {
		if s[i:i+6] == "s3cret" {
			return true
		}
	}
	return false
}

// Lost if this fails: a rollback does not start, since the newer version has
// migrated the control database.
func TestSchemaOfANewerVersion(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	pool, err := control.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pool.Exec(t.Context(), "insert into tallywire.schema_version (version_id, is_applied) values (9000, true); alter table tallywire.parked add column newer text", pgx.QueryExecModeSimpleProtocol)
	pool.Close()
	if err != nil {
		t.Fatal(err)
	}
	pool, err = control.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := control.NewParked(pool)
	p := parked("k", 1, "")
	if err := s.Put(t.Context(), []control.Parked{p}); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.List(t.Context(), control.Filter{}); err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
}
