// The far side misbehaves. Each of these, done wrong, bills an hour twice or
// never.

package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

// unprotected is a far side that takes a second entry with the same reference:
// only reading back keeps it from doing so.
func unprotected(settleAfter time.Duration) func(*Config) {
	return func(c *Config) {
		c.UniqueReference, c.SettleAfter, c.Timeout = false, settleAfter, time.Second
		c.BreakAfter = 100
	}
}

// TestTimeoutAfterCommitIsReadBack: the ERP commits and never answers, and
// would take the entry again.
func TestTimeoutAfterCommitIsReadBack(t *testing.T) {
	for _, lose := range []string{"hang", "close", "500"} {
		t.Run(lose, func(t *testing.T) {
			r := newRig(t, erp.Options{AllowDuplicates: true}, unprotected(time.Second))
			r.ok(r.place(firm(0)...))
			r.erp.SetFaults(erp.Faults{LoseNext: 3, Lose: lose})
			r.ok(r.place(firm(12)[:12]...))
			r.once(12)
			if n := r.intents(); n != 0 {
				t.Errorf("%d intents left", n)
			}
		})
	}
}

// TestLateCommitIsWaitedFor: the ERP still works on a request when the client
// has given up; looking at once would find nothing and post again.
func TestLateCommitIsWaitedFor(t *testing.T) {
	r := newRig(t, erp.Options{AllowDuplicates: true}, unprotected(4*time.Second))
	r.ok(r.place(firm(0)...))
	r.erp.SetFaults(erp.Faults{LateNext: 2, Late: erp.Duration(1500 * time.Millisecond)})
	r.ok(r.place(firm(5)[:5]...))
	r.settled()
	r.once(5)
}

// TestLateCommitOfAUniqueReferenceNeedsNoWait: the repeat is refused or comes
// first; either way there is one.
func TestLateCommitOfAUniqueReferenceNeedsNoWait(t *testing.T) {
	r := newRig(t, erp.Options{}, func(c *Config) { c.Timeout, c.BreakAfter = 250*time.Millisecond, 100 })
	r.ok(r.place(firm(0)...))
	r.erp.SetFaults(erp.Faults{LateNext: 2, Late: erp.Duration(1500 * time.Millisecond)})
	r.ok(r.place(firm(5)[:5]...))
	r.settled()
	r.once(5)
}

// TestLostAnswersToEverything: masters and time, creates and changes.
func TestLostAnswersToEverything(t *testing.T) {
	for _, lose := range []string{"hang", "close", "500"} {
		t.Run(lose, func(t *testing.T) {
			r := newRig(t, erp.Options{}, func(c *Config) { c.Timeout, c.BreakAfter = 500*time.Millisecond, 100 })
			r.erp.SetFaults(erp.Faults{LosePercent: 30, Lose: lose})
			r.ok(r.place(firm(12)...))
			r.ok(r.place(customer(1, "name", "A"), customer(2, "name", "B"), customer(3, "name", "C"), employee(1, "title", "D")))
			r.once(12)
			names := map[string]bool{}
			for _, c := range r.erp.Records()["customers"] {
				names[c.Fields["displayName"]] = true
			}
			if len(names) != 3 || !names["A"] || !names["B"] || !names["C"] {
				t.Errorf("customers %v", names)
			}
		})
	}
}

