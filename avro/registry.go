// Registry: the client of any Confluent-compatible schema registry.

package avro

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/tallywire/tallywire/change"
)

// Registry registers and fetches schemas, each at most once. Safe for
// concurrent use.
type Registry struct {
	// Contracts are those of the canonical topics; nil: the pack. To be set
	// before the first use.
	Contracts Catalogue

	client *sr.Client
	url    string // without user and password

	mu  sync.Mutex
	ids map[[2]string]int32 // (subject, schema) → id
	txt map[int32]string
}

func (r *Registry) contracts() (Catalogue, error) {
	if r.Contracts != nil {
		return r.Contracts, nil
	}
	return Pack()
}

// requestTimeout bounds one request; a registry that answers later counts as
// unavailable.
const requestTimeout = 10 * time.Second

// NewRegistry makes a client of the registry at rawURL (https://user:password@host/path
// is understood; Apicurio's Confluent API lies at /apis/ccompat/v7). It does
// not connect.
func NewRegistry(rawURL string) (*Registry, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, ErrRegistryDenied.New("registry.url is not an http or https URL").
			WithRemedy("Write registry.url like http://127.0.0.1:8081.")
	}
	user := u.User
	u.User = nil
	at := strings.TrimRight(u.String(), "/")
	opts := []sr.ClientOpt{sr.URLs(at), sr.UserAgent("tallywire"), sr.HTTPClient(&http.Client{Timeout: requestTimeout})}
	if user != nil {
		password, _ := user.Password()
		opts = append(opts, sr.BasicAuth(user.Username(), password))
	}
	c, err := sr.NewClient(opts...)
	if err != nil {
		return nil, ErrRegistryDenied.New("making the client of registry %s: %w", at, err)
	}
	return &Registry{client: c, url: at, ids: map[[2]string]int32{}, txt: map[int32]string{}}, nil
}

// URL is the registry's address, without user and password.
func (r *Registry) URL() string { return r.url }

// Register gives the id of a schema under a subject, registering it if need
// be. Errors: TW-REGISTRY-INCOMPATIBLE (halt), TW-REGISTRY-UNAVAILABLE
// (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) Register(ctx context.Context, subject, schema string) (int32, error) {
	k := [2]string{subject, schema}
	r.mu.Lock()
	id, ok := r.ids[k]
	r.mu.Unlock()
	if ok {
		return id, nil
	}
	n, err := r.client.RegisterSchema(ctx, subject, sr.Schema{Schema: schema, Type: sr.TypeAvro}, -1, -1)
	if err != nil {
		return 0, r.classify(ctx, err, "registering a schema for subject "+subject)
	}
	r.mu.Lock()
	r.ids[k] = int32(n)
	r.mu.Unlock()
	return int32(n), nil
}

// SchemaByID gives the text of a schema. Errors: TW-AVRO-UNKNOWN-SCHEMA
// (reject), TW-REGISTRY-UNAVAILABLE (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) SchemaByID(ctx context.Context, id int32) (string, error) {
	r.mu.Lock()
	text, ok := r.txt[id]
	r.mu.Unlock()
	if ok {
		return text, nil
	}
	s, err := r.client.SchemaByID(ctx, int(id))
	if err != nil {
		if missing(err) {
			return "", ErrUnknownSchema.New("registry %s has no schema with id %d", r.url, id)
		}
		return "", r.classify(ctx, err, "fetching a schema by id")
	}
	if s.Type != sr.TypeAvro {
		return "", ErrUnreadableSchema.New("schema %d is of type %s, not Avro", id, s.Type)
	}
	r.mu.Lock()
	r.txt[id] = s.Schema
	r.mu.Unlock()
	return s.Schema, nil
}

// Table is what the records of a topic look like by the schemas that its
// subjects were given last; nil when they have none. Errors: TW-AVRO-SCHEMA
// (reject), TW-REGISTRY-UNAVAILABLE (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) Table(ctx context.Context, topic string) (*change.Table, error) {
	value, err := r.latest(ctx, topic+"-value")
	if value == nil || err != nil {
		return nil, err
	}
	key, err := r.latest(ctx, topic+"-key")
	if err != nil {
		return nil, err
	}
	all, err := r.contracts()
	if err != nil {
		return nil, err
	}
	p, err := compileProgram(value, key, topic, all)
	if err != nil {
		return nil, ErrUnreadableSchema.New("the last schema of topic %s: %w", topic, err)
	}
	return p.table, nil
}

// latest gives a subject's last schema, nil when it has none.
func (r *Registry) latest(ctx context.Context, subject string) (*node, error) {
	s, err := r.client.SchemaByVersion(ctx, subject, -1)
	if err != nil {
		if missing(err) {
			return nil, nil
		}
		return nil, r.classify(ctx, err, "fetching the last schema of subject "+subject)
	}
	n, err := parseSchema(s.Schema.Schema)
	if err != nil {
		return nil, ErrUnreadableSchema.New("the last schema of subject %s: %w", subject, err)
	}
	return n, nil
}

// Subjects lists those that begin so, in order. Errors: TW-REGISTRY-UNAVAILABLE
// (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) Subjects(ctx context.Context, prefix string) ([]string, error) {
	all, err := r.client.Subjects(ctx)
	if err != nil {
		return nil, r.classify(ctx, err, "listing the subjects")
	}
	all = slices.DeleteFunc(all, func(s string) bool { return !strings.HasPrefix(s, prefix) })
	slices.Sort(all)
	return all, nil
}

// Forget takes a subject out of the registry, which still knows its schemas by their
// ids: records that were kept elsewhere can be read. One that is gone is no error.
// Errors: TW-REGISTRY-UNAVAILABLE (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) Forget(ctx context.Context, subject string) error {
	_, err := r.client.DeleteSubject(ctx, subject, sr.SoftDelete)
	if err == nil || missing(err) {
		r.mu.Lock()
		maps.DeleteFunc(r.ids, func(k [2]string, _ int32) bool { return k[0] == subject })
		r.mu.Unlock()
		return nil
	}
	return r.classify(ctx, err, "deleting subject "+subject)
}

// Ping asks whether the registry answers.
func (r *Registry) Ping(ctx context.Context) error {
	if _, err := r.client.SupportedTypes(ctx); err != nil {
		return r.classify(ctx, err, "asking for the schema types")
	}
	return nil
}

func (r *Registry) classify(ctx context.Context, err error, doing string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var re *sr.ResponseError
	if errors.As(err, &re) {
		switch {
		case re.StatusCode == http.StatusConflict || re.ErrorCode == 42201 || re.ErrorCode == 409:
			return ErrIncompatible.New("%s: %w", doing, err)
		case re.StatusCode == http.StatusUnauthorized || re.StatusCode == http.StatusForbidden:
			return ErrRegistryDenied.New("%s: registry %s answers %d", doing, r.url, re.StatusCode)
		case re.StatusCode >= 400 && re.StatusCode < 500 && re.StatusCode != http.StatusTooManyRequests && re.StatusCode != http.StatusRequestTimeout && re.StatusCode != http.StatusNotFound:
			return ErrIncompatible.New("%s: %w", doing, err).WithRemedy("The registry takes the request for wrong; see its message.")
		}
	}
	return ErrRegistryUnavailable.New("%s: %w", doing, err)
}
