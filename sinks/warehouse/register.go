// Registration under the kind "warehouse".

package warehouse

import (
	"fmt"

	"github.com/tallywire/tallywire/pipeline"
)

// Kind is the `type:` of a warehouse sink in the configuration.
const Kind = "warehouse"

func init() { pipeline.RegisterSink(Kind, Make) }

// Make builds the sink from its part of the configuration.
func Make(env *pipeline.Env, name string, decode pipeline.Decode) (pipeline.DeliverSpec, error) {
	var c Config
	if err := decode(&c); err != nil {
		return pipeline.DeliverSpec{}, err
	}
	if c.DSN.IsZero() {
		return pipeline.DeliverSpec{}, ErrDSN.New("sink %q has no dsn", name)
	}
	s, err := New(c, Options{Name: name, Log: env.Obs.Component("sink", name).Log})
	if err != nil {
		return pipeline.DeliverSpec{}, fmt.Errorf("making sink %q: %w", name, err)
	}
	return pipeline.DeliverSpec{Name: name, Topics: s.Topics(), Sink: s}, nil
}
