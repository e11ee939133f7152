// client: one HTTP request and what it came to. Whether the far side may have
// done something is told apart here, and nowhere else.

package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/time/rate"
)

// fate is what a request that brought no result came to.
type fate uint8

const (
	// notSent: the far side did nothing with it, and another try may help.
	notSent fate = iota + 1
	// unknown: it may have been done, or be done later.
	unknown
	// refused: the far side said no, and did nothing.
	refused
	// broken: as notSent, but no try will help before a person does.
	broken
)

// callError is a request that brought no result.
type callError struct {
	fate   fate
	status int           // 0: no answer
	code   string        // the far side's own
	text   string        // the far side's own
	after  time.Duration // not before this long
	err    error         // a *problem.Error for notSent and broken, else any
}

func (e *callError) Error() string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.code != "":
		return fmt.Sprintf("%d %s: %s", e.status, e.code, e.text)
	}
	return fmt.Sprintf("status %d", e.status)
}

// object is a JSON object of the far side.
type object map[string]json.RawMessage

// text reads a property as text: strings as they are, numbers as written,
// nothing for null or an absent one.
func (o object) text(name string) string {
	raw := o[name]
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	if raw[0] == '"' {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return ""
		}
		return s
	}
	return string(raw)
}

type client struct {
	cfg     *Config
	http    *http.Client
	limiter *rate.Limiter
	breaker *gobreaker.CircuitBreaker[object]
	paused  atomic.Int64 // unix nanoseconds until when the far side wants silence

	oauth clientcredentials.Config
	mu    sync.Mutex
	token *oauth2.Token
}

func newClient(cfg *Config) *client {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxIdleConnsPerHost = cfg.Concurrency
	c := &client{
		cfg: cfg,
		http: &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
		limiter: rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst),
		oauth: clientcredentials.Config{
			ClientID: cfg.ClientID, ClientSecret: cfg.ClientSecret.Reveal(), TokenURL: cfg.TokenURL,
			AuthStyle: oauth2.AuthStyleInParams,
		},
	}
	if cfg.Scope != "" {
		c.oauth.Scopes = []string{cfg.Scope}
	}
	c.breaker = gobreaker.NewCircuitBreaker[object](gobreaker.Settings{
		Timeout:     cfg.BreakFor,
		ReadyToTrip: func(n gobreaker.Counts) bool { return int(n.ConsecutiveFailures) >= cfg.BreakAfter },
		IsSuccessful: func(err error) bool { // an answer that says no is an answer
			var e *callError
			return err == nil || errors.As(err, &e) && (e.fate == refused || e.fate == broken || e.status == http.StatusTooManyRequests)
		},
	})
	return c
}

func (c *client) close() { c.http.CloseIdleConnections() }

// bearer gives a token, fetching one when there is none that is still good.
func (c *client) bearer(ctx context.Context) (*oauth2.Token, *callError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token.Valid() {
		return c.token, nil
	}
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, oauth2.HTTPClient, c.http), c.cfg.Timeout)
	defer cancel()
	t, err := c.oauth.Token(ctx)
	if err == nil {
		c.token = t
		return t, nil
	}
	var re *oauth2.RetrieveError
	if errors.As(err, &re) && re.Response.StatusCode < 500 && re.Response.StatusCode != http.StatusTooManyRequests {
		// Only the code: the body is not ours to quote.
		return nil, &callError{fate: broken, err: ErrCredentials.New("fetching a token from %s: status %d %s", c.cfg.TokenURL, re.Response.StatusCode, re.ErrorCode)}
	}
	if re != nil {
		err = fmt.Errorf("status %d", re.Response.StatusCode)
	}
	return nil, &callError{fate: notSent, err: ErrOutage.New("fetching a token from %s: %w", c.cfg.TokenURL, err)}
}

// forget drops a token that was refused, unless another took its place.
func (c *client) forget(t *oauth2.Token) {
	c.mu.Lock()
	if c.token == t {
		c.token = nil
	}
	c.mu.Unlock()
}

// request is one call. Path is below the base URL.
type request struct {
	method, path string
	body         []byte
	etag         string    // If-Match
	sendBy       time.Time // not sent later; zero: any time
}

// do sends r when limits allow. Throttling is waited out, and a token that has
// ended is renewed: both answers mean that nothing was done. A request that is
// on its way is not cut off by the end of ctx, only by its own timeout: what
// was begun is brought to an outcome (revocation waits for calls in flight).
func (c *client) do(ctx context.Context, r request) (object, *callError) {
	renewed := false
	for throttled := 0; ; {
		if err := c.wait(ctx, r.sendBy); err != nil {
			return nil, err
		}
		tok, cerr := c.bearer(ctx)
		if cerr != nil {
			return nil, cerr
		}
		o, err := c.breaker.Execute(func() (object, error) {
			o, cerr := c.send(ctx, r, tok)
			if cerr != nil {
				return nil, cerr
			}
			return o, nil
		})
		if err == nil {
			return o, nil
		}
		if !errors.As(err, &cerr) { // open, or half open and one is on trial
			return nil, &callError{fate: notSent, after: c.cfg.BreakFor, err: ErrOutage.New("%s was left alone for %v after %d failures in a row", c.cfg.URL, c.cfg.BreakFor, c.cfg.BreakAfter)}
		}
		switch {
		case cerr.status == http.StatusUnauthorized && !renewed:
			renewed = true
			c.forget(tok)
		case cerr.status == http.StatusTooManyRequests && cerr.after <= c.cfg.MaxThrottle && throttled < 20:
			throttled++
		default:
			return nil, cerr
		}
	}
}

