package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/ingest"
)

// Lost if this fails: a column whose type changes stops the source of a real database;
// or nobody sees what is kept, and why; or what is decided is not done.
func TestSchemaDecisions(t *testing.T) {
	dsn := testkit.NewDatabase(t)
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.WithoutCancel(t.Context()))
	sql := func(text string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	sql(`CREATE TABLE invoice(id int PRIMARY KEY, number int, since date, total numeric(10,2)); CREATE TABLE other(id int PRIMARY KEY); INSERT INTO invoice VALUES (1, 1, null, 1.00)`)
	broker, registry, _ := schemas(t)
	file := filepath.Join(t.TempDir(), "tallywire.yml")
	text := `
kafka: {brokers: ["` + broker + `"]}
registry: {url: "` + registry + `"}
redis: {embedded: true}
control: {embedded: true}
sources:
  psa: {type: postgres, dsn: "` + dsn + `", slot: quarantine_` + db.Config().Database + `, tables: [public.*], idle_interval: 100ms}
transforms:
  canonical:
    type: map
    topics: [{from: psa.public.invoice, to: ps.cost_rate, fields: {cost_rate_id: id, resource_id: id, valid_from: since, rate: total}}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := supervise.Build(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	kc, err := kafka.New(kafka.Config{Brokers: []string{broker}}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer kc.Close()
	reg, err := avro.NewRegistry(registry)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- ingest.Run(ctx, &pipeline.Env{Kafka: kc, Registry: reg, Obs: quiet(), Partitions: 2}, p.Sources[0])
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	// says waits until a command says all of words, and gives what it says.
	says := func(words []string, args ...string) (out string) {
		t.Helper()
		for deadline := time.Now().Add(testkit.Patience); ; time.Sleep(50 * time.Millisecond) {
			_, std, errs := tw(append(args, "-c", file)...)
			out = std + errs
			missing := ""
			for _, w := range words {
				if !strings.Contains(out, w) {
					missing = w
				}
			}
			if missing == "" {
				return out
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v does not say %q:\n%s", args, missing, out)
			}
		}
	}
	topics := func(table, records string) {
		t.Helper()
		says([]string{`"topic": "psa.public.` + table + `"`, records}, "topics", "list", "psa", "-o", "json")
	}
	topics("invoice", `"records": 2`) // a row, and the mark of its transaction

	// Remedy: TW-SCHEMA-NONE
	if out := says([]string{"TW-SCHEMA-NONE", "nothing of public.invoice"}, "schema", "accept", "psa", "public.invoice", "--yes"); !strings.Contains(out, "tallywire schema list") {
		t.Errorf("without a way out: %s", out)
	}
	says([]string{"nothing is in quarantine"}, "schema", "list")
	sql(`ALTER TABLE invoice ALTER number TYPE text, ALTER since TYPE text`)
	sql(`UPDATE invoice SET number = 'A-1'; INSERT INTO invoice VALUES (2, 'A-2', null, 2.00); INSERT INTO other VALUES (1)`)
	says([]string{"psa: changes of psa.public.invoice are kept since", "~ number: string was int of 4 octets", "_tallywire.quarantine.psa.public.invoice"}, "schema", "list")
	topics("other", `"records": 2`)
	says([]string{"~ number: string was int", "with the new shape these do not work any more", "TW-MAP-COLUMN: column since of psa.public.invoice is text", "nothing was done; with --yes the registry takes the schema"}, "schema", "accept", "psa", "public.invoice")
	says([]string{"psa: the registry takes the schema"}, "schema", "accept", "psa", "psa.public.invoice", "--yes")
	says([]string{"nothing is in quarantine"}, "schema", "list")
	sql(`INSERT INTO invoice VALUES (3, 'A-3', null, 3.00)`)
	table := func() map[string]string {
		rows, err := db.Query(t.Context(), "SELECT id::text, number || ' ' || total FROM invoice")
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		var id, row string
		if _, err := pgx.ForEachRow(rows, []any{&id, &row}, func() error { m[id] = row; return nil }); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if got := table(); len(got) != 3 {
		t.Fatal(got)
	}
	topics("invoice", `"records": `)

	// Another key, undone: what is between is left out, and said.
	sql(`ALTER TABLE invoice DROP CONSTRAINT invoice_pkey, ALTER number SET NOT NULL, ADD PRIMARY KEY (number)`)
	sql(`INSERT INTO invoice VALUES (4, 'A-4', null, 4.00)`)
	says([]string{"~ key: (number) was (id)"}, "schema", "list")
	sql(`ALTER TABLE invoice DROP CONSTRAINT invoice_pkey, ADD PRIMARY KEY (id)`)
	sql(`INSERT INTO invoice VALUES (5, 'A-5', null, 5.00)`)
	says([]string{"what is kept is dropped"}, "schema", "skip", "psa", "public.invoice", "--yes")
	says([]string{"changes of psa.public.invoice from", "were left out"}, "schema", "list")
	says([]string{"does not name what was left out"}, "schema", "close", "psa", "public.invoice", "--yes")
	says([]string{"nothing is in quarantine"}, "schema", "list")
	if code, _, errs := tw("schema", "accept", "psa", "-c", file); code != exitUsage || !strings.Contains(errs, "want a SOURCE and a TABLE") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
