// Registration: a source, a transform or a sink enters the engine by its kind,
// the `type:` of its configuration.

package pipeline

import (
	"fmt"
	"maps"
	"slices"
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

// Kinds are the makers of one sort of component by their kind. The zero value
// is empty. Safe for concurrent use.
type Kinds[M any] struct {
	mu sync.Mutex
	m  map[string]M
}

// Register enters a maker; an init function calls it. A kind that is taken
// panics.
func (k *Kinds[M]) Register(kind string, m M) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, dup := k.m[kind]; dup {
		panic(fmt.Sprintf("BUG: the kind %q is registered twice", kind))
	}
	if k.m == nil {
		k.m = map[string]M{}
	}
	k.m[kind] = m
}

// Find looks a kind up.
func (k *Kinds[M]) Find(kind string) (M, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.m[kind]
	return m, ok
}

// List gives the kinds, sorted.
func (k *Kinds[M]) List() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.m))
}

// Sources, Transforms and Sinks are what this program is made with: a package
// enters itself from its init function, and cmd/tallywire imports it.
var (
	Sources    Kinds[SourceMaker]
	Transforms Kinds[TransformMaker]
	Sinks      Kinds[SinkMaker]
)
