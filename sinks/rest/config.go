// Config: the settings of a REST sink, their defaults and their checks.

package rest

import (
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/tallywire/tallywire/internal/secret"
)

// Config is the part of the configuration under sinks.<name> with type rest.
type Config struct {
	Profile      string       `yaml:"profile" doc:"How the far side speaks: business-central." example:"business-central"`
	URL          string       `yaml:"url" doc:"Base of the API, environment included, without /api." example:"https://api.businesscentral.dynamics.com/v2.0/TENANT/Production"`
	Company      string       `yaml:"company" doc:"Id (GUID) of the company."`
	CustomPages  string       `yaml:"custom_pages" doc:"Publisher, group and version of the custom pages projects and timeRegistrationEntries, which add the customer, blocked and externalReference."`
	TokenURL     string       `yaml:"token_url" doc:"OAuth2 token endpoint for client credentials." example:"https://login.microsoftonline.com/TENANT/oauth2/v2.0/token"`
	ClientID     string       `yaml:"client_id" doc:"Id of the application."`
	ClientSecret secret.Value `yaml:"client_secret" doc:"Secret of the application." example:"env:ERP_CLIENT_SECRET"`
	Scope        string       `yaml:"scope" doc:"OAuth2 scope."`

	GoLive time.Time `yaml:"go_live" doc:"First work date of time that is posted (YYYY-MM-DD). Older time is history and stays out." example:"2026-01-01"`

	Concurrency int           `yaml:"concurrency" doc:"Requests in flight, 1 to 100. Business Central runs 5 of one user at once."`
	Rate        float64       `yaml:"rate" doc:"Requests per second at most, above 0. Business Central allows 6,000 in 5 minutes."`
	Burst       int           `yaml:"burst" doc:"Requests that may go out at once after a pause, 1 or more."`
	Timeout     time.Duration `yaml:"timeout" doc:"For the answer to one request. What was not answered by then is settled by reading back."`
	MaxThrottle time.Duration `yaml:"max_throttle" doc:"How long a Retry-After is waited out within a batch; a longer one hands the batch back for later."`

	UniqueReference bool          `yaml:"unique_reference" doc:"The custom page refuses a second time entry with the same externalReference: repeating a request is then harmless, and settling needs no wait."`
	SettleAfter     time.Duration `yaml:"settle_after" doc:"Longest time that the far side may still be working on a request, used when unique_reference is false. Business Central queues for 8 minutes and runs for 10."`

	BreakAfter int           `yaml:"break_after" doc:"Failures in a row after which the far side is left alone for break_for, 1 or more."`
	BreakFor   time.Duration `yaml:"break_for" doc:"How long the far side is left alone then."`
}

// DefaultConfig is a Config with every default.
func DefaultConfig() Config {
	return Config{
		Profile: "business-central", CustomPages: "tallywire/timesheets/v1.0",
		Scope:       "https://api.businesscentral.dynamics.com/.default",
		Concurrency: 5, Rate: 20, Burst: 100,
		Timeout: time.Minute, MaxThrottle: 30 * time.Second,
		UniqueReference: true, SettleAfter: 18 * time.Minute,
		BreakAfter: 5, BreakFor: 5 * time.Second,
	}
}

// Validate says everything that is wrong, joined.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, ErrConfig.New(format, args...))
		}
	}
	check(c.Profile == "business-central", "profile is %q: want business-central", c.Profile)
	for _, u := range []struct{ name, text string }{{"url", c.URL}, {"token_url", c.TokenURL}} {
		p, err := url.Parse(u.text)
		ok := err == nil && (p.Scheme == "https" || p.Scheme == "http") && p.Host != "" && p.User == nil
		check(ok, "%s is not an http or https URL without a password", u.name)
	}
	check(c.Company != "" && !strings.ContainsAny(c.Company, "()/'\" "), "company is missing or no id: want its GUID")
	check(strings.Count(c.CustomPages, "/") == 2, "custom_pages is %q: want publisher/group/version", c.CustomPages)
	check(c.ClientID != "", "client_id is missing")
	check(!c.ClientSecret.IsZero(), "client_secret is missing: name it as env:NAME or file:PATH")
	check(!c.GoLive.IsZero(), "go_live is missing: want a date such as 2026-01-31")
	check(c.Concurrency >= 1 && c.Concurrency <= 100, "concurrency is %d: want 1 to 100", c.Concurrency)
	check(c.Rate > 0, "rate is %v: want more than 0", c.Rate)
	check(c.Burst >= 1, "burst is %d: want 1 or more", c.Burst)
	check(c.Timeout > 0, "timeout is %v: want more than 0", c.Timeout)
	check(c.MaxThrottle >= 0, "max_throttle is %v: want 0 or more", c.MaxThrottle)
	check(c.SettleAfter >= 0, "settle_after is %v: want 0 or more", c.SettleAfter)
	check(c.BreakAfter >= 1, "break_after is %d: want 1 or more", c.BreakAfter)
	check(c.BreakFor > 0, "break_for is %v: want more than 0", c.BreakFor)
	return errors.Join(errs...)
}
