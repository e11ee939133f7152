package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func tw(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return code, o.String(), e.String()
}

// The example that users start from must be one that works.
func TestExampleIsGood(t *testing.T) {
	code, out, errs := tw("check", "--no-secrets", "-c", "../../examples/demo/tallywire.yml", "-o", "json")
	if code != exitOK {
		t.Fatalf("exit %d\n%s", code, errs)
	}
	var res struct {
		OK     bool     `json:"ok"`
		Groups []string `json:"groups"`
	}
	if err := json.Unmarshal([]byte(out), &res); err != nil || !res.OK {
		t.Fatal(err, out)
	}
	want := "tallywire.canonical tallywire.costed.ps.time_entry_costed.right tallywire.costed.ps.time_entry_costed tallywire.warehouse tallywire.erp"
	got := strings.Join(res.Groups, " ")
	for _, g := range strings.Fields(want) {
		if !strings.Contains(got+" ", g+" ") {
			t.Errorf("groups are %s, want %s", got, want)
		}
	}
}

// Bad input must give its own clear error and the documented exit code; a
// script that cannot tell them apart goes on with the wrong thing.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	t.Setenv("TW_TEST_DSN", "host=h")
	secret := file("dsn", "host=h")
	const nowhere = "kafka: {brokers: ['127.0.0.1:1']}\nregistry: {url: 'http://127.0.0.1:1'}\ncontrol: {dsn: 'postgres://x@127.0.0.1:1/x'}\nhttp: {listen: '127.0.0.1:1'}\nstate_dir: " + "/nowhere\n"
	down := file("down.yml", nowhere)
	for _, c := range []struct {
		name string
		args string
		code int
		errs string
	}{
		{"unknown command", "rnu", exitUsage, "unknown command"},
		{"unknown flag", "check --colour", exitUsage, "unknown flag: --colour"},
		{"superfluous word", "check now", exitUsage, `"now" is one word too many`},
		{"missing word", "consume", exitUsage, "want one TOPIC"},
		{"output", "version -o yaml", exitUsage, "--output is text or json"},
		{"no file", "check -c " + dir + "/none.yml", exitFailed, "TW-CONFIG-FILE"},
		{"unknown key", "check -c " + file("key.yml", "kafka: {brokrs: []}"), exitFailed, `did you mean "brokers"?`},
		{"unknown key of a source", "check -c " + file("src.yml", "sources: {psa: {type: postgres, dsn: 'host=h', slott: x}}"), exitFailed, `unknown key "slott" in sources.psa; did you mean "slot"?`},
		{"unknown key of a sink", "check -c " + file("sink.yml", "sinks: {w: {type: warehouse, dsn: 'host=h', topcs: []}}"), exitFailed, `unknown key "topcs" in sinks.w; did you mean "topics"?`},
		{"unknown type", "check -c " + file("type.yml", "sources: {psa: {type: postgre}}"), exitFailed, `did you mean "postgres"?`},
		{"missing secret", "check -c " + file("sec.yml", "sources: {psa: {type: postgres, dsn: 'env:TW_TEST_NOT_SET_AT_ALL'}}"), exitFailed, "TW-CONFIG-SECRET"},
		// What each is when it is mended.
		{"the file is there", "check -c " + file("good.yml", "sources: {psa: {type: postgres, dsn: 'host=h', tables: [public.*]}}"), exitOK, ""},         // Remedy: TW-CONFIG-FILE, TW-CONFIG-KEY, TW-CONFIG-VALUE
		{"the secret is set", "check -c " + file("env.yml", "sources: {psa: {type: postgres, dsn: 'env:TW_TEST_DSN', tables: [public.*]}}"), exitOK, ""}, // Remedy: TW-CONFIG-SECRET
		{"the secret is in a file", "check -c " + file("file.yml", "sources: {psa: {type: postgres, dsn: 'file:"+secret+"', tables: [public.*]}}"), exitOK, ""},
		{"no YAML", "check -c " + file("yaml.yml", "sources: {psa: {type: postgres, dsn: 'host=h', tables: [public.*]}"), exitFailed, "TW-CONFIG-SYNTAX"},
		{"type", "check -c " + file("list.yml", "sources: {psa: {type: postgres, dsn: 'host=h', tables: public.*}}"), exitFailed, "TW-CONFIG-TYPE"},
		{"brackets and a list", "check -c " + dir + "/good.yml", exitOK, ""}, // Remedy: TW-CONFIG-SYNTAX, TW-CONFIG-TYPE
		{"field of a mapping", "check -c " + file("map.yml", "transforms: {canonical: {type: map, topics: [{from: psa.public.customer, to: ps.custommer}]}}"), exitFailed, "TW-MAP-CONFIG"},
		{"two transforms, one key", "check -c " + file("two.yml", "transforms: {a: {type: map, topics: [{from: a.public.customer, to: ps.customer}]}, b: {type: map, topics: [{from: b.public.customer, to: ps.customer}]}}"), exitFailed, `transforms "a" and "b" both fill ps.customer`},
		{"two transforms, keys that tell", "check -c " + file("told.yml", "transforms: {a: {type: map, topics: [{from: a.public.customer, to: ps.customer, fields: {customer_id: 'a-{id}'}}]}, b: {type: map, topics: [{from: b.public.customer, to: ps.customer, fields: {customer_id: 'b-{id}'}}]}}"), exitOK, ""},
		{"a good mapping", "check -c " + file("mapped.yml", "transforms: {canonical: {type: map, topics: [{from: psa.public.customer, to: ps.customer, fields: {customer_id: id}}]}}"), exitOK, ""}, // Remedy: TW-MAP-CONFIG
		{"a key that is none", "check -c " + file("seal.yml", "encryption: {keys: ['file:"+secret+"']}"), exitFailed, "TW-SEAL-KEY"},
		{"a key that is not at hand", "check --no-secrets -c " + dir + "/seal.yml", exitOK, ""},
		{"nothing runs", "status -c " + down, exitFailed, "TW-NOT-RUNNING"},
		{"from", "consume x --from yesterday -c " + down, exitUsage, "--from is beginning, end or an offset"},
		{"parked", "parked retry erp -c " + down, exitUsage, "name a --key"},
		{"stage of a retry", "parked retry wharehouse --all -c " + file("stage.yml", nowhere+"sinks: {warehouse: {type: warehouse, dsn: 'host=h'}}\n"), exitUsage, `no source, transform or sink "wharehouse"; did you mean "warehouse"?`},
		{"stage of a discard", "parked discard erp --all -c " + dir + "/stage.yml", exitUsage, `no source, transform or sink "erp"`},
		{"replay of nothing", "replay nobody -c " + down, exitFailed, "TW-REPLAY-GROUP"},
		{"verify", "verify -c " + down, exitFailed, "TW-VERIFY"},
		{"rate", "demo --rate 0", exitUsage, "--rate is above 0"},
		{"kafka", "demo --kafka reel", exitUsage, "--kafka is embedded or real"},
		{"port", "demo --page-port 99999 --state-dir " + dir, exitFailed, "TW-DEMO-PORT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, errs := tw(strings.Fields(c.args)...)
			if code != c.code || !strings.Contains(errs, c.errs) {
				t.Errorf("exit %d, want %d, with %q in\n%s", code, c.code, c.errs, errs)
			}
		})
	}
	code, _, errs := tw("check", "-o", "json", "-c", dir+"/key.yml")
	var j struct {
		Errors []problem.Report `json:"errors"`
	}
	if err := json.Unmarshal([]byte(errs), &j); err != nil || code != exitFailed || len(j.Errors) != 1 || j.Errors[0].Code != "TW-CONFIG-KEY" || !strings.HasSuffix(j.Errors[0].Where, "key.yml:1:9") {
		t.Errorf("%d %v %s", code, err, errs)
	}
}

