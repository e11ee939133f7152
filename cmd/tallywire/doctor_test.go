package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: a misspelt topic, a column that is not there or a key that
// a delete does not tell shows as "starting" for ever, or halts at the first
// record, since the doctor that was asked before said that all was well.
func TestDoctorFollowsTheTopics(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `
		create table customer (id bigint primary key, name text not null, vat text, country char(2), currency char(3) not null, updated_at timestamptz not null);
		create table cost_rate (id bigint primary key, employee_id bigint not null, valid_from date not null, valid_to text, rate numeric(12,4) not null, currency char(3) not null, updated_at timestamptz not null)`); err != nil {
		t.Fatal(err)
	}
	broker, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	text := `
kafka: {brokers: ["` + broker.Addr() + `"]}
registry: {embedded: true}
redis: {embedded: true}
http: {listen: "127.0.0.1:0"}
state_dir: ` + t.TempDir() + `
sources:
  psa: {type: postgres, dsn: "` + dsn + `", tables: [public.*]}
transforms:
  canonical:
    type: map
    topics:
      - {from: psa.public.customr, to: ps.customer, fields: {customer_id: id}}
      - {from: psa.public.cost_rate, to: ps.cost_rate, fields: {cost_rate_id: "{employee_id}/{id}", resource_id: employe_id}}
  costed:
` + examples.Costed() + `sinks:
  warehouse: {type: warehouse, dsn: "` + dsn + `"}
control: {dsn: "postgres://x@127.0.0.1:1/x"}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := tw("doctor", "-c", file, "-o", "json")
	if code != exitUnwell {
		t.Fatalf("exit code %d, want %d\n%s%s", code, exitUnwell, out, errs)
	}
	var fs []finding
	if err := json.Unmarshal([]byte(out), &fs); err != nil {
		t.Fatal(err)
	}
	said := func(part string, words ...string) {
		t.Helper()
		for _, f := range fs {
			if f.Part != part || f.OK || f.Problem == nil {
				continue
			}
			all := true
			for _, w := range words {
				all = all && strings.Contains(f.Problem.Code+" "+f.Problem.What+" "+f.Problem.Remedy, w)
			}
			if all {
				return
			}
		}
		t.Errorf("of %s it is not said: %q", part, words)
	}
	said("transforms.canonical", "TW-KAFKA-NO-TOPIC", "psa.public.customr", "Did you mean psa.public.customer?")
	said("transforms.canonical", "TW-MAP-COLUMN", `no column "employe_id"`, "Did you mean employee_id?")
	said("transforms.canonical", "TW-MAP-COLUMN", "column valid_to", "is text")
	said("control", "TW-DOCTOR-UNREACHABLE")
	// Nothing maps them.
	said("transforms.costed.ps.time_entry_costed", "TW-KAFKA-NO-TOPIC", "ps.time_entry")
	said("transforms.costed.ps.time_entry_costed.right", "TW-KAFKA-NO-TOPIC", "ps.project")
	advised := false // what else it reads goes on
	for _, f := range fs {
		advised = advised || f.Part == "sinks.warehouse" && f.OK && f.What == "topic ps.invoice is filled" && strings.Contains(f.Advice, "it stays empty")
	}
	if !advised {
		t.Error("nobody says that ps.invoice stays empty")
	}
	for _, f := range fs {
		if f.Part == "transforms.costed.ps.time_entry_costed.right" && !f.OK && strings.Contains(f.Problem.What, "ps.customer") {
			t.Errorf("ps.customer is filled by the mapping, and is said to be missing: %s", f.Problem.What)
		}
	}
	if t.Failed() {
		t.Log(out)
	}

	// What is read of the table that is mapped when all names are right.
	// Remedy: TW-MAP-COLUMN, TW-KAFKA-NO-TOPIC, TW-DOCTOR-UNREACHABLE
	text = strings.NewReplacer("employe_id}", "employee_id}", "customr", "customer", "postgres://x@127.0.0.1:1/x", testkit.NewDatabase(t)).Replace(text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "alter table cost_rate alter valid_to type date using null"); err != nil {
		t.Fatal(err)
	}
	_, out, _ = tw("doctor", "-c", file, "-o", "json")
	fs = nil
	if err := json.Unmarshal([]byte(out), &fs); err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		if f.OK || f.Problem == nil {
			continue
		}
		if f.Part == "control" || strings.Contains(f.Problem.What, "customr") || strings.Contains(f.Problem.What, "employe_id") || strings.Contains(f.Problem.What, "valid_to") {
			t.Errorf("of what was mended it is still said: %s %s", f.Part, f.Problem.What)
		}
	}
}

// Lost if this fails: a misspelt topic reads as one that is empty.
func TestConsumeNamesATopicThatIsNotThere(t *testing.T) {
	broker, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	if err := os.WriteFile(file, []byte(`kafka: {brokers: ["`+broker.Addr()+`"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := tw("consume", "psa.public.note", "-c", file); code != exitFailed || !strings.Contains(errs, "TW-TOPIC-UNKNOWN") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(t.Context(), 1, 1, nil, "psa.public.note"); err != nil { // Remedy: TW-TOPIC-UNKNOWN
		t.Fatal(err)
	}
	if code, out, errs := tw("consume", "psa.public.note", "-c", file); code != exitOK {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
}

// Lost if this fails: what a transform remembers is made again from records that
// Kafka has dropped, or a reader that was away keeps what was deleted.
func TestTopicsKeepForLongEnough(t *testing.T) {
	broker, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	cl, err := kgo.NewClient(kgo.SeedBrokers(broker.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	make := func(topic string, settings map[string]*string) {
		if _, err := adm.CreateTopic(t.Context(), 4, 1, settings, topic); err != nil {
			t.Fatal(err)
		}
	}
	make("psa.public.customer", map[string]*string{"retention.ms": kadm.StringPtr("3600000")})
	make("ps.customer", map[string]*string{"cleanup.policy": kadm.StringPtr("compact"), "delete.retention.ms": kadm.StringPtr("86400000")})
	make("hcm.public.rate", map[string]*string{"retention.ms": kadm.StringPtr("172800000")})
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	write := func(retention string) {
		text := `
kafka: {brokers: ["` + broker.Addr() + `"], retention: ` + retention + `}
registry: {embedded: true}
redis: {embedded: true}
control: {embedded: true}
transforms:
  canonical:
    type: map
    dedupe: {mode: identity, identity: [id], window: 24h}
    topics: [{from: psa.public.customer, to: ps.customer}, {from: hcm.public.rate, to: ps.cost_rate}]
`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1h")
	if code, _, errs := tw("check", "-c", file); code != exitFailed || !strings.Contains(errs, "TW-RETENTION") || !strings.Contains(errs, "stay for 1h0m0s, transform canonical looks back 24h0m0s") {
		t.Errorf("check: exit %d\n%s", code, errs)
	}
	write("48h") // of topics that are made: the one that is there keeps its own
	if code, _, errs := tw("check", "-c", file); code != exitOK {
		t.Errorf("check: exit %d\n%s", code, errs)
	}
	code, out, errs := tw("doctor", "-c", file)
	if code != exitUnwell || !strings.Contains(out, "TW-RETENTION: records of psa.public.customer stay for 1h0m0s") || !strings.Contains(out, "--topic ps.customer --add-config delete.retention.ms=604800000") || !strings.Contains(out, "can be retried for as long as the topic has it: 48h0m0s") {
		t.Errorf("doctor: exit %d\n%s%s", code, out, errs)
	}
	// Remedy: TW-RETENTION
	if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("-1")}}, "psa.public.customer"); err != nil {
		t.Fatal(err)
	}
	if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "delete.retention.ms", Value: kadm.StringPtr("604800000")}}, "ps.customer"); err != nil {
		t.Fatal(err)
	}
	if _, out, _ = tw("doctor", "-c", file); strings.Contains(out, "TW-RETENTION") || strings.Contains(out, "delete.retention.ms") {
		t.Errorf("doctor, afterwards:\n%s", out)
	}
}