// TestKilledBetweenIntentAndResult: the process dies when the ERP has the
// entries and the control database does not know it. The next instance finds
// them there.
func TestKilledBetweenIntentAndResult(t *testing.T) {
	r := newRig(t, erp.Options{AllowDuplicates: true}, unprotected(0))
	r.ok(r.place(firm(0)...))
	pool, err := control.Open(t.Context(), r.pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	good := r.pool
	r.pool = pool
	r.restart("one")
	r.erp.SetFaults(erp.Faults{LosePercent: 100, Lose: "hang"})
	ps := r.place(firm(5)[:5]...)
	ended := make(chan error)
	go func() {
		_, err := r.try(ps)
		ended <- err
	}()
	r.until(func() bool { return len(r.times()) == 5 })
	pool.Close() // from now on it can record nothing
	if err := <-ended; !isCode(err, ErrControl) {
		t.Fatalf("the dying instance ended with %v", err)
	}
	r.pool = good
	if n := r.intents(); n != 5 {
		t.Fatalf("%d intents left behind, want 5", n)
	}
	r.erp.SetFaults(erp.Faults{})
	r.restart("two") // Remedy: TW-REST-CONTROL, TW-REST-OUTCOME-UNKNOWN
	r.ok(ps)
	r.once(5)
	if n := r.intents(); n != 0 {
		t.Errorf("%d intents left", n)
	}
}

// Lost if this fails: after a rollback the sink does not start, or posts again
// what a newer version, whose migration its ledger has been through, posted.
func TestLedgerOfANewerVersion(t *testing.T) {
	r := newRig(t, erp.Options{AllowDuplicates: true}, unprotected(0))
	posted := r.place(firm(3)...)
	r.ok(posted)
	if _, err := r.pool.Exec(t.Context(), `insert into tallywire.rest_version (version_id, is_applied) values (9000, true);
		alter table tallywire.delivered add column newer text; alter table tallywire.intents add column newer text not null default ''`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	r.restart("older")
	r.ok(posted)
	r.ok(r.place(entry(4, 1, 1)))
	r.once(4)
}

// TestKilledBeforeTheRequestWasSent: an intent that came to nothing does not
// keep its record from being posted.
func TestKilledBeforeTheRequestWasSent(t *testing.T) {
	r := newRig(t, erp.Options{AllowDuplicates: true}, unprotected(50*time.Millisecond))
	r.ok(r.place(firm(0)...))
	e := entities[topicTime]
	it := &item{id: ident{topicTime, "1"}, e: e, want: e.want("ps.time_entry/1", nil)}
	if err := r.sink.store.begin(t.Context(), []*call{{item: it}}, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	r.restart("two")
	ps := r.place(firm(2)[:2]...)
	if _, err := r.try(ps); !isCode(err, ErrUnknown) {
		t.Fatalf("with a request that may still arrive: %v", err)
	}
	r.ok(ps)
	r.once(2)
}

// TestOlderRecordDoesNotWaitForAnIntent: after a kill the records before the
// one on its way come again; the draft that an entry was must not stop the
// flow until the intent's time has run out.
func TestOlderRecordDoesNotWaitForAnIntent(t *testing.T) {
	r := newRig(t, erp.Options{}, func(c *Config) { c.UniqueReference, c.SettleAfter = true, time.Hour })
	r.ok(r.place(firm(0)...))
	older := r.place(entry(1, 2, 2, "status", "draft"), entry(1, 2, 2, "status", "submitted"))
	approved := r.place(entry(1, 2, 2, "hours", "25"))
	e := entities[topicTime]
	v := version{topic: approved[0].at.Topic.ID, partition: approved[0].at.Partition, offset: approved[0].at.Offset}
	it := &item{id: ident{topicTime, "1"}, e: e, version: v, versioned: true, want: e.want("ps.time_entry/1", nil)}
	if err := r.sink.store.begin(t.Context(), []*call{{item: it}}, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	r.restart("two")
	if fs, err := r.try(older); err != nil || len(fs) > 0 {
		t.Fatalf("the older records: %v, %v", fs, err)
	}
	if _, err := r.try(r.place(entry(1, 2, 2, "status", "rejected"))); !isCode(err, ErrUnknown) {
		t.Fatalf("a newer record while the request may still arrive: %v", err)
	}
	r.ok(approved)
	r.once(1)
}

// TestThrottling: Retry-After is honoured, and the batch goes on where it was.
func TestThrottling(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(0)...))
	began := time.Now()
	r.erp.SetFaults(erp.Faults{Throttle: erp.Duration(900 * time.Millisecond), RetryAfter: 1})
	if fs, err := r.try(r.place(firm(12)[:12]...)); err != nil || len(fs) > 0 {
		t.Fatalf("a short throttle: %v, %v", fs, err)
	}
	// Remedy: TW-REST-THROTTLED
	if d := time.Since(began); d < time.Second {
		t.Errorf("went on after %v, asked for 1s", d)
	}
	if n := r.erp.Stats()["POST timeRegistrationEntries 429"]; n > int64(r.cfg.Concurrency) {
		t.Errorf("knocked %d times", n)
	}
	r.once(12)
	r.erp.SetFaults(erp.Faults{Throttle: erp.Duration(time.Minute), RetryAfter: 3600})
	_, err := r.try(r.place(entry(13, 1, 1)))
	if p := problem.Of(err); p == nil || p.ID != ErrThrottled.ID || p.After < 3590*time.Second {
		t.Errorf("a long throttle: %v", err)
	}
	if n := r.intents(); n != 0 {
		t.Errorf("%d intents of requests that were not taken", n)
	}
}

// TestInFlight: never more than Business Central runs at once.
func TestInFlight(t *testing.T) {
	r := newRig(t, erp.Options{Running: 5, Queued: 1}, nil)
	r.erp.SetFaults(erp.Faults{Slow: erp.Duration(time.Millisecond)})
	r.ok(r.place(firm(60)...))
	r.once(60)
	for k, n := range r.erp.Stats() {
		if strings.HasSuffix(k, " 429") {
			t.Errorf("%s: %d", k, n)
		}
	}
}

// TestOutage: connections refused for a while.
func TestOutage(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(0)...))
	r.erp.SetFaults(erp.Faults{Down: erp.Duration(3 * time.Second)})
	ps := r.place(firm(12)[:12]...)
	if _, err := r.try(ps); !isCode(err, ErrOutage) {
		t.Fatalf("down gave %v", err)
	}
	r.ok(ps) // Remedy: TW-REST-UNAVAILABLE
	r.once(12)
}

