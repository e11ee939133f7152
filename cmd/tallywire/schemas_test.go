package main

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/registry"
)

// schemas serves a registry, and gives a client of it.
func schemas(t *testing.T) (broker, url string, client *sr.Client) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	c, err := kafka.New(kafka.Config{Brokers: []string{e.Addr()}}, obs.New(log))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	s, err := registry.New(t.Context(), c, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	cl, err := sr.NewClient(sr.URLs(h.URL), sr.HTTPClient(h.Client()))
	if err != nil {
		t.Fatal(err)
	}
	return e.Addr(), h.URL, cl
}

// seats writes a configuration with a contract of its own, and gives what changes
// that.
func seats(t *testing.T, broker, url string) (file string, contract func(scale int, more string)) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	contract = func(scale int, more string) {
		write("seat.avsc", fmt.Sprintf(`{"type": "record", "name": "Seat", "namespace": "firm", "topic": "firm.seat", "doc": "A seat.", "owner": "it", "key": ["seat_id"], "fields": [
			{"name": "seat_id", "type": "string", "doc": "Its id.", "owner": "it", "sensitivity": "internal"},
			{"name": "area", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": %d}, "doc": "m².", "owner": "it", "sensitivity": "internal"}%s]}`, scale, more))
	}
	file = write("tallywire.yml", "contracts: ["+dir+"]\nkafka: {brokers: ['"+broker+"']}\nregistry: {url: '"+url+"'}\nredis: {embedded: true}\ncontrol: {embedded: true}\n"+
		"transforms: {seats: {type: map, topics: [{from: firm.public.seat, to: firm.seat}]}}\n")
	return file, contract
}

// contractsSay runs a command of contracts, and looks at its exit code and words.
func contractsSay(t *testing.T, file string, wantCode int, says []string, args ...string) {
	t.Helper()
	code, out, errs := tw(append(append([]string{"contracts"}, args...), "-c", file)...)
	if code != wantCode {
		t.Errorf("%v: exit %d, want %d\n%s%s", args, code, wantCode, out, errs)
	}
	for _, s := range says {
		if !strings.Contains(strings.Join(strings.Fields(out+errs), " "), s) {
			t.Errorf("%v does not say %q:\n%s%s", args, s, out, errs)
		}
	}
}

// A contract that changed is shown as it changed, and what old readers cannot
// take is registered only by somebody who says so; the subject is as strict
// afterwards as it was before.
func TestContractsAgainstTheRegistry(t *testing.T) {
	broker, url, client := schemas(t)
	file, contract := seats(t, broker, url)
	is := func(wantCode int, says []string, args ...string) {
		t.Helper()
		contractsSay(t, file, wantCode, says, args...)
	}
	level := func(want sr.CompatibilityLevel) {
		t.Helper()
		if r := client.Compatibility(sr.WithParams(t.Context(), sr.DefaultToGlobal), "firm.seat-value")[0]; r.Err != nil || r.Level != want {
			t.Errorf("the level is %v, want %v (%v)", r.Level, want, r.Err)
		}
	}

	contract(2, "")
	is(exitOK, []string{"firm.seat new -", "ps.time_entry new -"}, "diff")
	is(exitOK, []string{"firm.seat same 1"}, "register", "firm.seat")
	is(exitOK, []string{"firm.seat same 1", "ps.time_entry new -"}, "diff")

	contract(2, `, {"name": "floor", "type": ["null", "string"], "default": null, "doc": "Where.", "owner": "it", "sensitivity": "internal"}`)
	is(exitOK, []string{"firm.seat compatible 1 + floor: "}, "diff")
	is(exitOK, []string{"firm.seat same 2"}, "register")
	is(exitOK, []string{"ps.time_entry same 1"}, "diff")

	contract(4, "")
	is(exitDiffer, []string{"firm.seat breaking 2 ~ area: ", "- floor", "the new schema cannot read what version 2 wrote"}, "diff")
	is(exitRefused, []string{"nothing was registered", "--breaking"}, "register")
	is(exitDiffer, []string{"firm.seat breaking 2"}, "diff", "firm.seat")
	level(sr.CompatBackward)
	if code, out, errs := tw("doctor", "-c", file); code != exitUnwell || !strings.Contains(out, "TW-REGISTRY-INCOMPATIBLE: subject firm.seat-value: the new schema") {
		t.Errorf("doctor: exit %d\n%s%s", code, out, errs)
	}
	is(exitOK, []string{"firm.seat same 3"}, "register", "--breaking") // Remedy: TW-REGISTRY-INCOMPATIBLE
	level(sr.CompatBackward)
	if _, out, errs := tw("doctor", "-c", file); strings.Contains(out, "TW-REGISTRY-INCOMPATIBLE") || !strings.Contains(out, "the registry takes the contract of firm.seat") {
		t.Errorf("doctor: %s%s", out, errs)
	}

	if r := client.SetCompatibility(t.Context(), sr.SetCompatibility{Level: sr.CompatFull}, "firm.seat-value")[0]; r.Err != nil {
		t.Fatal(r.Err)
	}
	contract(6, "")
	is(exitOK, []string{"firm.seat same 4"}, "register", "--breaking", "firm.seat")
	level(sr.CompatFull)
	contract(2, "")
	// It is an earlier one: the way back is open, and readers of the last see what differs.
	is(exitOK, []string{"firm.seat earlier 1; the last is 4 ~ area: "}, "diff", "firm.seat")
	is(exitOK, []string{`"standing": "earlier", "version": 4, "equals": 1, "changes": [ "~ area: `}, "diff", "firm.seat", "-o", "json")
	is(exitOK, []string{"firm.seat earlier 1; the last is 4 ~ area: "}, "register", "firm.seat") // there is nothing to do
	contract(6, "")
	is(exitOK, []string{`"standing": "same", "version": 4, "equals": 4 }`}, "diff", "firm.seat", "-o", "json")

	is(exitFailed, []string{`there is no contract of "firm.saet"; did you mean "firm.seat"?`}, "diff", "firm.saet")
}
