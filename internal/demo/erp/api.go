// The API: a request goes through the token, the limits, the faults, and then
// reads or writes the ledger.

package erp

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

func (s *Server) reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; odata.metadata=minimal; charset=utf-8")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.opt.Log.Debug("the client went away", "error", err)
	}
}

func (s *Server) fail(w http.ResponseWriter, e *apiError) {
	s.reply(w, e.status, map[string]any{"error": map[string]string{"code": e.Code, "message": e.Text + "  CorrelationId:  " + newGUID() + "."}})
}

func newGUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand panics instead
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// answer is what a request comes to.
type answer struct {
	status int
	body   any
	etag   string
}

// serveAPI handles everything below prefix.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request, prefix string, custom bool) {
	set, id, err := s.route(strings.TrimPrefix(r.URL.Path, prefix))
	name := "companies"
	if set != nil {
		name = set.name
	}
	count := func(status int) { s.stats.add(r.Method + " " + name + " " + strconv.Itoa(status)) }
	if !s.authorised(r) {
		count(http.StatusUnauthorized)
		w.Header().Set("WWW-Authenticate", "Bearer")
		s.fail(w, &apiError{http.StatusUnauthorized, "Authentication_InvalidCredentials", "The server has rejected the client credentials."})
		return
	}
	if err != nil {
		count(err.status)
		s.fail(w, err)
		return
	}
	if after, ok := s.window.take(time.Now()); !ok {
		count(http.StatusTooManyRequests)
		s.throttled(w, after)
		return
	}
	leave, status := s.gate.enter(r.Context(), s.opt.QueueWait)
	if status != 0 {
		count(status)
		if status == http.StatusTooManyRequests {
			s.throttled(w, 1)
			return
		}
		s.fail(w, &apiError{status, "Application_ServiceUnavailable", "The request waited too long."})
		return
	}
	defer leave()
	p := s.faults.plan(r.Method != http.MethodGet)
	s.pause(p.slow)
	switch {
	case p.retryAfter > 0:
		count(http.StatusTooManyRequests)
		s.throttled(w, p.retryAfter)
		return
	case p.status != 0:
		count(p.status)
		s.fail(w, &apiError{p.status, "Internal_ServerError", "The server was told to fail."})
		return
	}
	var body map[string]json.RawMessage
	if r.Method != http.MethodGet {
		// The body is read before anything waits: what was sent is worked
		// on, whether the client still listens or not.
		if e := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); e != nil {
			count(http.StatusBadRequest)
			s.fail(w, bad("BadRequest", "The request body is not a JSON object."))
			return
		}
		s.pause(p.late)
	}
	a, err := s.do(r, set, id, body, custom)
	if err != nil {
		count(err.status)
		s.fail(w, err)
		return
	}
	count(a.status)
	switch p.lose {
	case "hang":
		select {
		case <-r.Context().Done():
		case <-s.done:
		case <-time.After(time.Minute):
		}
		panic(http.ErrAbortHandler)
	case "close":
		panic(http.ErrAbortHandler)
	case "500":
		s.fail(w, &apiError{http.StatusInternalServerError, "Internal_ServerError", "The server was told to fail after the commit."})
		return
	}
	if a.etag != "" {
		w.Header().Set("ETag", a.etag)
	}
	s.reply(w, a.status, a.body)
}

// pause waits for d, or until the server stops.
func (s *Server) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
}

// route reads companies(id)/set(id).
func (s *Server) route(path string) (*set, string, *apiError) {
	segs := strings.Split(strings.Trim(path, "/"), "/")
	name, id := splitSegment(segs[0])
	if name != "companies" || len(segs) > 2 {
		return nil, "", &apiError{http.StatusNotFound, "BadRequest_NotFound", "Resource not found for the segment '" + segs[0] + "'."}
	}
	if (len(segs) > 1 || id != "") && !strings.EqualFold(id, s.opt.CompanyID) {
		return nil, "", &apiError{http.StatusNotFound, "Internal_CompanyNotFound", "The company does not exist."}
	}
	if len(segs) == 1 {
		return nil, id, nil
	}
	name, id = splitSegment(segs[1])
	set := sets[name]
	if set == nil {
		return nil, "", &apiError{http.StatusNotFound, "BadRequest_NotFound", "Resource not found for the segment '" + name + "'."}
	}
	return set, strings.ToLower(id), nil
}

