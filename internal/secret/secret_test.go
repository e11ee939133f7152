package secret

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const hush = "hunter2-and-more"

// A secret that any printer shows would end in a log or a support ticket.
func TestNoPrinterShowsIt(t *testing.T) {
	env := func(string) (string, bool) { return hush, true }
	v, err := Resolve("env:THING", env)
	if err != nil {
		t.Fatal(err)
	}
	type holder struct {
		V Value  `yaml:"v"`
		P *Value `yaml:"p"`
		D DSN    `yaml:"d"`
	}
	h := holder{v, &v, DSN{v}}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		for _, x := range []any{v, &v, h, &h, []Value{v}, map[string]Value{"k": v}, DSN{v}, &h.D} {
			fmt.Fprintf(&out, verb+"\n", x)
		}
	}
	j, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v, "h", h, "d", h.D)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v, "h", h, "p", &v)
	all := out.String() + string(j) + string(y) + log.String()
	if strings.Contains(all, hush) || strings.Contains(all, fmt.Sprintf("%x", hush)) {
		t.Fatalf("the secret shows in:\n%s", all)
	}
	if !strings.Contains(string(j), "[secret env:THING]") {
		t.Errorf("JSON %s does not name the reference", j)
	}
	if v.Reveal() != hush {
		t.Errorf("Reveal gives something else")
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "s")
	if err := os.WriteFile(file, []byte(hush+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(n string) (string, bool) {
		v, ok := map[string]string{"SET": hush, "EMPTY": ""}[n]
		return v, ok
	}
	for _, c := range []struct{ ref, err string }{
		{"env:SET", ""},
		{"file:" + file, ""},
		{"env:NOPE", "the environment variable NOPE is not set"},
		{"env:EMPTY", "the environment variable EMPTY is empty"},
		{"file:" + dir + "/nope", "reading the file " + dir + "/nope: no such file or directory"},
		{"file:" + empty, "the file " + empty + " is empty"},
		{hush, errLiteral.Error()},
		{"env:", errLiteral.Error()},
	} {
		v, err := Resolve(c.ref, env)
		if c.err == "" {
			if err != nil || v.Reveal() != hush {
				t.Errorf("%s: %v", c.ref, err)
			}
			continue
		}
		if err == nil || err.Error() != c.err {
			t.Errorf("%s: error %v, want %s", c.ref, err, c.err)
		}
	}
}

// A password written into the config must be refused, and the refusal must not quote it.
func TestDSN(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	for _, s := range []string{"postgres://u@h:5432/d?sslmode=disable", "host=h user=u dbname=d", "postgres:///d?host=/run/pg"} {
		d, err := ResolveDSN(s, none)
		if err != nil || d.Reveal() != s {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{
		"postgres://u:" + hush + "@h/d", "postgres://u@h/d?password=" + hush, "host=h password=" + hush,
		"host=h Password = " + hush, "postgres://u:" + hush + "@h:bad port/d", hush,
	} {
		if _, err := ResolveDSN(s, none); err == nil || strings.Contains(err.Error(), hush) {
			t.Errorf("%s: error %v", s, err)
		}
	}
	if _, err := ResolveDSN("env:PSA", none); err == nil || errors.Is(err, errLiteral) {
		t.Errorf("missing variable: %v", err)
	}
}

// As TestDSN, for what is not a Postgres.
func TestURL(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	for _, s := range []string{"http://registry:8081", "https://reader@registry/path", "redis:6379", "rediss://u@h:6379/0", "[::1]:6379"} {
		u, err := ResolveURL(s, none)
		if err != nil || u.Reveal() != s {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"https://u:" + hush + "@h", "redis://:" + hush + "@h:6379", hush + "@h:6379", "https://u:" + hush + "@h:bad port"} {
		if _, err := ResolveURL(s, none); err == nil || strings.Contains(err.Error(), hush) {
			t.Errorf("%s: error %v", s, err)
		}
	}
	if u, err := ResolveURL("env:R", func(string) (string, bool) { return "redis://u:" + hush + "@h", true }); err != nil || strings.Contains(u.String(), hush) {
		t.Errorf("%v, %v", u, err)
	}
}