// If this failed, a mapping of a dozen fields would take as many starts to get
// right, each mistake to be looked for in the file.
func TestCheckTellsAllMistakesOfAMapping(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bad.yml")
	const text = `transforms:
  canonical:
    type: map
    dedupe: {identity: [id]}
    topics:
      - from: psa.public.customer
        to: ps.custommer
      - from: psa.public.cost_rate
        to: ps.cost_rate
        fields:
          resourceid: employee_id
          rate: "{a}"
      - from: psa.public.time_entry
        to: ps.time_entry
        where: row.deleted = false
        fields:
          hours: 'roudn(row.hours, 2, "up")'
          billable: 1
          bill_rate: null
          status: |
            row.done ? "approved" :
              upperAsci(row.status)
sinks:
  erp:
    type: rest
    profile: business-central
    url: http://erp
    company: C
    token_url: http://erp/token
    client_id: tallywire
    client_secret: env:ERP_SECRET
    go_live: 2026-07-01T00:00:00+02:00
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := tw("check", "--no-secrets", "-c", file, "-o", "json")
	var j struct {
		Errors []problem.Report `json:"errors"`
	}
	if err := json.Unmarshal([]byte(errs), &j); err != nil || code != exitFailed {
		t.Fatalf("%d %v %s", code, err, errs)
	}
	var got []string
	for _, e := range j.Errors {
		got = append(got, strings.TrimPrefix(e.Where, file)+" "+e.What)
	}
	want := []string{
		`:7:13: transforms.canonical.topics[0].to topic "ps.custommer" has no contract`,
		`:11:23: transforms.canonical.topics[1].fields.resourceid the contract of ps.cost_rate has no field "resourceid"`,
		`:12:17: transforms.canonical.topics[1].fields.rate a template makes text, field rate of ps.cost_rate is `,
		`:15:28: transforms.canonical.topics[2].where token recognition error`,
		`:15:30: transforms.canonical.topics[2].where extraneous input`,
		`:17:24: transforms.canonical.topics[2].fields.hours there is no roudn here`,
		`:18:21: transforms.canonical.topics[2].fields.billable "1" is no boolean, which field billable is`,
		`:22:24: transforms.canonical.topics[2].fields.status there is no upperAsci here`,
		`:4:13: transforms.canonical.dedupe identity and window have no effect with mode position`,
		`:32:14: sinks.erp.go_live want a date, got the moment 2026-07-01T00:00:00+02:00`,
	}
	for i, w := range want {
		if len(got) != len(want) || !strings.HasPrefix(got[i], w) {
			t.Fatalf("told are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// If this failed, a run or a check that lacks its file would take the demo's.
func TestDemosFileIsForLooking(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("TALLYWIRE_CONFIG", "")
	if err := os.Mkdir(".tallywire", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(demoFile, []byte("kafka: {brokers: ['127.0.0.1:1']}\nhttp: {listen: '127.0.0.1:1'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"check", "run", "doctor"} {
		if code, out, errs := tw(command); code != exitFailed || !strings.Contains(errs, "TW-CONFIG-FILE") {
			t.Errorf("%s: exit %d\n%s%s", command, code, out, errs)
		}
	}
	if code, out, errs := tw("status", "-c", ownFile); code != exitFailed || !strings.Contains(errs, "TW-CONFIG-FILE") {
		t.Errorf("status of a file that is not there: exit %d\n%s%s", code, out, errs)
	}
	if code, out, errs := tw("status"); code != exitFailed || !strings.Contains(errs, "TW-NOT-RUNNING") {
		t.Errorf("status: exit %d\n%s%s", code, out, errs)
	}
}

// A firm's own entities take files and no other program.
func TestContractsOfAFirm(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("TALLYWIRE_CONFIG", "")
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	does := func(want int, says, args string) {
		t.Helper()
		if code, out, errs := tw(strings.Fields(args)...); code != want || !strings.Contains(out+errs, says) {
			t.Errorf("tallywire %s: exit %d, want %d, with %q in\n%s%s", args, code, want, says, out, errs)
		}
	}
	does(exitOK, "ps.time_entry_costed", "contracts list")
	does(exitOK, "draft|submitted|approved|rejected", "contracts show ps.time_entry")
	does(exitFailed, `did you mean "ps.project"?`, "contracts show ps.projekt")
	does(exitFailed, "TW-CONTRACT", "contracts check "+dir)

	code, text, errs := tw("contracts", "show", "ps.project", "--avro")
	if code != exitOK {
		t.Fatal(errs)
	}
	write("firm/contracts/engagement.avsc", strings.NewReplacer("ps.project", "firm.engagement", `"Project"`, `"Engagement"`).Replace(text))
	write("firm/contracts/project.avsc", `{"extends": "ps.project", "fields": [{"name": "engagement_id", "type": ["null", "string"], "default": null, "references": "firm.engagement", "doc": "Its engagement.", "owner": "sales", "sensitivity": "internal"}]}`)
	write("firm/tallywire.yml", `contracts: [contracts]
transforms:
  canonical: {type: map, topics: [{from: psa.public.engagement, to: firm.engagement}, {from: psa.public.project, to: ps.project, fields: {engagement_id: engagement}}]}
sinks:
  warehouse: {type: warehouse, dsn: host=h, topics: [firm.engagement, ps.project]}
`)
	does(exitOK, "2 of them", "contracts check firm/contracts")
	does(exitOK, "firm.engagement", "contracts list -c firm/tallywire.yml")
	does(exitOK, "of firm.engagement", "contracts show ps.project -c firm/tallywire.yml")
	does(exitOK, "is good", "check -c firm/tallywire.yml")
	write("firm/contracts/seat.avsc", `{"type": "record", "name": "Seat", "namespace": "firm", "doc": "A seat.", "topic": "firm.seat", "key": ["seat_id"], "owner": "it", "fields": [
  {"name": "seat_id", "type": "string", "doc": "Id.", "owner": "it", "sensitivity": "internal"},
  {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, "default": "\u0096", "doc": "Price.", "owner": "it", "sensitivity": "internal"}]}`)
	does(exitOK, `else "-1.06"`, "contracts show firm.seat -c firm/tallywire.yml")
	does(exitOK, `"default": "-1.06"`, "contracts show firm.seat -c firm/tallywire.yml -o json")
	write("firm/contracts/project.avsc", `{"extends": "ps.project", "fields": [{"name": "engagement_id", "type": "string", "doc": "Its engagement.", "owner": "sales", "sensitivity": "internal"}]}`)
	does(exitFailed, "firm/contracts/project.avsc", "check -c firm/tallywire.yml")
	does(exitFailed, "engagement_id", "contracts check firm/contracts")
}

// Walk-throughs that do not work teach that nothing does.
func TestModelWalkThroughs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "model.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, walks, _ := strings.Cut(string(text), "\n## Add a field\n")
	files := regexp.MustCompile("(?s)```\\w+ (\\S+)\n(.*?)```")
	for i, walk := range strings.Split(walks, "\n## ") {
		dir, found := t.TempDir(), files.FindAllStringSubmatch(walk, -1)
		if len(found) == 0 {
			continue // it tells of something else
		}
		for _, f := range found {
			name := filepath.Join(dir, f[1])
			if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(f[2]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if code, out, errs := tw("check", "-c", filepath.Join(dir, "tallywire.yml")); code != exitOK {
			t.Errorf("walk %d: exit %d\n%s%s", i, code, out, errs)
		}
		if !exists(filepath.Join(dir, "mappings")) {
			continue
		}
		if code, out, errs := tw("mapping", "test", "-c", filepath.Join(dir, "tallywire.yml")); code != exitOK {
			t.Errorf("walk %d: exit %d\n%s%s", i, code, out, errs)
		}
	}
	for _, name := range expr.Functions() {
		if !strings.Contains(string(text), "`"+name+"(") && !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/model.md does not know the function %s", name)
		}
	}
}

