package control_test

import (
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"

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
	shown := func(f control.Filter) string {
		t.Helper()
		var out []string
		for _, p := range list(f) {
			out = append(out, fmt.Sprint(p.Key, "@", p.Offset))
		}
		return strings.Join(out, " ")
	}
	topic, other := [16]byte{7}, [16]byte{8}
	put := func(at int64, p control.Parked) control.Event {
		return control.Event{Ref: control.Ref{Topic: p.Topic, RecordKey: p.RecordKey}, Parked: &p, Topic: topic, Offset: at}
	}
	gone := func(at int64, key string) control.Event {
		return control.Event{Ref: control.Ref{Topic: "ps.project", RecordKey: []byte(key)}, Topic: topic, Offset: at}
	}
	apply := func(events ...control.Event) {
		t.Helper()
		must(s.Apply(ctx, "erp", events))
	}
	apply(put(1, parked("1", 10, "")), put(2, parked("2", 11, "ps.customer/7")))
	if n, err := s.RequestRetry(ctx, "erp", "", "1"); n != 1 || err != nil {
		t.Fatalf("asked for %d, %v", n, err)
	}
	apply(put(1, parked("1", 10, "")), put(2, parked("2", 11, "ps.customer/7"))) // once more, by another process
	ps := list(control.Filter{Key: "1"})
	if len(ps) != 1 || ps[0].Offset != 10 || ps[0].Reason != "not\uFFFDtaken" || !ps[0].RetryAsked || ps[0].Value != nil {
		t.Fatalf("%+v", ps)
	}
	if rows, err := s.Requested(ctx, "erp", 10); err != nil || len(rows) != 1 || rows[0].Key != "1" {
		t.Fatal(rows, err)
	}
	var value []byte
	var headers string
	must(pool.QueryRow(ctx, "select record_value, record_headers::text from tallywire.parked where key = '1'").Scan(&value, &headers))
	if value != nil || headers != `[]` { // rates are in some, and whoever reads the table would read them
		t.Fatalf("value %x, headers %s", value, headers)
	}
	_, err = pool.Exec(ctx, `update tallywire.parked set record_value = '82.50', record_headers = '[{"key": "h", "value": "AP8="}]' where key = '1'`) // as a version before wrote it
	must(err)
	must(s.Scrub(ctx, "erp"))
	must(pool.QueryRow(ctx, "select record_value, record_headers::text from tallywire.parked where key = '1'").Scan(&value, &headers))
	if value != nil || headers != `[]` {
		t.Fatalf("scrubbed: value %x, headers %s", value, headers)
	}
	apply(put(5, parked("1", 12, "")), gone(6, "2"))
	apply(put(1, parked("1", 10, "")), put(2, parked("2", 11, "")), put(5, parked("1", 12, "")), gone(6, "2")) // who is behind
	if got := shown(control.Filter{}); got != "1@12" {
		t.Fatalf("shown: %s", got)
	}
	if ps = list(control.Filter{}); ps[0].RetryAsked {
		t.Error("the newer version has the request for the older one")
	}

	// Read to offset 10 of partition 0 (2 % 2), where only 3 is left; another
	// process read 4 further on. 5 was written by a version without a topic.
	apply(put(8, parked("3", 20, "")), put(12, parked("4", 21, "")))
	_, err = pool.Exec(ctx, `insert into tallywire.parked (stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_value, record_millis, code, reason, remedy)
values ('erp', 'sink', 'ps.project', '5', '5', $1, 2, 30, '\x05', 1, 'TW-X', 'r', 'm')`, [16]byte{1})
	must(err)
	must(s.Prune(ctx, "erp", topic, []int64{10, 99}, []control.Ref{{Topic: "ps.project", RecordKey: []byte("3")}}))
	if got := shown(control.Filter{}); got != "3@20 4@21 5@30" { // by age
		t.Fatalf("shown: %s", got)
	}
	apply(gone(13, "5"), put(14, parked("5", 29, ""))) // what the topic holds of it is older
	rows, err := s.Foreign(ctx, "erp", 10)
	if err != nil || len(rows) != 1 || rows[0].Offset != 30 || string(rows[0].Value) != "\x05" {
		t.Fatal(rows, err)
	}
	must(s.Adopted(ctx, "erp", &rows[0], control.Ref{Topic: "ps.project", RecordKey: []byte("5")}, topic, 15))
	if rows, err := s.Foreign(ctx, "erp", 10); err != nil || len(rows) != 0 {
		t.Fatal(rows, err)
	}
	apply(gone(16, "5"))
	if got := shown(control.Filter{}); strings.Contains(got, "5@") {
		t.Fatalf("shown: %s", got)
	}
	// In the topic it may have another key: its row gets that, or goes when
	// somebody shows it already.
	for _, is := range []bool{false, true} {
		_, err = pool.Exec(ctx, `insert into tallywire.parked (stage, kind, topic, record_key, key, topic_id, "partition", record_offset, record_value, record_millis, code, reason, remedy)
values ('erp', 'sink', 'ps.project', '\x000000000106', '6', $1, 2, 30, '\x05', 1, 'TW-X', 'r', 'm')`, [16]byte{1})
		must(err)
		in := control.Ref{Topic: "ps.project", RecordKey: []byte("\x1f\x06")}
		if is {
			p := parked("6", 31, "")
			p.RecordKey = in.RecordKey
			apply(put(17, p))
		}
		rows, err := s.Foreign(ctx, "erp", 10)
		if err != nil || len(rows) != 1 {
			t.Fatal(rows, err)
		}
		must(s.Adopted(ctx, "erp", &rows[0], in, topic, 18))
		if got, want := shown(control.Filter{Key: "6"}), map[bool]string{false: "6@30", true: "6@31"}[is]; got != want {
			t.Fatalf("shown: %s, want %s", got, want)
		}
		must(s.Apply(ctx, "erp", []control.Event{{Ref: in, Topic: topic, Offset: 19}}))
		if got := shown(control.Filter{Key: "6"}); got != "" {
			t.Fatalf("shown: %s", got)
		}
	}
	// A topic made anew begins at offset 0.
	must(s.Apply(ctx, "erp", []control.Event{{Ref: control.Ref{Topic: "ps.project", RecordKey: []byte("3")}, Topic: other, Offset: 0}}))
	if got := shown(control.Filter{}); got != "4@21" {
		t.Fatalf("shown: %s", got)
	}

	must(pg.Down(ctx))
	if err := s.Apply(ctx, "erp", []control.Event{put(20, parked("1", 1, ""))}); problem.Of(err) == nil || problem.Of(err).Class != problem.Retry {
		t.Fatalf("a server that is gone: %v, want a problem of class retry", err)
	}
	// Remedy: TW-CONTROL-UNAVAILABLE
	must(pg.Start(ctx))
	for { // connections of before may have to fail first
		err := s.Apply(ctx, "erp", []control.Event{put(20, parked("1", 1, ""))})
		if err == nil {
			return
		}
		if problem.Of(err) == nil || problem.Of(err).Class != problem.Retry {
			t.Fatal(err)
		}
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
	pool, err := control.Open(t.Context(), testkit.NewDatabase(t)) // Remedy: TW-CONTROL-DSN
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
}

// Lost if this fails: a login that may not make a schema is refused without a
// way out, or for ever, since the schema is there.
func TestLoginThatMayNotCreate(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	name := "modest_" + admin.Config().Database
	exec := func(sql string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("create role " + name + " login")
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(name)
	if _, err := control.Open(t.Context(), u.String()); !problem.Has(err, control.ErrMigrate) {
		t.Fatalf("got %v, want TW-CONTROL-MIGRATE", err)
	}
	exec("grant create on database " + admin.Config().Database + " to " + name) // Remedy: TW-CONTROL-MIGRATE
	for range 2 {
		pool, err := control.Open(t.Context(), u.String())
		if err != nil {
			t.Fatal(err)
		}
		pool.Close()
		exec("revoke create on database " + admin.Config().Database + " from " + name) // it has its schema
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
	if err := s.Apply(t.Context(), p.Stage, []control.Event{{Ref: control.Ref{Topic: p.Topic, RecordKey: p.RecordKey}, Parked: &p}}); err != nil {
		t.Fatal(err)
	}
	if rows, err := s.List(t.Context(), control.Filter{}); err != nil || len(rows) != 1 {
		t.Fatal(rows, err)
	}
}
