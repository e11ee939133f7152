// Limits: Business Central's service protection, and its tokens.

package erp

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// window counts requests per second over the last five minutes.
type window struct {
	mu     sync.Mutex
	limit  int
	counts [300]int
	last   int64 // unix second of the newest count
	total  int
}

// take counts one request, or says after how many seconds one is allowed.
func (w *window) take(now time.Time) (retryAfter int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	sec := now.Unix()
	if sec-w.last >= int64(len(w.counts)) {
		w.counts, w.total, w.last = [300]int{}, 0, sec
	}
	for w.last < sec {
		w.last++
		i := w.last % int64(len(w.counts))
		w.total -= w.counts[i]
		w.counts[i] = 0
	}
	if w.total >= w.limit {
		for k := int64(1); k <= int64(len(w.counts)); k++ {
			if w.counts[(sec+k)%int64(len(w.counts))] > 0 {
				return int(k), false
			}
		}
		return len(w.counts), false
	}
	w.counts[sec%int64(len(w.counts))]++
	w.total++
	return 0, true
}

// gate lets some run and some wait.
type gate struct {
	running chan struct{}
	all     chan struct{} // running and waiting
}

func newGate(running, queued int) *gate {
	return &gate{make(chan struct{}, running), make(chan struct{}, running+queued)}
}

// enter waits for a place to run: status 0, or 429 or 503 when there is none.
func (g *gate) enter(ctx context.Context, wait time.Duration) (leave func(), status int) {
	select {
	case g.all <- struct{}{}:
	default:
		return nil, http.StatusTooManyRequests
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case g.running <- struct{}{}:
		return func() { <-g.running; <-g.all }, 0
	case <-t.C:
	case <-ctx.Done():
	}
	<-g.all
	return nil, http.StatusServiceUnavailable
}

// tokens issued and not expired, by digest.
type tokens struct {
	mu  sync.Mutex
	m   map[[32]byte]time.Time
	ttl time.Duration
}

const maxTokens = 10000

func (t *tokens) issue() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand panics instead
	tok := hex.EncodeToString(b[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, until := range t.m {
		if len(t.m) >= maxTokens || time.Now().After(until) {
			delete(t.m, k)
		}
	}
	t.m[sha256.Sum256([]byte(tok))] = time.Now().Add(t.ttl)
	return tok
}

func (t *tokens) valid(tok string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.m[sha256.Sum256([]byte(tok))]
	return ok && time.Now().Before(until)
}

func (t *tokens) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.m)
}

// serveToken is the OAuth2 token endpoint (RFC 6749 section 4.4), with the
// secret in the form or in a Basic header.
func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	deny := func(status int, code, text string) {
		s.reply(w, status, map[string]string{"error": code, "error_description": text})
	}
	if r.Method != http.MethodPost {
		deny(http.StatusMethodNotAllowed, "invalid_request", "POST only.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
	if err := r.ParseForm(); err != nil {
		deny(http.StatusBadRequest, "invalid_request", "The body is not a form.")
		return
	}
	if g := r.PostForm.Get("grant_type"); g != "client_credentials" {
		deny(http.StatusBadRequest, "unsupported_grant_type", "grant_type must be client_credentials.")
		return
	}
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	if subtle.ConstantTimeCompare([]byte(id), []byte(s.opt.ClientID))&subtle.ConstantTimeCompare([]byte(secret), []byte(s.opt.ClientSecret)) != 1 {
		deny(http.StatusUnauthorized, "invalid_client", "Invalid client or client secret provided.")
		return
	}
	s.reply(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": int(s.opt.TokenLife / time.Second), "access_token": s.tokens.issue()})
}

func (s *Server) authorised(r *http.Request) bool {
	tok, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && s.tokens.valid(tok)
}

// throttled answers 429.
func (s *Server) throttled(w http.ResponseWriter, retryAfter int) {
	w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	s.fail(w, &apiError{http.StatusTooManyRequests, "Application_TooManyRequests", "Too many requests reached. Try again later."})
}