// Help that has no example teaches nothing.
func TestHelpTeaches(t *testing.T) {
	a := &app{out: &bytes.Buffer{}, err: &bytes.Buffer{}, unsignal: func() {}}
	for _, c := range a.root().Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		leaves := c.Commands()
		if len(leaves) == 0 {
			leaves = append(leaves, c)
		}
		for _, l := range leaves {
			if l.Example == "" || l.Short == "" {
				t.Errorf("%s has no example or no short text", l.CommandPath())
			}
		}
	}
}

// A reference that is stale sends its reader the wrong way.
func TestReferencesAreFresh(t *testing.T) {
	for name, want := range references() {
		got, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("docs/%s is stale: run `go run ./cmd/tallywire docs`", name)
		}
	}
}

// Every key has to be explained, and every code to have a meaning and a remedy.
func TestReferencesAreWhole(t *testing.T) {
	for _, line := range strings.Split(string(configMD()), "\n") {
		if strings.HasPrefix(line, "| `") && strings.HasSuffix(line, "|  |") {
			t.Errorf("docs/config.md does not say what this is: %s", line)
		}
	}
	for _, c := range problem.All() {
		if c.Meaning == "" || c.Remedy == "" {
			t.Errorf("%s has no meaning or no remedy", c.ID)
		}
	}
}