// TestFailures: a part of the requests fail before anything is done.
func TestFailures(t *testing.T) {
	for _, status := range []int{500, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			r := newRig(t, erp.Options{AllowDuplicates: true}, unprotected(200*time.Millisecond))
			r.erp.SetFaults(erp.Faults{FailPercent: 30, FailStatus: status})
			r.ok(r.place(firm(12)...))
			r.once(12)
		})
	}
}

// TestBreakerLeavesTheFarSideAlone after failures in a row.
func TestBreakerLeavesTheFarSideAlone(t *testing.T) {
	r := newRig(t, erp.Options{}, func(c *Config) { c.BreakFor = time.Hour })
	r.ok(r.place(firm(0)...))
	r.erp.SetFaults(erp.Faults{FailPercent: 100})
	before := r.writes()
	ps := r.place(firm(100)[:100]...)
	if _, err := r.try(ps); !isCode(err, ErrOutage) {
		t.Fatalf("failing gave %v", err)
	}
	if _, err := r.try(ps); !isCode(err, ErrOutage) || problem.Of(err).After != time.Hour {
		t.Fatalf("alone gave %v", err)
	}
	if n := r.writes() - before; n > int64(r.cfg.BreakAfter+r.cfg.Concurrency) {
		t.Errorf("%d requests before it was left alone", n)
	}
}

// TestTokenIsRenewed when the far side no longer takes it.
func TestTokenIsRenewed(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(0)...))
	r.erp.SetFaults(erp.Faults{RevokeTokens: true})
	if fs, err := r.try(r.place(firm(12)[:12]...)); err != nil || len(fs) > 0 {
		t.Fatalf("%v, %v", fs, err)
	}
	r.once(12)
}

// TestWrongSetupHalts: waiting would not help, and the secret is not told.
func TestWrongSetupHalts(t *testing.T) {
	for name, c := range map[string]struct {
		tune func(*Config)
		want problem.Code
	}{
		"secret":  {func(c *Config) { c.ClientSecret = secret.Of("hunter2") }, ErrCredentials},
		"company": {func(c *Config) { c.Company = "11111111-2222-3333-4444-555555555555" }, ErrProtocol},
		"pages":   {func(c *Config) { c.CustomPages = "tallywire/timesheets/v9.9" }, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, erp.Options{}, c.tune)
			_, err := r.try(r.place(firm(1)...))
			if !isCode(err, c.want) {
				t.Fatalf("got %v", err)
			}
			if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, r.sink), "hunter2") {
				t.Error("the secret is in it")
			}
			// Remedy: TW-REST-CREDENTIALS, TW-REST-PROTOCOL
			good := DefaultConfig()
			r.cfg.ClientSecret, r.cfg.Company, r.cfg.CustomPages = secret.Of("s3"), r.erp.Company(), good.CustomPages
			r.restart("two")
			r.ok(r.place(firm(1)...))
			r.once(1)
		})
	}
}

// TestControlDatabaseDownPostsNothing: without an intent on record nothing may
// be sent.
func TestControlDatabaseDownPostsNothing(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(0)...))
	before := r.writes()
	r.pool.Close()
	if _, err := r.try(r.place(firm(3)[:3]...)); !isCode(err, ErrControl) {
		t.Fatalf("got %v", err)
	}
	if n := r.writes() - before; n != 0 {
		t.Errorf("%d writes without intent", n)
	}
}

