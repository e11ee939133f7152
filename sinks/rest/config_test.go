package rest

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/pipeline"
)

func goodConfig() Config {
	c := DefaultConfig()
	c.URL, c.TokenURL, c.Company = "https://erp.example", "https://login.example/token", "9b7e0c1a-5a57-4f3e-8d43-6f0a51c3d2e1"
	c.ClientID, c.ClientSecret, c.GoLive = "app", secret.Of("hunter2"), day("2026-01-01")
	return c
}

// TestConfigSaysWhatIsWrong: each mistake is named, before anything is sent.
func TestConfigSaysWhatIsWrong(t *testing.T) {
	good := goodConfig()
	if err := good.Validate(); err != nil { // Remedy: TW-REST-CONFIG
		t.Fatal(err)
	}
	if strings.Contains(fmt.Sprintf("%+v %#v", good, good), "hunter2") {
		t.Error("the secret is shown")
	}
	for want, spoil := range map[string]func(*Config){
		`profile is "sap"`:         func(c *Config) { c.Profile = "sap" },
		"url is not an http":       func(c *Config) { c.URL = "erp.example" },
		"token_url is not an http": func(c *Config) { c.TokenURL = "https://app:hunter2@login.example" },
		"company is missing":       func(c *Config) { c.Company = "CRONUS (DE)" },
		"custom_pages is":          func(c *Config) { c.CustomPages = "timesheets" },
		"client_id is missing":     func(c *Config) { c.ClientID = "" },
		"client_secret is missing": func(c *Config) { c.ClientSecret = secret.Value{} },
		"go_live is missing":       func(c *Config) { c.GoLive = time.Time{} },
		"concurrency is 0":         func(c *Config) { c.Concurrency = 0 },
		"rate is 0":                func(c *Config) { c.Rate = 0 },
		"burst is 0":               func(c *Config) { c.Burst = 0 },
		"timeout is 0s":            func(c *Config) { c.Timeout = 0 },
		"max_throttle is -1s":      func(c *Config) { c.MaxThrottle = -time.Second },
		"settle_after is -1s":      func(c *Config) { c.SettleAfter = -time.Second },
		"break_after is 0":         func(c *Config) { c.BreakAfter = 0 },
		"break_for is 0s":          func(c *Config) { c.BreakFor = 0 },
	} {
		c := goodConfig()
		spoil(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) || !isCode(err, ErrConfig) {
			t.Errorf("want %q, got %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the secret is shown", want)
		}
	}
}

// TestNoControlDatabase: without one there is nothing to be exact by.
func TestNoControlDatabase(t *testing.T) {
	maker, _ := pipeline.Sinks.Find("rest")
	_, err := maker(&pipeline.Env{}, "erp", func(into any) error {
		*into.(*Config) = goodConfig()
		return nil
	})
	if !isCode(err, control.ErrMissing) {
		t.Fatalf("got %v", err)
	}
	// Remedy: TW-CONTROL-MISSING
	if _, err := maker(&pipeline.Env{Control: new(pgxpool.Pool), Obs: obs.New(slog.New(slog.DiscardHandler))}, "erp", func(into any) error {
		*into.(*Config) = goodConfig()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestNormalForms: a false difference would reject an entry that is the same.
func TestNormalForms(t *testing.T) {
	for _, c := range []struct {
		kind     propertyKind
		in, want string
	}{
		{code, " c-1 ", "C-1"},
		{text, " x ", " x "},
		{date, "0001-01-01", ""},
		{date, "2026-03-01", "2026-03-01"},
		{quantity, "7.50", "7.5"},
		{quantity, "7.00", "7"},
		{quantity, "100", "100"},
		{quantity, "0.00", "0"},
		{quantity, "0.333333", "0.33333"},
		{quantity, "0.666667", "0.66667"},
		{quantity, "-0.000005", "-0.00001"},
		{quantity, "0.000004", "0"},
		{quantity, "1e999999999", "1e999999999"},
		{guid, "00000000-0000-0000-0000-000000000000", ""},
		{guid, "9B7E0C1A-5A57-4F3E-8D43-6F0A51C3D2E1", "9b7e0c1a-5a57-4f3e-8d43-6f0a51c3d2e1"},
	} {
		if got := c.kind.normal(c.in); got != c.want {
			t.Errorf("%q is %q, want %q", c.in, got, c.want)
		}
	}
	q := entities[topicCustomer].query(&Config{Company: "x"}, "O'Hara & Co")
	if want := "/api/v2.0/companies(x)/customers?%24filter=number%20eq%20%27O%27%27Hara%20%26%20Co%27&%24top=2"; q != want {
		t.Errorf("query %s", q)
	}
}

func TestRetryAfter(t *testing.T) {
	for in, want := range map[string]time.Duration{"": time.Second, "7": 7 * time.Second, "-1": time.Second, "soon": time.Second} {
		if got := retryAfter(http.Header{"Retry-After": {in}}); got != want {
			t.Errorf("%q is %v, want %v", in, got, want)
		}
	}
	in := http.Header{"Retry-After": {time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)}}
	if got := retryAfter(in); got < 59*time.Minute || got > time.Hour {
		t.Errorf("a date in an hour is %v", got)
	}
}
