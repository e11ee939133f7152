package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/testkit"
)

// removing is a source with all that it keeps, and a configuration.
type removing struct {
	t       *testing.T
	file    string
	text    string
	slot    string
	db      *pgx.Conn
	kc      *kgo.Client
	adm     *kadm.Client
	cluster *kafka.Cluster
	reg     *sr.Client
}

const ownTopicsOfPSA = "_tallywire.parked.psa _tallywire.quarantine.psa.public.rate _tallywire.positions.psa _tallywire.tables.psa"

func newRemoving(t *testing.T) *removing {
	t.Helper()
	dsn := testkit.NewDatabase(t)
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close(t.Context()) })
	broker, registry, reg := schemas(t)
	kc, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.RequiredAcks(kgo.AllISRAcks()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kc.Close)
	cluster, err := kafka.New(kafka.Config{Brokers: []string{broker}}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := &removing{
		t: t, file: filepath.Join(t.TempDir(), "tallywire.yml"), slot: "remove_" + db.Config().Database,
		db: db, kc: kc, adm: kadm.NewClient(kc), cluster: cluster, reg: reg,
	}
	r.text = `
kafka: {brokers: ["` + broker + `"]}
registry: {url: "` + registry + `"}
redis: {embedded: true}
http: {listen: "127.0.0.1:1"}
control: {dsn: "` + testkit.NewDatabase(t) + `"}
sources:
  psa: {type: postgres, dsn: "` + dsn + `", slot: ` + r.slot + `, tables: [public.*], topics: {public.invoice: psa.moved}}
  psa2: {type: postgres, dsn: "` + dsn + `", tables: [public.*]}
transforms:
  canonical: {type: map, topics: [{from: psa.public.customer, to: ps.customer, fields: {customer_id: id}}]}
`
	r.write(r.text)
	r.make()
	return r
}

func (r *removing) write(text string) {
	r.t.Helper()
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *removing) sql(text string) {
	r.t.Helper()
	if _, err := r.db.Exec(r.t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
		r.t.Fatalf("%s: %v", text, err)
	}
}