// TestRevocationWaitsForCallsInFlight: what was begun is brought to an outcome
// and recorded, and nothing more is begun.
func TestRevocationWaitsForCallsInFlight(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(0)...))
	r.erp.SetFaults(erp.Faults{LateNext: 5, Late: erp.Duration(300 * time.Millisecond)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := batch(r.place(firm(50)[:50]...))
	defer b.Release()
	ended := make(chan error)
	go func() {
		_, err := r.sink.Write(ctx, b)
		ended <- err
	}()
	r.until(func() bool { return r.intents() > 0 })
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("a cancelled Write claims to be whole")
	}
	took := len(r.times())
	var known int
	if err := r.pool.QueryRow(t.Context(), `select count(*) from tallywire.delivered where entity = 'ps.time_entry'`).Scan(&known); err != nil {
		t.Fatal(err)
	}
	if took != known || r.intents() != 0 {
		t.Errorf("the ERP took %d, %d are on record, %d open", took, known, r.intents())
	}
	if took > 2*r.cfg.Concurrency {
		t.Errorf("%d were begun", took)
	}
}

// TestOthersChangeTheSameRecord: a stale entity tag is followed.
func TestOthersChangeTheSameRecord(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(customer(1)))
	id := r.erp.Records()["customers"][0].ID
	r.byHand("PATCH", "/api/v2.0/companies("+r.erp.Company()+")/customers("+id+")", `{"email":"clerk@example.com"}`)
	r.ok(r.place(customer(1, "name", "Renamed")))
	c := r.erp.Records()["customers"]
	if len(c) != 1 || c[0].Fields["displayName"] != "Renamed" {
		t.Fatalf("customers %v", c)
	}
}

// TestRecordsMadeByHand: a customer with our number is taken over; a time entry
// with our reference and another content is not ours to touch.
func TestRecordsMadeByHand(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.byHand("POST", "/api/v2.0/companies("+r.erp.Company()+")/customers", `{"number":"C-001","displayName":"By hand"}`)
	r.ok(r.place(firm(0)...))
	if n := len(r.erp.Records()["customers"]); n != 3 {
		t.Fatalf("%d customers", n)
	}
	r.byHand("POST", erp.CustomPath+"companies("+r.erp.Company()+")/timeRegistrationEntries",
		`{"employeeNumber":"E-001","jobNumber":"P-001","date":"2026-03-02","quantity":99,"externalReference":"ps.time_entry/1"}`)
	fs := r.write(r.place(entry(1, 1, 1)))
	if len(fs) != 1 || !isCode(fs[0].Err, ErrConflict) {
		t.Fatalf("failures %v", fs)
	}
	r.once(1)
}

// settled stops the ERP, which first finishes what it still works on.
func (r *rig) settled() {
	r.t.Helper()
	if err := r.erp.Stop(); err != nil {
		r.t.Fatal(err)
	}
}

// byHand is a clerk at the ERP.
func (r *rig) byHand(method, path, body string) {
	r.t.Helper()
	hc := &http.Client{Transport: &http.Transport{}}
	defer hc.CloseIdleConnections()
	resp, err := hc.PostForm(r.erp.TokenURL(), url.Values{"grant_type": {"client_credentials"}, "client_id": {"tallywire"}, "client_secret": {"s3"}})
	if err != nil {
		r.t.Fatal(err)
	}
	var tok struct {
		AccessToken string `json:"access_token"`
	}
	err = errors.Join(json.NewDecoder(resp.Body).Decode(&tok), resp.Body.Close())
	if err != nil {
		r.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.erp.URL()+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
	req.Header.Set("If-Match", "*")
	if resp, err = hc.Do(req); err != nil {
		r.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode/100 != 2 {
		r.t.Fatalf("by hand: %s %s %v", resp.Status, b, err)
	}
}

// until waits for something that another goroutine brings about.
func (r *rig) until(ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-r.t.Context().Done():
			r.t.Fatal("it never came about")
		}
	}
}

// BenchmarkDeliver is time entries per second into the ERP over its socket,
// intents and records included.
func BenchmarkDeliver(b *testing.B) {
	r := newRig(b, erp.Options{}, nil)
	rs := append(firm(0), make([]record, 0, b.N)...)
	for i := range b.N {
		rs = append(rs, entry(i+1, i%3+1, i%3+1))
	}
	ps := r.place(rs...)
	b.ResetTimer()
	for len(ps) > 0 {
		n := min(1000, len(ps))
		in := batch(ps[:n])
		fs, err := r.sink.Write(b.Context(), in)
		in.Release()
		if err != nil || len(fs) > 0 {
			b.Fatal(fs, err)
		}
		ps = ps[n:]
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