func splitSegment(seg string) (name, id string) {
	name, id, _ = strings.Cut(seg, "(")
	return name, strings.Trim(strings.TrimSuffix(id, ")"), "'")
}

func (s *Server) do(r *http.Request, set *set, id string, body map[string]json.RawMessage, custom bool) (answer, *apiError) {
	if set == nil {
		if r.Method != http.MethodGet {
			return answer{}, &apiError{http.StatusMethodNotAllowed, "BadRequest_MethodNotAllowed", "Companies are read-only."}
		}
		company := map[string]any{"id": s.opt.CompanyID, "name": s.opt.CompanyName, "displayName": s.opt.CompanyName}
		if id != "" {
			return answer{status: 200, body: company}, nil
		}
		return answer{status: 200, body: map[string]any{"value": []any{company}}}, nil
	}
	if custom && set.name != "projects" && set.name != "timeRegistrationEntries" {
		return answer{}, &apiError{http.StatusNotFound, "BadRequest_NotFound", "Resource not found for the segment '" + set.name + "'."}
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	x := s.ledger.x
	var rec *Record
	if id != "" {
		if rec = x.byID[set.name+"/"+id]; rec == nil {
			return answer{}, &apiError{http.StatusNotFound, "BadRequest_ResourceNotFound", "The record with id " + id + " does not exist in " + set.table + "."}
		}
	}
	switch {
	case r.Method == http.MethodGet && rec != nil:
		return answer{200, set.body(rec, custom), rec.ETag()}, nil
	case r.Method == http.MethodGet:
		rs, next, err := set.list(x, r.URL.Query(), custom, s.opt.PageSize)
		if err != nil {
			return answer{}, err
		}
		vs := make([]any, len(rs))
		for i, rec := range rs {
			vs[i] = set.body(rec, custom)
		}
		out := map[string]any{"@odata.context": s.URL() + "/api/v2.0/$metadata#" + set.name, "value": vs}
		if next != 0 {
			q := r.URL.Query()
			q.Set("$skiptoken", strconv.FormatInt(next, 10))
			out["@odata.nextLink"] = (&url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path, RawQuery: q.Encode()}).String()
		}
		return answer{status: 200, body: out}, nil
	case r.Method == http.MethodPost && rec == nil:
		return s.write(set, nil, body, custom)
	case r.Method == http.MethodPatch && rec != nil:
		switch r.Header.Get("If-Match") {
		case "":
			return answer{}, bad("BadRequest_RequiredHeaderMissing", "The If-Match header is required.")
		case "*", rec.ETag():
			return s.write(set, rec, body, custom)
		}
		return answer{}, &apiError{http.StatusConflict, "Request_EntityChanged", "Another user has already changed the record."}
	}
	return answer{}, &apiError{http.StatusMethodNotAllowed, "BadRequest_MethodNotAllowed", r.Method + " is not supported here."}
}

// write validates and commits; the ledger's lock is held.
func (s *Server) write(set *set, old *Record, body map[string]json.RawMessage, custom bool) (answer, *apiError) {
	next := Record{Set: set.name, ID: newGUID(), Fields: map[string]string{}}
	status := http.StatusCreated
	if old != nil {
		next, status = old.clone(), http.StatusOK
	}
	sent := map[string]string{}
	if err := set.change(sent, body, custom); err != nil {
		return answer{}, err
	}
	for k, v := range sent {
		next.Fields[k] = v
	}
	if err := set.check(s.ledger.x, next.Fields, sent, old, s.opt.AllowDuplicates); err != nil {
		return answer{}, err
	}
	if set.name == "customers" && s.faults.rejects(next.Fields["number"]) {
		return answer{}, bad("Application_DialogException", "Customer %s is not allowed: the posting group is missing.", next.Fields["number"])
	}
	next.Version = s.ledger.x.seq + 1
	if old == nil {
		next.Seq = next.Version
	}
	next.Modified = time.Now().UTC()
	if err := s.ledger.commit(&next); err != nil {
		s.opt.Log.Error("committing", "error", err)
		return answer{}, &apiError{http.StatusInternalServerError, "Internal_ServerError", "The ledger cannot be written."}
	}
	return answer{status, set.body(&next, custom), next.ETag()}, nil
}
