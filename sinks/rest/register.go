// Registration of the kind "rest".

package rest

import (
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/pipeline"
)

func init() {
	pipeline.Sinks.Register("rest", func(env *pipeline.Env, name string, decode pipeline.Decode) (pipeline.DeliverSpec, error) {
		cfg := DefaultConfig()
		if err := decode(&cfg); err != nil {
			return pipeline.DeliverSpec{}, err
		}
		if env.Control == nil {
			return pipeline.DeliverSpec{}, control.ErrMissing.New("sink %q keeps its intents and cross-references in the control database, and there is none", name)
		}
		s, err := New(cfg, env.Control, name, env.Instance)
		if err != nil {
			return pipeline.DeliverSpec{}, err
		}
		// A Write holds many requests: short ones keep the offsets near
		// what was delivered.
		return pipeline.DeliverSpec{Name: name, Topics: Topics(), Sink: s, DeliverLimits: pipeline.DeliverLimits{MaxRecords: 1000}}, nil
	})
}
