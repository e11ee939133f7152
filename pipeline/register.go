// Registration: a source, a transform or a sink enters the engine by its kind,
// the `type:` of its configuration.

package pipeline

import (
	"fmt"
	"sort"
	"sync"
)

// Decode fills into from the component's part of the configuration. Unknown
// keys, wrong types and missing secrets are errors that name line and column.
type Decode func(into any) error

// A Maker builds a component of its kind from its configuration. It connects
// to nothing: that is Run's work, where a Retry error is tried again.
type (
	SourceMaker    func(env *Env, name string, decode Decode) (IngestSpec, error)
	TransformMaker func(env *Env, name string, decode Decode) ([]TransformSpec, error)
	SinkMaker      func(env *Env, name string, decode Decode) (DeliverSpec, error)
)

type makers[M any] struct {
	what string
	mu   sync.Mutex
	m    map[string]M
}

func (r *makers[M]) register(kind string, m M) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, dup := r.m[kind]; dup {
		panic(fmt.Sprintf("BUG: %s %q registered twice", r.what, kind))
	}
	if r.m == nil {
		r.m = map[string]M{}
	}
	r.m[kind] = m
}

func (r *makers[M]) find(kind string) (M, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.m[kind]
	return m, ok
}

func (r *makers[M]) kinds() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, 0, len(r.m))
	for k := range r.m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

var (
	sources    = makers[SourceMaker]{what: "source"}
	transforms = makers[TransformMaker]{what: "transform"}
	sinks      = makers[SinkMaker]{what: "sink"}
)

// RegisterSource, RegisterTransform and RegisterSink are called from init
// functions; registering a kind twice panics.
func RegisterSource(kind string, m SourceMaker) { sources.register(kind, m) }

func RegisterTransform(kind string, m TransformMaker) { transforms.register(kind, m) }

func RegisterSink(kind string, m SinkMaker) { sinks.register(kind, m) }

// SourceKind, TransformKind and SinkKind look a kind up.
func SourceKind(kind string) (SourceMaker, bool) { return sources.find(kind) }

func TransformKind(kind string) (TransformMaker, bool) { return transforms.find(kind) }

func SinkKind(kind string) (SinkMaker, bool) { return sinks.find(kind) }

// SourceKinds, TransformKinds and SinkKinds list what is registered, sorted.
func SourceKinds() []string { return sources.kinds() }

func TransformKinds() []string { return transforms.kinds() }

func SinkKinds() []string { return sinks.kinds() }
