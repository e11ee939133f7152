package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

var update = flag.Bool("update", false, "write the expected texts of *.bad.yml anew")

// component is what a source's maker would decode into.
type component struct {
	DSN      secret.DSN    `yaml:"dsn"`
	Password secret.Value  `yaml:"password"`
	Token    *secret.Value `yaml:"token"`
	Slot     string        `yaml:"slot"`
	Wait     time.Duration `yaml:"wait"`
	Retries  uint8         `yaml:"retries"`
	Tables   []string      `yaml:"tables"`
	Load     bool          `yaml:"load"`
	Ratio    float64
	More     map[string]struct {
		A int `yaml:"a"`
	} `yaml:"more"`
}

func env(name string) (string, bool) {
	if name == "TW_TEST_DSN" {
		return "postgres://u:hunter2@h/d", true
	}
	return "", false
}

// load does what `check` does: parse, find each type, decode each part.
func load(file string, o Options) (*Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	o.Env = env
	c, err := Parse(filepath.Base(file), b, o)
	if c == nil {
		return nil, err
	}
	errs := []error{err}
	for _, cs := range []Components{c.Sources, c.Transforms, c.Sinks} {
		for _, x := range cs {
			if !oneOf(x.Type, "postgres", "map", "warehouse") {
				errs = append(errs, x.UnknownType([]string{"warehouse", "postgres", "map"}))
				continue
			}
			errs = append(errs, x.Decode(&component{}))
		}
	}
	return c, errors.Join(errs...)
}

// A good file that is refused stops a user; a bad one that loads runs with
// something else than was meant.
func TestFiles(t *testing.T) {
	good, err := filepath.Glob("testdata/*.good.yml")
	if err != nil || len(good) == 0 {
		t.Fatal(err, good)
	}
	for _, f := range good {
		if _, err := load(f, Options{}); err != nil {
			t.Errorf("%s:\n%s", f, problem.Format(err))
		}
	}
	bad, err := filepath.Glob("testdata/*.bad.yml")
	if err != nil || len(bad) == 0 {
		t.Fatal(err, bad)
	}
	for _, f := range bad {
		_, err := load(f, Options{})
		if err == nil {
			t.Errorf("%s loads", f)
			continue
		}
		got := problem.Format(err)
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s: the message shows the secret:\n%s", f, got)
		}
		for _, r := range problem.Reports(err) {
			if r.Code == "" {
				t.Errorf("%s: an error without a code: %s", f, r.What)
			}
		}
		beside := strings.TrimSuffix(f, ".yml") + ".txt"
		if *update {
			if err := os.WriteFile(beside, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(beside)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s fails with\n%s\nwant\n%s", f, got, want)
		}
	}
}

