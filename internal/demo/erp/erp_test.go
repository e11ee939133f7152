// What would be lost if these failed: the demo's proof. A server that forgets
// a committed entry, or takes one twice, would make tallywire look wrong, or
// right, for nothing.

package erp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type client struct {
	t     *testing.T
	s     *Server
	http  *http.Client
	token string
}

func start(t *testing.T, opt Options) *client {
	t.Helper()
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	opt.ClientSecret = "s3"
	s, err := Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, s: s, http: &http.Client{Transport: &http.Transport{}, Timeout: 5 * time.Second}}
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	c.login()
	return c
}

func (c *client) login() {
	c.t.Helper()
	resp, err := c.http.PostForm(c.s.TokenURL(), url.Values{"grant_type": {"client_credentials"}, "client_id": {"tallywire"}, "client_secret": {"s3"}})
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var tok struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tok); err != nil {
		c.t.Fatal(err)
	}
	c.token = tok.AccessToken
}

type reply struct {
	status int
	header http.Header
	body   map[string]any
}

func (r reply) code() string {
	e, _ := r.body["error"].(map[string]any)
	s, _ := e["code"].(string)
	return s
}

func (c *client) try(method, path, body, etag string) (reply, error) {
	if !strings.HasPrefix(path, "http") {
		path = c.s.URL() + path
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if etag != "" {
		req.Header.Set("If-Match", etag)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply{}, err
	}
	r := reply{status: resp.StatusCode, header: resp.Header}
	return r, json.Unmarshal(b, &r.body)
}

func (c *client) call(method, path, body, etag string, want int) reply {
	c.t.Helper()
	r, err := c.try(method, path, body, etag)
	if err != nil {
		c.t.Fatal(err)
	}
	if r.status != want {
		c.t.Fatalf("%s %s: %d %v, want %d", method, path, r.status, r.body, want)
	}
	return r
}

func std(rest string) string    { return "/api/v2.0/companies(" + DefaultCompanyID + ")/" + rest }
func custom(rest string) string { return CustomPath + "companies(" + DefaultCompanyID + ")/" + rest }

// seed makes a customer, an employee and a project.
func (c *client) seed() {
	c.t.Helper()
	c.call("POST", std("customers"), `{"number":"c-1","displayName":"Acme"}`, "", 201)
	c.call("POST", std("employees"), `{"number":"E-1","givenName":"Ann","surname":"O'Hara"}`, "", 201)
	c.call("POST", custom("projects"), `{"number":"P-1","displayName":"Build","customerNumber":"C-1"}`, "", 201)
}

const entry = `{"employeeNumber":"E-1","jobNumber":"P-1","jobTaskNumber":"10","date":"2026-03-02","quantity":7.50,"status":"Approved","externalReference":"ps.time_entry/1"}`

func TestEntryIsTakenOnceAndFoundByReference(t *testing.T) {
	c := start(t, Options{})
	c.seed()
	made := c.call("POST", custom("timeRegistrationEntries"), entry, "", 201)
	if made.body["customerNumber"] != "C-1" || made.body["quantity"] != 7.5 {
		t.Fatalf("made %v", made.body)
	}
	again := c.call("POST", custom("timeRegistrationEntries"), entry, "", 400)
	if again.code() != "Internal_EntityWithSameKeyExists" {
		t.Fatalf("a repeat gave %v", again.body)
	}
	got := c.call("GET", custom("timeRegistrationEntries?$filter=")+url.QueryEscape("externalReference eq 'ps.time_entry/1' and jobTaskNumber eq '10'"), "", "", 200)
	if v := got.body["value"].([]any); len(v) != 1 || v[0].(map[string]any)["id"] != made.body["id"] {
		t.Fatalf("found %v", v)
	}
	if _, has := c.call("GET", std("timeRegistrationEntries("+made.body["id"].(string)+")"), "", "", 200).body["externalReference"]; has {
		t.Fatal("the standard page shows a custom field")
	}
}

func TestPatchNeedsTheEntityTag(t *testing.T) {
	c := start(t, Options{})
	made := c.call("POST", std("customers"), `{"number":"C-1","displayName":"Acme"}`, "", 201)
	path, etag := std("customers("+made.body["id"].(string)+")"), made.body["@odata.etag"].(string)
	if r := c.call("PATCH", path, `{"displayName":"A"}`, "", 400); r.code() != "BadRequest_RequiredHeaderMissing" {
		t.Fatal(r.body)
	}
	c.call("PATCH", path, `{"displayName":"B"}`, etag, 200)
	if r := c.call("PATCH", path, `{"displayName":"C"}`, etag, 409); r.code() != "Request_EntityChanged" {
		t.Fatal(r.body)
	}
	if got := c.call("GET", path, "", "", 200).body["displayName"]; got != "B" {
		t.Fatalf("a stale PATCH was taken: %v", got)
	}
}

func TestValidationErrors(t *testing.T) {
	c := start(t, Options{})
	c.seed()
	for body, code := range map[string]string{
		`{"employeeNumber":"E-9","date":"2026-03-02","quantity":1}`:                   "Internal_InvalidTableRelation",
		`{"employeeNumber":"E-1","jobNumber":"X","date":"2026-03-02","quantity":1}`:   "Internal_InvalidTableRelation",
		`{"employeeNumber":"E-1","date":"2026-13-02","quantity":1}`:                   "BadRequest",
		`{"employeeNumber":"E-1","date":"2026-03-02","quantity":"1"}`:                 "BadRequest",
		`{"employeeNumber":"E-1","date":"2026-03-02","quantity":1e999999999}`:         "BadRequest",
		`{"employeeNumber":"E-1","date":"2026-03-02"}`:                                "Application_FieldValidationException",
		`{"employeeNumber":"E-1","date":"2026-03-02","quantity":1,"nonsense":"x"}`:    "BadRequest",
		`{"employeeNumber":"` + strings.Repeat("E", 21) + `","date":"2026-03-02"}`:    "Application_StringExceededLength",
		`{"employeeNumber":"E-1","date":"2026-03-02","quantity":1,"status":"Posted"}`: "BadRequest",
	} {
		if r := c.call("POST", custom("timeRegistrationEntries"), body, "", 400); r.code() != code {
			t.Errorf("%s: %v, want %s", body, r.body, code)
		}
	}
	if n := len(c.s.Records()["timeRegistrationEntries"]); n != 0 {
		t.Fatalf("%d entries were committed", n)
	}
}

func TestPagesAreFollowed(t *testing.T) {
	c := start(t, Options{PageSize: 2})
	for _, n := range []string{"A", "B", "C", "D", "E"} {
		c.call("POST", std("customers"), `{"number":"`+n+`","displayName":"x"}`, "", 201)
	}
	var got string
	for next := std("customers"); next != ""; {
		r := c.call("GET", next, "", "", 200)
		for _, v := range r.body["value"].([]any) {
			got += v.(map[string]any)["number"].(string)
		}
		next, _ = r.body["@odata.nextLink"].(string)
	}
	if got != "ABCDE" {
		t.Fatalf("pages gave %q", got)
	}
	if n := len(c.call("GET", std("customers?$top=3"), "", "", 200).body["value"].([]any)); n != 2 {
		t.Fatalf("first page of $top=3 has %d", n)
	}
}

// TestLedgerSurvivesATornTail: what was answered is there after a crash in the
// middle of a write; what was not whole is not.
func TestLedgerSurvivesATornTail(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Options{Dir: dir})
	c.seed()
	c.call("POST", custom("timeRegistrationEntries"), entry, "", 201)
	if err := c.s.Stop(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, LedgerName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.WriteString(`0badc0de {"set":"timeRegistrationEntries","id":"`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadLedger(dir); err != nil || len(got["timeRegistrationEntries"]) != 1 {
		t.Fatalf("read %v, %v", got, err)
	}
	c = start(t, Options{Dir: dir})
	if r := c.call("POST", custom("timeRegistrationEntries"), entry, "", 400); r.code() != "Internal_EntityWithSameKeyExists" {
		t.Fatalf("after the restart: %v", r.body)
	}
	c.call("POST", custom("timeRegistrationEntries"), strings.ReplaceAll(entry, "entry/1", "entry/2"), "", 201)
	if got, err := ReadLedger(dir); err != nil || len(got["timeRegistrationEntries"]) != 2 {
		t.Fatalf("read %v, %v", got, err)
	}
}

func TestDamageInTheMiddleIsNotHidden(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Options{Dir: dir})
	c.seed()
	if err := c.s.Stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, LedgerName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("Acme"), []byte("Acne"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLedger(dir); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Fatalf("a damaged line gave %v", err)
	}
}

func TestLimits(t *testing.T) {
	c := start(t, Options{RatePer5Min: 3})
	for range 3 {
		c.call("GET", std("customers"), "", "", 200)
	}
	if r := c.call("GET", std("customers"), "", "", 429); r.header.Get("Retry-After") == "" {
		t.Fatal("no Retry-After")
	}
}

func TestGateLetsSomeRunAndSomeWait(t *testing.T) {
	g := newGate(1, 1)
	leave, st := g.enter(t.Context(), time.Hour)
	if st != 0 {
		t.Fatal(st)
	}
	if _, st := g.enter(t.Context(), time.Millisecond); st != http.StatusServiceUnavailable {
		t.Fatalf("who waited too long got %d", st)
	}
	waiting := make(chan int)
	go func() {
		l, st := g.enter(context.Background(), time.Hour)
		if st == 0 {
			l()
		}
		waiting <- st
	}()
	for len(g.all) < 2 {
		select {
		case <-t.Context().Done():
			t.Fatal("nobody waits")
		case <-time.After(time.Millisecond):
		}
	}
	if _, st := g.enter(t.Context(), time.Hour); st != http.StatusTooManyRequests {
		t.Fatalf("one too many got %d", st)
	}
	leave()
	if st := <-waiting; st != 0 {
		t.Fatalf("who waited got %d", st)
	}
}

func TestFaults(t *testing.T) {
	c := start(t, Options{})
	c.seed()
	post := func(n string, want int) reply {
		t.Helper()
		return c.call("POST", custom("timeRegistrationEntries"), strings.ReplaceAll(entry, "entry/1", "entry/"+n), "", want)
	}
	faults := func(body string) {
		t.Helper()
		c.call("POST", "/_faults", body, "", 200)
	}
	faults(`{"throttle":"1h","retry_after":7}`)
	if r := post("a", 429); r.header.Get("Retry-After") != "7" {
		t.Fatal(r.header)
	}
	faults(`{"fail_percent":100,"fail_status":500}`)
	post("a", 500)
	faults(`{"reject_customers":["c-2"]}`)
	c.call("POST", std("customers"), `{"number":"C-2","displayName":"x"}`, "", 400)
	faults(`{"revoke_tokens":true}`)
	post("a", 401)
	c.login()
	faults(`{"lose_next":1,"lose":"close"}`)
	if _, err := c.try("POST", custom("timeRegistrationEntries"), strings.ReplaceAll(entry, "entry/1", "entry/b"), ""); err == nil {
		t.Fatal("the answer was not lost")
	}
	post("b", 400) // it was committed
	faults(`{"lose_next":1,"lose":"500"}`)
	post("c", 500)
	post("c", 400)
	if r := c.call("POST", "/_faults", `{"fail_percent":900}`, "", 400); r.code() != "BadRequest" {
		t.Fatal(r.body)
	}
}

// TestDownRefusesAndComesBack: an outage is a refused connection, and nothing
// committed is gone after it.
func TestDownRefusesAndComesBack(t *testing.T) {
	c := start(t, Options{})
	c.seed()
	c.s.SetFaults(Faults{Down: Duration(300 * time.Millisecond)})
	_, err := c.try("GET", std("customers"), "", "")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("down gave %v", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for err != nil {
		select {
		case <-tick.C:
			_, err = c.try("GET", std("customers"), "", "")
		case <-t.Context().Done():
			t.Fatal("did not come back")
		}
	}
	if n := len(c.call("GET", std("customers"), "", "", 200).body["value"].([]any)); n != 1 {
		t.Fatalf("%d customers", n)
	}
}
