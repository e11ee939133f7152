// Faults: how the server is told to misbehave.

package erp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Faults are what the server does wrong from now on; the zero Faults is none.
// They are set by Server.SetFaults or by POST /_faults with this as JSON
// (durations as "1m30s"), which answers with what is in force; GET shows it.
// They concern the API, not the token endpoint.
type Faults struct {
	// Throttle answers 429 with RetryAfter (whole seconds, at least 1) to
	// every request for this long.
	Throttle   Duration `json:"throttle,omitempty"`
	RetryAfter int      `json:"retry_after,omitempty"`

	// FailPercent of the requests get FailStatus (default 503) before
	// anything is done.
	FailPercent float64 `json:"fail_percent,omitempty"`
	FailStatus  int     `json:"fail_status,omitempty"`

	// LosePercent of the writes are committed and then not answered; or the
	// next LoseNext writes. Lose says what happens to the answer: "hang"
	// (default: nothing until the client gives up, at most a minute),
	// "close" (the connection is reset) or "500".
	LosePercent float64 `json:"lose_percent,omitempty"`
	LoseNext    int     `json:"lose_next,omitempty"`
	Lose        string  `json:"lose,omitempty"`

	// Late makes the next LateNext writes run this long after the client has
	// sent them, whether it still listens or not, and commit then.
	Late     Duration `json:"late,omitempty"`
	LateNext int      `json:"late_next,omitempty"`

	// Slow delays every answer.
	Slow Duration `json:"slow,omitempty"`

	// RejectCustomers are the numbers of customers that fail validation.
	RejectCustomers []string `json:"reject_customers,omitempty"`

	// Down closes the listener and every connection for this long.
	Down Duration `json:"down,omitempty"`

	// RevokeTokens makes every token issued so far invalid, once.
	RevokeTokens bool `json:"revoke_tokens,omitempty"`
}

// Duration is a time.Duration written as text in JSON.
type Duration time.Duration

func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// check says what is wrong with f.
func (f *Faults) check() error {
	if !slices.Contains([]string{"", "hang", "close", "500"}, f.Lose) {
		return fmt.Errorf("lose is %q: want hang, close or 500", f.Lose)
	}
	for _, p := range []float64{f.FailPercent, f.LosePercent} {
		if p < 0 || p > 100 {
			return fmt.Errorf("%v is not a percentage", p)
		}
	}
	if f.FailStatus != 0 && (f.FailStatus < 400 || f.FailStatus > 599) {
		return fmt.Errorf("fail_status is %d: want 400 to 599", f.FailStatus)
	}
	if f.Down < 0 || f.Slow < 0 || f.Late < 0 || f.Throttle < 0 {
		return fmt.Errorf("a duration is negative")
	}
	return nil
}

// faultState is the faults in force. Percentages are spread evenly, so that a
// run is the same every time.
type faultState struct {
	mu             sync.Mutex
	f              Faults
	throttledUntil time.Time
	failAcc        float64
	loseAcc        float64
}

func (s *faultState) set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.f = f
	s.failAcc, s.loseAcc = 0, 0
	s.throttledUntil = time.Now().Add(time.Duration(f.Throttle))
}

func (s *faultState) get() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.f
	f.RejectCustomers = slices.Clone(f.RejectCustomers)
	f.Throttle = Duration(max(0, time.Until(s.throttledUntil)))
	return f
}

// plan is what shall happen to one request.
type plan struct {
	retryAfter int // 429
	status     int // fail before
	lose       string
	late, slow time.Duration
}

func (s *faultState) plan(write bool) plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := plan{slow: time.Duration(s.f.Slow)}
	if time.Now().Before(s.throttledUntil) {
		p.retryAfter = max(1, s.f.RetryAfter)
		return p
	}
	if s.failAcc += s.f.FailPercent; s.failAcc >= 100 {
		s.failAcc -= 100
		p.status = s.f.FailStatus
		if p.status == 0 {
			p.status = http.StatusServiceUnavailable
		}
		return p
	}
	if !write {
		return p
	}
	if s.f.LateNext > 0 {
		s.f.LateNext--
		p.late = time.Duration(s.f.Late)
	}
	if s.loseAcc += s.f.LosePercent; s.loseAcc >= 100 {
		s.loseAcc -= 100
		p.lose = "hang"
	}
	if s.f.LoseNext > 0 {
		s.f.LoseNext--
		p.lose = "hang"
	}
	if p.lose != "" && s.f.Lose != "" {
		p.lose = s.f.Lose
	}
	return p
}

func (s *faultState) rejects(number string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.f.RejectCustomers, func(n string) bool { return strings.EqualFold(n, number) })
}

// serveFaults is the admin endpoint.
func (s *Server) serveFaults(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		var f Faults
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		d.DisallowUnknownFields()
		err := d.Decode(&f)
		if err == nil {
			err = f.check()
		}
		if err != nil {
			s.fail(w, bad("BadRequest", "%v", err))
			return
		}
		if f.Down > 0 { // answer first, then go
			defer s.SetFaults(f)
			s.reply(w, http.StatusOK, f)
			return
		}
		s.SetFaults(f)
	default:
		s.fail(w, &apiError{http.StatusMethodNotAllowed, "BadRequest_MethodNotAllowed", "GET or POST."})
		return
	}
	s.reply(w, http.StatusOK, s.faults.get())
}
