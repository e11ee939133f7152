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

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: names that Kafka does not take beside each other pass the
// check, and the source halts at night.
func TestCheckFindsTopicsThatKafkaRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	check := func(source, from string) (int, string) {
		t.Helper()
		text := `
sources:
  psa: {type: postgres, dsn: "postgres://nobody@127.0.0.1:1/psa", ` + source + `}
transforms:
  canonical: {type: map, topics: [{from: ` + from + `, to: ps.customer}]}
`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, errs := tw("check", "-c", file)
		return code, errs
	}
	for _, c := range []struct{ source, from, want string }{
		{"tables: [a.b_c, public.*]", "psa.a.b_c", ""},
		{"tables: [a.b_c, a_b.c]", "psa.a.b_c", `topics "psa.a.b_c" (table a.b_c of source psa, transform canonical) and "psa.a_b.c" (table a_b.c of source psa)`},
		{`tables: [a.b_c, a_b.c, "!a_b.c"]`, "psa.a.b_c", ""},
		{`tables: [a.b_c, a_b.c], topics: {a_b.c: psa.a_b.c_2}`, "psa.a.b_c", ""},
		{`tables: [a.*], topics: {a.x: psa.a_b.c}`, "psa.a.b_c", `"psa.a_b.c" (table a.x of source psa)`},
		{"tables: [public.*]", "psa.public.grö", "The topic of table public.grö is called psa.public.gr_x00F6_."},
	} {
		code, errs := check(c.source, c.from)
		if (code == exitOK) != (c.want == "") || !strings.Contains(errs, c.want) || c.want != "" && !strings.Contains(errs, "TW-KAFKA-TOPIC-NAME") {
			t.Errorf("%s, from %s: exit code %d, want %q\n%s", c.source, c.from, code, c.want, errs)
		}
	}
}

// Lost if this fails: nobody finds the topic of a table whose name is spelt otherwise
// there; doctor does not see what Kafka will refuse.
func TestTopicsList(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `create schema ps; create table customer (id bigint primary key); create table "order items" (id int primary key); create table ps.customer (id int primary key)`); err != nil {
		t.Fatal(err)
	}
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
	if _, err := adm.CreateTopics(t.Context(), 4, 1, nil, "psa.public.order_x0020_items", "psa.public.gr_x00F6_", "psa_ps_customer"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "psa.public.order_x0020_items", Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	text := `
kafka: {brokers: ["` + broker.Addr() + `"]}
registry: {embedded: true}
redis: {embedded: true}
control: {embedded: true}
sources:
  psa: {type: postgres, dsn: "` + dsn + `", tables: [public.*, ps.*]}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := tw("topics", "list", "psa", "-c", file, "-o", "json")
	var list []tableTopic
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != exitOK {
		t.Fatalf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	got := map[string]tableTopic{}
	for _, x := range list {
		if x.Bytes != nil && *x.Bytes < 0 {
			t.Errorf("%s has %d octets", x.Topic, *x.Bytes)
		}
		x.Bytes = nil
		got[x.Topic] = x
	}
	for _, want := range []tableTopic{
		{Source: "psa", Table: "public.customer", Topic: "psa.public.customer", Captured: true},
		{Source: "psa", Table: "public.order items", Topic: "psa.public.order_x0020_items", Captured: true, Exists: true, Partitions: 4, Records: 3},
		{Source: "psa", Table: "public.grö", Topic: "psa.public.gr_x00F6_", Exists: true, Partitions: 4},
		{Source: "psa", Table: "ps.customer", Topic: "psa.ps.customer", Captured: true},
	} {
		if got[want.Topic] != want {
			t.Errorf("%+v, want %+v", got[want.Topic], want)
		}
	}
	if len(list) != 4 {
		t.Errorf("%d topics: %s", len(list), out)
	}
	code, out, _ = tw("topics", "list", "-c", file)
	for _, want := range []string{"public.order items", "public.grö (not captured)", "public.customer (no topic yet)"} {
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("exit code %d, without %q:\n%s", code, want, out)
		}
	}
	if code, _, errs := tw("topics", "list", "crm", "-c", file); code != exitUsage || !strings.Contains(errs, "there are: psa") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	_, out, _ = tw("doctor", "-c", file)
	if !strings.Contains(out, `topics "psa_ps_customer" (in Kafka) and "psa.ps.customer" (table ps.customer of source psa)`) || strings.Count(out, "TW-KAFKA-TOPIC-NAME") != 1 {
		t.Errorf("doctor says\n%s", out)
	}
	if _, err := adm.DeleteTopics(t.Context(), "psa_ps_customer"); err != nil {
		t.Fatal(err)
	}
	if _, out, _ = tw("doctor", "-c", file); strings.Contains(out, "TW-KAFKA-TOPIC-NAME") || !strings.Contains(out, "it takes the names of all") {
		t.Errorf("doctor says\n%s", out)
	}
}
