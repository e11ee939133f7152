package demo

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	out, err := embedded.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A port that is taken must be told before anything starts: a demo that is half
// up leaves servers behind.
func TestTakenPortIsToldFirst(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	p := freePorts(t, 6)
	o := DefaultOptions()
	o.StateDir = dir
	o.Ports = Ports{p[0], p[1], p[2], p[3], p[4], p[5]}
	ln, err := net.Listen("tcp", local(p[1]))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	o.Ports.ERP = o.Ports.Page
	_, err = Run(t.Context(), o)
	text := problem.Format(err)
	if !problem.Has(err, ErrPort) || !strings.Contains(text, "--kafka-port") || !strings.Contains(text, "the page and the ERP both want port") {
		t.Errorf("got\n%s", text)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the state directory was made all the same")
	}
}

// A Postgres that a killed demo left on its port is ours: it is adopted, and no
// reason to refuse.
func TestLeftPostgresIsNoTakenPort(t *testing.T) {
	dir := t.TempDir()
	p := freePorts(t, 6)
	ports := Ports{p[0], p[1], p[2], p[3], p[4], p[5]}
	ln, err := net.Listen("tcp", local(ports.PSA))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := ports.check(dir); !problem.Has(err, ErrPort) {
		t.Errorf("a stranger on the PSA's port: %v", err)
	}
	// Remedy: TW-DEMO-PORT
	moved := ports
	moved.PSA = freePorts(t, 1)[0]
	if err := moved.check(dir); err != nil {
		t.Errorf("on another port: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "psa", "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprintf("4711\n%s\n1700000000\n%d\n\n127.0.0.1\n", filepath.Join(dir, "psa", "data"), ports.PSA)
	if err := os.WriteFile(filepath.Join(dir, "psa", "data", "postmaster.pid"), []byte(pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ports.check(dir); err != nil {
		t.Errorf("our own: %v", err)
	}
}

func entryRecord(ref, quantity string) erp.Record {
	return erp.Record{Set: "timeRegistrationEntries", Fields: map[string]string{"externalReference": ref, "quantity": quantity, "date": "2026-06-25"}}
}

// The checker itself: a ledger with an entry twice, one missing, one that is
// not to be there and one that is wrong must not pass.
func TestLedgerIsJudged(t *testing.T) {
	s := ledgerSet{set: "timeRegistrationEntries", key: "externalReference", topic: "ps.time_entry"}
	want := map[string]wantedRecord{}
	for id, q := range map[string]string{"1": "7.5", "2": "8", "3": "1.25", "4": "2", "5": "3"} {
		want["ps.time_entry/"+id] = wantedRecord{id: id, props: map[string]string{"externalReference": "ps.time_entry/" + id, "quantity": q, "date": "2026-06-25"}}
	}
	have := []erp.Record{
		entryRecord("ps.time_entry/1", "7.50"), // the same number
		entryRecord("ps.time_entry/2", "8"), entryRecord("ps.time_entry/2", "8"),
		entryRecord("ps.time_entry/3", "1.5"),
		entryRecord("ps.time_entry/99", "1"),
	}
	compared, held, diffs := compareLedger(s, want, have, map[[2]string]bool{{"ps.time_entry", "5"}: true})
	var got []string
	for _, d := range diffs {
		got = append(got, d.Key+" "+d.What)
	}
	wantDiffs := []string{
		"ps.time_entry/2 stands 2 times in the ledger",
		`ps.time_entry/3 quantity is "1.5", the PSA says "1.25"`,
		"ps.time_entry/99 stands in the ledger, and the PSA has no such record to post",
		"ps.time_entry/4 is missing from the ledger",
	}
	if strings.Join(got, "\n") != strings.Join(wantDiffs, "\n") || compared != 5 || held != 1 {
		t.Errorf("compared %d, held %d:\n%s\nwant\n%s", compared, held, strings.Join(got, "\n"), strings.Join(wantDiffs, "\n"))
	}
}

// A report that says OK over differences would make the whole demo a lie.
func TestReportTellsDifferences(t *testing.T) {
	v := &Verification{
		Compared: []Compared{{Where: "ps.customer", Rows: 3, Differences: 1}}, Rows: 3, Differences: 1,
		Examples: []Difference{{Where: "ps.customer", Key: "2", What: "name: PSA a, warehouse b"}},
	}
	if v.OK() {
		t.Error("a difference is OK")
	}
	var b bytes.Buffer
	(&Report{Verification: v, Changes: 1234567}).Print(&b)
	for _, want := range []string{"1 differences", "ps.customer 2: name: PSA a, warehouse b", "1,234,567"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, b.String())
		}
	}
}

// The example in the documents and the demo must be of one form.
func TestDemoAndExampleAgree(t *testing.T) {
	text := configTemplate
	for _, k := range []string{"Kafka", "Registry", "Redis", "Page"} {
		text = strings.ReplaceAll(text, "{{."+k+"}}", "127.0.0.1:1")
	}
	for _, k := range []string{"PSA", "Warehouse", "Control"} {
		text = strings.ReplaceAll(text, "{{."+k+"}}", "postgres://postgres@127.0.0.1:1/x")
	}
	for k, v := range map[string]string{"Transforms": examples.Transforms(), "LogLevel": "info", "StateDir": "x", "ERP": "http://x", "Company": "x", "TokenURL": "http://x", "SecretFile": "/x", "GoLive": "2026-06-24"} {
		text = strings.ReplaceAll(text, "{{."+k+"}}", v)
	}
	d, err := config.Parse("demo", []byte(text), config.Options{Static: true})
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	e, err := config.Load(filepath.Join("..", "..", "examples", "demo", "tallywire.yml"), config.Options{Static: true})
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	names := func(c *config.Config) string {
		var out []string
		for _, cs := range []config.Components{c.Sources, c.Transforms, c.Sinks} {
			for _, x := range cs {
				out = append(out, x.Path()+":"+x.Type)
			}
		}
		return strings.Join(out, " ")
	}
	if names(d) != names(e) {
		t.Errorf("the demo has %s, the example %s", names(d), names(e))
	}
}
