// Registration under the kind "warehouse".

package warehouse

import (
	"fmt"
	"time"

	"github.com/tallywire/tallywire/pipeline"
)

// Kind is the `type:` of a warehouse sink in the configuration.
const Kind = "warehouse"

func init() { pipeline.Sinks.Register(Kind, Make) }

// Make builds the sink from its part of the configuration.
func Make(env *pipeline.Env, name string, decode pipeline.Decode) (pipeline.DeliverSpec, error) {
	var c Config
	if err := decode(&c); err != nil {
		return pipeline.DeliverSpec{}, err
	}
	if c.DSN.IsZero() {
		return pipeline.DeliverSpec{}, ErrDSN.New("sink %q has no dsn", name)
	}
	s, err := New(c, Options{Name: name, Contracts: env.Contracts, Log: env.Obs.Component("sink", name).Log})
	if err != nil {
		return pipeline.DeliverSpec{}, fmt.Errorf("making sink %q: %w", name, err)
	}
	// Large writes when there is much: of each key only the last version is
	// written, and a drain of 200,000 changes took a fifth fewer updates and a
	// third fewer transactions than with the default of 5,000 records.
	limits := pipeline.DeliverLimits{MaxRecords: 20_000, MaxBytes: 16 << 20, Gather: 300 * time.Millisecond}
	return pipeline.DeliverSpec{Name: name, Topics: s.Topics(), Sink: s, DeliverLimits: limits}, nil
}
