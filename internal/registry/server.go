// Server: Confluent's REST API, to the extent that Avro clients use it.

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/internal/kafka"
)

// Server is an http.Handler. Safe for concurrent use, and beside other Servers
// on the same Kafka.
type Server struct {
	store *store
	log   *schemaLog
	mux   *http.ServeMux
}

// New opens the registry of a Kafka cluster: it creates the topic _schemas if
// need be and reads it to its end. Close it.
func New(ctx context.Context, cluster *kafka.Cluster, log *slog.Logger) (*Server, error) {
	s := &Server{store: newStore(), mux: http.NewServeMux()}
	var err error
	if s.log, err = openLog(ctx, cluster, log, s.store); err != nil {
		return nil, err
	}
	if err := s.log.update(ctx, func() ([]record, error) { return nil, nil }); err != nil {
		s.log.close()
		return nil, fmt.Errorf("reading the schemas: %w", err)
	}
	s.routes()
	return s, nil
}

// Close stops following the topic.
func (s *Server) Close() { s.log.close() }

const contentType = "application/vnd.schemaregistry.v1+json"

// maxBody bounds a request, in octets.
const maxBody = 4 << 20

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	s.mux.ServeHTTP(w, r)
}

// apiError is an error in Confluent's numbering; its first three digits are the
// HTTP status.
type apiError struct {
	code    int
	message string
}

func (e *apiError) Error() string { return e.message }

func fail(code int, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

var (
	errNoSubject = func(s string) error { return fail(40401, "Subject '%s' not found.", s) }
	errNoVersion = func(n int) error { return fail(40402, "Version %d not found.", n) }
	errNoSchema  = fail(40403, "Schema not found")
)

// raw is an answer that is a schema's own text.
type raw string

type handler func(r *http.Request) (any, error)

func (s *Server) routes() {
	for pattern, h := range map[string]handler{
		"GET /{$}":                                                  func(*http.Request) (any, error) { return struct{}{}, nil },
		"GET /contexts":                                             func(*http.Request) (any, error) { return []string{"."}, nil },
		"GET /schemas/types":                                        func(*http.Request) (any, error) { return []string{"AVRO"}, nil },
		"GET /schemas":                                              s.listSchemas,
		"GET /schemas/ids/{id}":                                     s.schemaByID,
		"GET /schemas/ids/{id}/schema":                              s.schemaTextByID,
		"GET /schemas/ids/{id}/subjects":                            s.subjectsByID,
		"GET /schemas/ids/{id}/versions":                            s.versionsByID,
		"GET /subjects":                                             s.listSubjects,
		"POST /subjects/{subject}":                                  s.lookup,
		"DELETE /subjects/{subject}":                                s.deleteSubject,
		"GET /subjects/{subject}/versions":                          s.listVersions,
		"POST /subjects/{subject}/versions":                         s.register,
		"GET /subjects/{subject}/versions/{version}":                s.getVersion,
		"DELETE /subjects/{subject}/versions/{version}":             s.deleteVersion,
		"GET /subjects/{subject}/versions/{version}/schema":         s.getVersionText,
		"POST /compatibility/subjects/{subject}/versions":           s.check,
		"POST /compatibility/subjects/{subject}/versions/{version}": s.check,
		"GET /config":                                               s.getConfig,
		"PUT /config":                                               s.putConfig,
		"DELETE /config":                                            s.deleteConfig,
		"GET /config/{subject}":                                     s.getConfig,
		"PUT /config/{subject}":                                     s.putConfig,
		"DELETE /config/{subject}":                                  s.deleteConfig,
		"GET /mode":                                                 s.getMode,
		"PUT /mode":                                                 s.putMode,
		"GET /mode/{subject}":                                       s.getMode,
		"PUT /mode/{subject}":                                       s.putMode,
		"DELETE /mode/{subject}":                                    s.deleteMode,
	} {
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, h) })
		if method, path, _ := strings.Cut(pattern, " "); method != "GET" && !strings.HasSuffix(path, "/") {
			s.mux.HandleFunc(pattern+"/{$}", func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, h) })
		}
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(*http.Request) (any, error) { return nil, fail(404, "HTTP 404 Not Found") })
	})
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, h handler) {
	status := http.StatusOK
	v, err := h(r)
	if err != nil {
		var e *apiError
		if !errors.As(err, &e) {
			s.log.log.Warn("a request to the registry failed", "method", r.Method, "path", r.URL.Path, "error", err)
			e = &apiError{50003, "The registry cannot reach Kafka or was cut off: " + err.Error()}
		}
		status = e.code
		for status >= 1000 {
			status /= 10
		}
		v = map[string]any{"error_code": e.code, "message": e.message}
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	var body []byte
	if text, ok := v.(raw); ok {
		body = []byte(text)
	} else {
		body = mustJSON(v)
	}
	if _, err := w.Write(body); err != nil {
		s.log.log.Debug("the client of the registry went away", "error", err)
	}
}

// subject is the subject of the path; Confluent's default context may stand
// before it.
func subject(r *http.Request) string { return strings.TrimPrefix(r.PathValue("subject"), ":.:") }

func flag(r *http.Request, name string) bool { return r.URL.Query().Get(name) == "true" }

func pathInt(r *http.Request, name string, code int, what string) (int, error) {
	n, err := strconv.Atoi(r.PathValue(name))
	if err != nil || n < 1 || n > 1<<31-1 {
		return 0, fail(code, "The specified %s '%s' is not a valid %s.", what, r.PathValue(name), what)
	}
	return n, nil
}

type schemaRequest struct {
	Schema     string            `json:"schema"`
	SchemaType string            `json:"schemaType"`
	References []json.RawMessage `json:"references"`
	ID         int               `json:"id"`
	Version    int               `json:"version"`
}

// schemaOf reads and checks the schema of a request.
func schemaOf(r *http.Request) (string, error) {
	var q schemaRequest
	if err := body(r, &q); err != nil {
		return "", err
	}
	switch {
	case q.SchemaType != "" && q.SchemaType != "AVRO":
		return "", fail(42201, "Invalid schema type %s: this registry holds Avro.", q.SchemaType)
	case len(q.References) > 0:
		return "", fail(42201, "Invalid schema: this registry does not take references; write the types into the schema.")
	case q.ID > 0:
		return "", fail(42205, "Subject is not in import mode: the registry gives the ids.")
	case q.Schema == "":
		return "", fail(42201, "Empty schema")
	}
	text, err := compact(q.Schema)
	if err != nil {
		return "", fail(42201, "Invalid schema: %v", err)
	}
	return text, nil
}

func body(r *http.Request, into any) error {
	p, err := io.ReadAll(r.Body)
	if err != nil {
		return fail(413, "Reading the request: %v", err)
	}
	if err := json.Unmarshal(p, into); err != nil {
		return fail(422, "The request is not the JSON that is expected: %v", err)
	}
	return nil
}