// wait blocks until a request may go out.
func (c *client) wait(ctx context.Context, sendBy time.Time) *callError {
	if !sendBy.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, sendBy)
		defer cancel()
	}
	for {
		d := time.Until(time.Unix(0, c.paused.Load()))
		if d <= 0 {
			break
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return &callError{fate: notSent, after: d, err: ErrThrottled.New("%s wants silence for %v", c.cfg.URL, d.Round(time.Millisecond))}
		}
	}
	if err := c.limiter.Wait(ctx); err != nil {
		return &callError{fate: notSent, err: ErrThrottled.New("waiting for the rate limit of %v a second: %w", c.cfg.Rate, err)}
	}
	return nil
}

const maxAnswer = 32 << 20

// send sends once and says what came of it.
func (c *client) send(ctx context.Context, r request, tok *oauth2.Token) (object, *callError) {
	var wrote atomic.Bool
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.Timeout)
	defer cancel()
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaders: func() { wrote.Store(true) },
	})
	req, err := http.NewRequestWithContext(traced, r.method, strings.TrimSuffix(c.cfg.URL, "/")+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, &callError{fate: broken, err: ErrProtocol.New("building a request: %w", err)}
	}
	// No Idempotency-Key header: with one, net/http would repeat a POST by
	// itself when a connection breaks.
	req.Header.Set("Authorization", "Bearer "+tok.AccessToken)
	req.Header.Set("Accept", "application/json")
	if r.method != http.MethodGet {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.etag != "" {
		req.Header.Set("If-Match", r.etag)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if wrote.Load() {
			return nil, &callError{fate: unknown, err: err}
		}
		return nil, &callError{fate: notSent, err: ErrOutage.New("calling %s: %w", c.cfg.URL, err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, &callError{fate: unknown, status: resp.StatusCode, err: fmt.Errorf("reading the answer: %w", err)}
	}
	if resp.StatusCode/100 == 2 {
		var o object
		if len(body) == 0 {
			return object{}, nil
		}
		if err := json.Unmarshal(body, &o); err != nil {
			return nil, &callError{fate: unknown, status: resp.StatusCode, err: fmt.Errorf("reading the answer as JSON: %w", err)}
		}
		return o, nil
	}
	return nil, c.judge(r, resp, body)
}

// judge reads an answer that is not a success.
func (c *client) judge(r request, resp *http.Response, body []byte) *callError {
	var e struct {
		Error struct{ Code, Message string }
	}
	if json.Unmarshal(body, &e) != nil {
		e.Error.Message = http.StatusText(resp.StatusCode)
	}
	out := &callError{status: resp.StatusCode, code: e.Error.Code, text: shorten(e.Error.Message)}
	where := func() string { return fmt.Sprintf("%s %s answered %s", r.method, r.path, out.Error()) }
	switch s := resp.StatusCode; {
	case s == http.StatusTooManyRequests:
		out.fate, out.after = notSent, retryAfter(resp.Header)
		for until := time.Now().Add(out.after).UnixNano(); ; {
			was := c.paused.Load()
			if was >= until || c.paused.CompareAndSwap(was, until) {
				break
			}
		}
		out.err = ErrThrottled.New("%s", where())
	case s == http.StatusUnauthorized:
		out.fate, out.err = broken, ErrCredentials.New("%s, with a fresh token", where())
	case s == http.StatusForbidden:
		out.fate, out.err = broken, ErrCredentials.New("%s", where())
	case s >= 300 && s < 400, s == http.StatusMethodNotAllowed, s == http.StatusNotAcceptable, s == http.StatusUnsupportedMediaType,
		s == http.StatusNotFound && r.method != http.MethodPatch && !strings.HasSuffix(r.path, ")"):
		out.fate, out.err = broken, ErrProtocol.New("%s", where())
	case s == http.StatusRequestTimeout, s >= 500, (s == http.StatusConflict || s == http.StatusLocked) && r.method == http.MethodPost:
		out.fate, out.after = unknown, retryAfterIfAny(resp.Header)
	default:
		out.fate = refused
	}
	return out
}

// retryAfter reads the header, in seconds or as a date (RFC 9110 section
// 10.2.3); a second when there is none.
func retryAfter(h http.Header) time.Duration {
	if d := retryAfterIfAny(h); d > 0 {
		return d
	}
	return time.Second
}

func retryAfterIfAny(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 500 {
		return string(r[:500]) + "…"
	}
	return s
}
