// Doctor: whether the far side would let us in, and to what.

package rest

import (
	"context"
	"fmt"
	"net/http"
	"sort"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// nobody is the id of no record.
const nobody = "00000000-0000-0000-0000-000000000000"

// Doctor implements pipeline.Doctor. That we may write is told by changing a
// record that does not exist, which changes nothing: a login without the right
// is told so before the record is looked for.
func (s *Sink) Doctor(ctx context.Context) []pipeline.Finding {
	var fs []pipeline.Finding
	note := func(err error, format string, args ...any) bool {
		fs = append(fs, pipeline.Finding{What: fmt.Sprintf(format, args...), Err: err})
		return err == nil
	}
	failed := func(e *callError) error {
		if e == nil {
			return nil
		}
		if problem.Of(e.err) == nil {
			return ErrProtocol.New("%s: %s", s.cfg.URL, e)
		}
		return e.err
	}
	_, cerr := s.client.bearer(ctx)
	if !note(failed(cerr), "a token from %s", s.cfg.TokenURL) {
		return fs
	}
	_, cerr = s.client.do(ctx, request{method: http.MethodGet, path: "/api/v2.0/companies(" + s.cfg.Company + ")"})
	if cerr != nil && cerr.status == http.StatusNotFound {
		cerr.err = ErrProtocol.New("%s has no company %s", s.cfg.URL, s.cfg.Company).WithRemedy("Set company to the id of one that GET %s/api/v2.0/companies lists.", s.cfg.URL)
	}
	if !note(failed(cerr), "company %s", s.cfg.Company) {
		return fs
	}
	var topics []string
	for t := range entities {
		topics = append(topics, t)
	}
	sort.Slice(topics, func(i, j int) bool {
		a, b := entities[topics[i]], entities[topics[j]]
		return a.rank < b.rank || a.rank == b.rank && topics[i] < topics[j]
	})
	for _, t := range topics {
		e := entities[t]
		if _, cerr := s.client.do(ctx, request{method: http.MethodGet, path: e.page(&s.cfg) + "?$top=1"}); !note(failed(cerr), "reading %s", e.set) {
			continue
		}
		_, cerr := s.client.do(ctx, request{method: http.MethodPatch, path: e.page(&s.cfg) + "(" + nobody + ")", body: []byte("{}"), etag: "*"})
		if cerr != nil && cerr.fate == refused {
			cerr = nil // there is no such record, it says: so we might have changed it
		}
		note(failed(cerr), "writing %s", e.set)
	}
	return fs
}