// The values that arrive are those that were written.
func TestValues(t *testing.T) {
	c, err := load("testdata/full.good.yml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Kafka.Brokers) != 2 || c.Kafka.Brokers[1] != "kafka-2:9092" || c.Partitions != 12 || c.Instance != "node-1" ||
		c.Log.Format != "json" || c.Registry.URL.Reveal() != "http://registry:8081" || c.Registry.Listen != "127.0.0.1:8081" ||
		c.Control.DSN.Reveal() != "postgres://tallywire@control:5432/control?sslmode=disable" {
		t.Errorf("got %+v", c)
	}
	var x component
	x.Retries = 3
	if err := c.Sources[0].Decode(&x); err != nil {
		t.Fatal(err)
	}
	if x.DSN.Reveal() != "postgres://u:hunter2@h/d" || x.Slot != "tallywire" || x.Wait != 30*time.Second || x.Retries != 3 || len(x.Tables) != 1 {
		t.Errorf("got %+v", x)
	}
}

// If this failed, a configuration for production in which a part was forgotten
// would run with one of its own, on the machine that it happens to be started on.
func TestWhatIsForgotten(t *testing.T) {
	const broker = "kafka: {brokers: ['k:9092']}\n"
	for text, want := range map[string]string{
		"":     "",
		broker: "registry control",
		broker + "transforms: {canonical: {type: map}}": "registry redis control",
		broker + "registry: {url: 'http://r'}\nredis: {addr: 'r:1'}\ncontrol: {dsn: 'env:TW_TEST_DSN'}\ntransforms: {canonical: {type: map}}": "",
		broker + "registry: {url: ''}\ncontrol: {dsn: }": "registry control",
		broker + "registry: {embedded: true}\ncontrol: {embedded: true}\nredis: {embedded: true}\ntransforms: {canonical: {type: map}}": "",
	} {
		c, err := Parse("f.yml", []byte(text), Options{Env: env})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range problem.Reports(c.Forgotten()) {
			where := strings.TrimPrefix(r.Where, "f.yml:1:18: ")
			if r.Code != ErrValue.ID || !strings.Contains(r.Remedy, where+": {embedded: true}") {
				t.Errorf("%+v", r)
			}
			got = append(got, where)
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("of\n%s\nare forgotten %q, want %q", text, g, want)
		}
	}
}

// Users write brokers without quotes; the parser alone takes them for pairs
// when braces are around the list.
func TestUnquotedAddresses(t *testing.T) {
	for _, text := range []string{
		"kafka: {brokers: [kafka:9092, k-2.example.com:9093, http://k3:9094, 'k4:9095']}",
		"kafka: {listen: 127.0.0.1:1, brokers: [kafka:9092,k-2.example.com:9093,\n  http://k3:9094, k4:9095]}",
		"kafka:\n  brokers: [kafka:9092, k-2.example.com:9093, http://k3:9094, k4:9095]",
		"kafka:\n  brokers:\n  - kafka:9092\n  - k-2.example.com:9093\n  - http://k3:9094\n  - k4:9095",
	} {
		c, err := Parse("x.yml", []byte(text), Options{})
		if err != nil {
			t.Errorf("%s\n%s", text, problem.Format(err))
			continue
		}
		if got := strings.Join(c.Kafka.Brokers, " "); got != "kafka:9092 k-2.example.com:9093 http://k3:9094 k4:9095" {
			t.Errorf("%s\ngives %s", text, got)
		}
	}
	for _, text := range []string{"kafka: {brokers: [kafka: 9092]}", "kafka: {brokers: [{kafka:9092}]}", "kafka: {brokers: ['kafka':9092]}"} {
		_, err := Parse("x.yml", []byte(text), Options{})
		if !problem.Has(err, ErrType) {
			t.Errorf("%s gives %v", text, err)
		}
	}
}

// `check` on a machine without the secrets must not fail for them.
func TestStatic(t *testing.T) {
	b := []byte("sources: {psa: {type: postgres, dsn: 'env:NOT_HERE', token: 'file:/not/here'}}")
	c, err := Parse("x.yml", b, Options{Static: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Sources[0].Decode(&component{}); err != nil {
		t.Error(err)
	}
}

// Leaving one out must leave the others in, and a misspelt name must not run all.
func TestWithout(t *testing.T) {
	c, err := load("testdata/full.good.yml", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Without([]string{"warehouse"}); err != nil || len(c.Sinks) != 0 || len(c.Sources) != 1 || len(c.Transforms) != 1 {
		t.Errorf("%v: %d sources, %d transforms, %d sinks", err, len(c.Sources), len(c.Transforms), len(c.Sinks))
	}
	if err := c.Without([]string{"warehose"}); !problem.Has(err, ErrValue) {
		t.Errorf("got %v", err)
	}
}

func TestNearest(t *testing.T) {
	names := []string{"brokers", "listen", "slot", "publication"}
	for wrong, want := range map[string]string{"brokrs": "brokers", "broker": "brokers", "Slot": "slot", "publicaton": "publication", "zzz": ""} {
		if got := Nearest(wrong, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", wrong, got, want)
		}
	}
}

// Bytes from outside must not crash the process.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f.yml", b, Options{Env: env})
		if err != nil {
			return
		}
		for _, x := range c.Sources {
			if err := x.Decode(&component{}); err != nil {
				return
			}
		}
	})
}