// make is what a run would have made.
func (r *removing) make() {
	r.t.Helper()
	r.sql("CREATE TABLE IF NOT EXISTS customer(id int PRIMARY KEY); CREATE PUBLICATION tallywire_psa FOR TABLE customer")
	r.sql("SELECT pg_create_logical_replication_slot('" + r.slot + "', 'pgoutput')")
	names := append(strings.Fields(ownTopicsOfPSA), "psa.public.customer", "psa.public.rate", "psa.moved", "psa.odd", "psa2.public.customer", "ps.customer", "_tallywire.positions.psa2", "_tallywire.quarantine.psa2.public.rate")
	if res, err := r.adm.CreateTopics(r.t.Context(), 1, 1, nil, names...); err != nil || res.Error() != nil && res["ps.customer"].Err == nil {
		r.t.Fatal(err, res.Error())
	}
	for range 3 {
		if err := r.kc.ProduceSync(r.t.Context(), &kgo.Record{Topic: "psa.public.customer", Value: []byte("x")}).FirstErr(); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, s := range []string{"psa.public.customer-key", "psa.public.customer-value", "psa2.public.customer-value", "psa.odd-value"} {
		if _, err := r.reg.CreateSchema(r.t.Context(), s, sr.Schema{Schema: `"string"`}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// left is what there is: topics, subjects, slots and publications.
func (r *removing) left() string {
	r.t.Helper()
	out, err := r.cluster.TopicsOf(r.t.Context(), "")
	if err != nil {
		r.t.Fatal(err)
	}
	out = slices.DeleteFunc(out, func(name string) bool { return name == "_schemas" || strings.HasPrefix(name, "__") })
	subjects, err := r.reg.Subjects(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	out = append(out, subjects...)
	slices.Sort(out)
	var db string
	if err := r.db.QueryRow(r.t.Context(), `SELECT concat_ws(' ', (SELECT string_agg('slot', ' ') FROM pg_replication_slots WHERE slot_name = $1), (SELECT string_agg('publication', ' ') FROM pg_publication))`, r.slot).Scan(&db); err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(strings.Join(append(out, db), " "))
}

// remove runs the command, and wants a code and words, in order.
func (r *removing) remove(code int, words []string, args ...string) {
	r.t.Helper()
	got, out, errs := tw(append([]string{"remove", "source", "-c", r.file}, args...)...)
	if got != code {
		r.t.Fatalf("%v: exit %d, want %d\n%s%s", args, got, code, out, errs)
	}
	all := strings.Join(strings.Fields(out+errs), " ")
	rest := all
	for _, w := range words {
		_, after, is := strings.Cut(rest, w)
		if !is {
			r.t.Errorf("%v does not say %q, in this order:\n%s%s", args, w, out, errs)
			return
		}
		rest = after
	}
}

const (
	othersOfPSA = "_tallywire.positions.psa2 _tallywire.quarantine.psa2.public.rate ps.customer psa.odd"
	rawOfPSA    = "psa.moved psa.odd-value psa.public.customer psa.public.customer-key psa.public.customer-value psa.public.rate"
	psa2        = "psa2.public.customer psa2.public.customer-value"
)

// Lost if this fails: a slot stays for which a server keeps its log; or what belongs to
// others is deleted with the source.
func TestRemoveSource(t *testing.T) {
	r := newRemoving(t)
	before := r.left()
	pool, err := control.Open(t.Context(), strings.Split(strings.Split(r.text, "control: {dsn: \"")[1], "\"")[0])
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	store := control.NewParked(pool)
	for _, stage := range []string{"psa", "psa2"} {
		if err := store.Apply(t.Context(), stage, []control.Event{{
			Ref: control.Ref{Topic: "psa.public.customer", RecordKey: []byte("1")}, Topic: [16]byte{1}, Offset: 3,
			Parked: &control.Parked{Stage: stage, Kind: control.KindTransform, Topic: "psa.public.customer", Key: "1", FirstAt: time.Now(), LastAt: time.Now()},
		}}); err != nil {
			t.Fatal(err)
		}
	}

	r.remove(exitOK, []string{
		`slot "` + r.slot + `"`, "of the server's log goes", `publication "tallywire_psa" 1 table goes`, "3 raw topics, psa.*", "3 records at most", "stays: --topics",
		"topic _tallywire.parked.psa", "goes", "topic _tallywire.tables.psa", "goes", "topic _tallywire.positions.psa", "goes",
		"transform canonical still reads psa.public.customer, where nothing comes any more", "nothing was changed; --yes removes it",
	}, "psa")
	if now := r.left(); now != before {
		t.Fatalf("what was only listed is\n%s, was\n%s", now, before)
	}

	// Without its raw topics.
	r.remove(exitOK, []string{"removed", "removed", "stays: --topics", "removed", "removed", "removed", "removed", "gone", "psa is removed. Now take sources.psa out of " + r.file}, "psa", "--yes")
	if got, want := r.left(), othersOfPSA+" "+rawOfPSA+" "+psa2; !sameWords(got, want) {
		t.Errorf("there are left\n%s, want\n%s", got, want)
	}
	if ps, err := store.List(t.Context(), control.Filter{}); err != nil || len(ps) != 1 || ps[0].Stage != "psa2" {
		t.Errorf("parked list shows %v, %v", ps, err)
	}

	// Once more, and with them.
	r.remove(exitOK, []string{
		"slot", "gone", "publication", "gone", "schema subject psa.public.customer-key", "removed", "customer-value", "removed",
		"topic psa.moved", "removed", "topic psa.public.customer", "removed", "topic psa.public.rate", "removed", "topic _tallywire.positions.psa - gone", "which it will not find",
	}, "psa", "--topics", "--yes")
	if got, want := r.left(), othersOfPSA+" psa.odd-value "+psa2; !sameWords(got, want) {
		t.Errorf("there are left\n%s, want\n%s", got, want)
	}
	code, out, errs := tw("remove", "source", "psa", "-c", r.file, "--topics", "--yes", "-o", "json")
	var said struct {
		Done   bool
		Things []removed
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil || code != exitOK || !said.Done {
		t.Fatalf("%d %v %s%s", code, err, out, errs)
	}
	for _, th := range said.Things {
		if th.State != "gone" && !strings.HasPrefix(th.What, "what parked list") {
			t.Errorf("when all is gone, %s is %s", th.What, th.State)
		}
	}

	r.remove(exitFailed, []string{"TW-REMOVE-SOURCE", `no source "pssa"; did you mean "psa"?`}, "pssa")
	r.remove(exitOK, []string{"gone"}, "psa") // Remedy: TW-REMOVE-SOURCE
}

func sameWords(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// Lost if this fails: a source that runs is cut off from what it knows.
func TestRemoveRefusesWhileItRuns(t *testing.T) {
	r := newRemoving(t)
	before := r.left()
	state := "retrying"
	status := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"components": [{"kind": "source", "name": "psa2", "state": "running"}, {"kind": "source", "name": "psa", "state": "` + state + `"}]}`))
	}))
	defer status.Close()
	r.write(strings.Replace(r.text, "127.0.0.1:1\"}\ncontrol", strings.TrimPrefix(status.URL, "http://")+"\"}\ncontrol", 1))
	r.remove(exitOK, []string{"goes", "nothing was changed, and cannot be now. TW-REMOVE-RUNNING: source \"psa\" is retrying in the process at " + status.URL}, "psa")
	r.remove(exitRefused, []string{"TW-REMOVE-RUNNING", "--without NAME"}, "psa", "--yes")
	r.remove(exitRefused, []string{"TW-REMOVE-RUNNING"}, "psa", "--kafka-only", "--yes")
	state = "halted" // it does nothing any more
	r.remove(exitOK, []string{"nothing was changed; --yes removes it"}, "psa")
	r.write(r.text)

	// One that says nothing of itself, and writes.
	cl, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(strings.Split(r.text, "brokers: [\"")[1], "\"")[0]), kgo.TransactionalID("tallywire.ingest.psa.2"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "psa.public.customer", Value: []byte("y")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r.remove(exitRefused, []string{"TW-REMOVE-RUNNING", "tallywire.ingest.psa.2"}, "psa", "--yes")
	if now := r.left(); now != before {
		t.Fatalf("what was refused is\n%s, was\n%s", now, before)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil { // Remedy: TW-REMOVE-RUNNING
		t.Fatal(err)
	}
	r.remove(exitOK, []string{"psa is removed"}, "psa", "--yes")
}

// Lost if this fails: what cannot be removed at the database is forgotten in Kafka, and
// nobody knows any more that it is there.
func TestRemoveGoesOnWhereItEnded(t *testing.T) {
	r := newRemoving(t)
	role := "remover_" + r.db.Config().Database
	r.sql("CREATE ROLE " + role + " LOGIN; ALTER PUBLICATION tallywire_psa OWNER TO " + role)
	defer r.sql("REASSIGN OWNED BY " + role + " TO postgres; DROP OWNED BY " + role + "; DROP ROLE " + role)
	dsn, err := url.Parse(strings.Split(strings.Split(r.text, "type: postgres, dsn: \"")[1], "\"")[0])
	if err != nil {
		t.Fatal(err)
	}
	whole := dsn.String()
	dsn.User = url.User(role)
	r.write(strings.Replace(r.text, whole, dsn.String(), 1))
	before := r.left()
	r.remove(exitFailed, []string{"slot", "goes", "_tallywire.positions.psa", "goes", "removed in part", "TW-PG-REFUSED", "SELECT pg_drop_replication_slot('" + r.slot + "')"}, "psa", "--yes")
	if now := r.left(); now != before {
		t.Fatalf("there is\n%s, was\n%s", now, before)
	}
	r.sql("ALTER ROLE " + role + " REPLICATION")
	if _, err := r.adm.DeleteTopics(t.Context(), "_tallywire.tables.psa"); err != nil { // as if it had come that far
		t.Fatal(err)
	}
	r.remove(exitOK, []string{"slot", "removed", "publication", "removed", "parked.psa", "removed", "tables.psa - gone", "positions.psa", "removed"}, "psa", "--yes")
	if now := r.left(); strings.Contains(now, "slot") || strings.Contains(now, "publication") || strings.Contains(now, "_tallywire.positions.psa ") {
		t.Errorf("there is %s", now)
	}
}

// Lost if this fails: of a customer whose server is gone nothing can be removed; or what
// is still to be done there is not said.
func TestRemoveWithoutItsDatabase(t *testing.T) {
	r := newRemoving(t)
	dsn := strings.Split(strings.Split(r.text, "type: postgres, dsn: \"")[1], "\"")[0]
	r.write(strings.Replace(r.text, dsn, "postgres://nobody@127.0.0.1:1/psa", 1))
	r.remove(exitFailed, []string{"TW-PG-UNAVAILABLE", "connecting to the source database", "tallywire remove source psa --kafka-only"}, "psa", "--yes")
	sql := []string{"SELECT pg_drop_replication_slot('" + r.slot + "');", `DROP PUBLICATION "tallywire_psa";`}
	r.remove(exitOK, append(sql, "until the slot is dropped", "nothing was changed"), "psa", "--kafka-only")
	r.remove(exitOK, append([]string{"_tallywire.positions.psa", "removed"}, append(sql, "psa is removed")...), "psa", "--kafka-only", "--yes")
	if now := r.left(); strings.Contains(now, "_tallywire.positions.psa ") || !strings.Contains(now, "slot publication") {
		t.Errorf("there is %s", now)
	}
	for _, s := range sql {
		r.sql(s)
	}
}

// Lost if this fails: a registry that is down keeps a slot in place; or its subjects are
// forgotten in silence.
func TestRemoveWithoutRegistryAndControl(t *testing.T) {
	r := newRemoving(t)
	broker := strings.Split(strings.Split(r.text, "brokers: [\"")[1], "\"")[0]
	r.write(`
kafka: {brokers: ["` + broker + `"]}
registry: {url: "http://127.0.0.1:1"}
control: {dsn: "postgres://x@127.0.0.1:1/x"}
http: {listen: "127.0.0.1:1"}
sources:
` + strings.Split(strings.Split(r.text, "sources:\n")[1], "  psa2")[0])
	r.remove(exitOK, []string{"schema subjects of the raw topics", "stays: they cannot be listed", "topic psa.public.customer", "removed", "parked list", "stays: nothing depends on it", "psa is removed"}, "psa", "--topics", "--yes")
	r.write(r.text)
	r.remove(exitOK, []string{"schema subject psa.public.customer-key", "removed", "customer-value", "removed"}, "psa", "--topics", "--yes")
	if got := r.left(); strings.Contains(got, "psa.public.customer-") {
		t.Errorf("there are left %s", got)
	}
}
