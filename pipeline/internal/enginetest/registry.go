package enginetest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// registryServer speaks as much of Confluent's REST API as an encoder needs.
type registryServer struct {
	*httptest.Server
	mu      sync.Mutex
	ids     map[string]int
	last    map[string]string // of a subject
	down    bool
	Refused chan struct{} // one element for each request while down, if there is room
}

func newRegistryServer(t testing.TB) *registryServer {
	r := &registryServer{ids: map[string]int{}, last: map[string]string{}, Refused: make(chan struct{}, 1)}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registryServer) SetDown(down bool) {
	r.mu.Lock()
	r.down = down
	r.mu.Unlock()
}

func (r *registryServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Content-Type", "application/vnd.schemaregistry.v1+json")
	reply := func(code int, v any) {
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			panic(err)
		}
	}
	if r.down {
		select {
		case r.Refused <- struct{}{}:
		default:
		}
		reply(http.StatusServiceUnavailable, map[string]any{"error_code": 50003, "message": "down"})
		return
	}
	byID := func(id int) string {
		for text, n := range r.ids {
			if n == id {
				return text
			}
		}
		return ""
	}
	switch {
	case q.Method == http.MethodPost && strings.HasPrefix(q.URL.Path, "/subjects/"):
		body, err := io.ReadAll(q.Body)
		var in struct{ Schema string }
		if err != nil || json.Unmarshal(body, &in) != nil {
			reply(http.StatusBadRequest, map[string]any{"error_code": 400})
			return
		}
		if r.ids[in.Schema] == 0 {
			r.ids[in.Schema] = len(r.ids) + 1
		}
		subject := strings.Split(q.URL.Path, "/")[2]
		r.last[subject] = in.Schema
		reply(http.StatusOK, map[string]any{"id": r.ids[in.Schema], "version": 1, "subject": subject, "schema": in.Schema})
	case strings.HasSuffix(q.URL.Path, "/versions/latest") && r.last[strings.Split(q.URL.Path, "/")[2]] != "":
		subject := strings.Split(q.URL.Path, "/")[2]
		text := r.last[subject]
		reply(http.StatusOK, map[string]any{"id": r.ids[text], "version": 1, "subject": subject, "schema": text})
	case strings.HasPrefix(q.URL.Path, "/schemas/ids/"):
		id, _ := strconv.Atoi(strings.Split(q.URL.Path, "/")[3])
		reply(http.StatusOK, map[string]any{"schema": byID(id), "subject": "s", "version": 1, "id": id})
	default:
		reply(http.StatusNotFound, map[string]any{"error_code": 404, "message": q.URL.Path})
	}
}
