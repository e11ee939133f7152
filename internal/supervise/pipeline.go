// Package supervise runs a configuration: it connects or embeds what the
// components share, builds the components, runs each in a goroutine of its own,
// and serves the process's HTTP. One component that halts stops alone.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/pprof"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/seal"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/deliver"
	"github.com/tallywire/tallywire/pipeline/ingest"
	"github.com/tallywire/tallywire/pipeline/transform"
)

// Pipeline is the components of a configuration, built and not yet running.
type Pipeline struct {
	Sources    []pipeline.IngestSpec
	Transforms []pipeline.TransformSpec
	Sinks      []pipeline.DeliverSpec

	contracts avro.Catalogue
}

// Bare is an Env without servers: what is built with it must not be run.
func Bare(cfg *config.Config) *pipeline.Env {
	// Makers may insist that there is a control database, and run always has
	// one; this one is never used.
	return &pipeline.Env{Partitions: cfg.Partitions, Instance: cfg.Instance, Obs: obs.New(slog.New(slog.DiscardHandler)), Control: new(pgxpool.Pool)}
}

// Build makes every component by the maker of its type. It connects to
// nothing. All mistakes come joined. A nil env is for checks (Bare).
func Build(env *pipeline.Env, cfg *config.Config) (*Pipeline, error) {
	if env == nil {
		env = Bare(cfg)
	}
	p := &Pipeline{}
	var errs []error
	if env.Contracts == nil {
		var err error
		env.Contracts, err = avro.LoadCatalogue(cfg.ContractDirs()...)
		errs = append(errs, err)
	}
	if env.Codes == nil {
		var err error
		env.Codes, err = codes.Load(cfg.CodeDirs()...)
		errs = append(errs, err)
	}
	p.contracts = env.Contracts
	for _, c := range cfg.Sources {
		m, ok := pipeline.Sources.Find(c.Type)
		if !ok {
			errs = append(errs, c.UnknownType(pipeline.Sources.List()))
			continue
		}
		spec, err := m(env, c.Name, c.Decode)
		errs = append(errs, c.Place(err))
		p.Sources = append(p.Sources, spec)
	}
	for _, c := range cfg.Transforms {
		m, ok := pipeline.Transforms.Find(c.Type)
		if !ok {
			errs = append(errs, c.UnknownType(pipeline.Transforms.List()))
			continue
		}
		specs, err := m(env, c.Name, c.Decode)
		errs = append(errs, c.Place(err))
		p.Transforms = append(p.Transforms, specs...)
	}
	for _, c := range cfg.Sinks {
		m, ok := pipeline.Sinks.Find(c.Type)
		if !ok {
			errs = append(errs, c.UnknownType(pipeline.Sinks.List()))
			continue
		}
		spec, err := m(env, c.Name, c.Decode)
		errs = append(errs, c.Place(err))
		p.Sinks = append(p.Sinks, spec)
	}
	errs = append(errs, p.collisions(), p.sharedOutputs(), p.windows(cfg.Kafka))
	env.Restricted = p.restricted()
	if env.Seal == nil {
		var err error
		env.Seal, err = seal.New(cfg.Encryption.Keys, "encryption.keys")
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// restricted are the topics whose records hold restricted values.
func (p *Pipeline) restricted() map[string]bool {
	out := map[string]bool{}
	for topic, c := range p.contracts {
		if slices.ContainsFunc(c.Fields, func(f avro.Field) bool { return f.Sensitivity == avro.Restricted }) {
			out[topic] = true
		}
	}
	for _, t := range p.Transforms {
		for _, topic := range t.Restricted {
			out[topic] = true
		}
	}
	return out
}

// windows: what is kept of raw records reaches as far back as transforms look.
func (p *Pipeline) windows(k config.Kafka) error {
	var errs []error
	if k.Retention < 0 || k.DeleteRetention < 0 {
		errs = append(errs, config.ErrValue.New("kafka.retention and kafka.delete_retention are no less than 0").At("kafka"))
	}
	for _, t := range p.Transforms {
		errs = append(errs, t.Within("raw records", k.Retention))
	}
	return errors.Join(errs...)
}

// collisions: two consumer groups of one name would share offsets, and each
// would skip what the other read.
func (p *Pipeline) collisions() error {
	seen := map[string]bool{}
	var errs []error
	for _, g := range p.Groups() {
		if seen[g] {
			errs = append(errs, config.ErrValue.New("two transforms or sinks use the consumer group %q", g).
				WithRemedy("Give one of them another name."))
		}
		seen[g] = true
	}
	return errors.Join(errs...)
}

// sharedOutputs: two transforms that fill one topic with the same key overwrite
// each other's records for ever.
func (p *Pipeline) sharedOutputs() error {
	var errs []error
	for i, a := range p.Transforms {
		for _, b := range p.Transforms[i+1:] {
			for _, topic := range a.Outputs {
				if slices.Contains(b.Outputs, topic) && mayCollide(a.KeyPrefixes[topic], b.KeyPrefixes[topic]) {
					errs = append(errs, config.ErrValue.New("transforms %q and %q both fill %s: a key of one may be a key of the other, and its record would take the other's place", a.Name, b.Name, topic).
						WithRemedy("Have the keys of each say where they are from, such as \"psa-{id}\"; or fill the topic from one."))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func mayCollide(a, b []string) bool {
	for _, x := range a {
		for _, y := range b {
			if pipeline.KeysMayCollide(x, y) {
				return true
			}
		}
	}
	return len(a) == 0 || len(b) == 0
}

// Shares says of keys, by topic what they begin with, whether transforms other
// than name may give the same.
func (p *Pipeline) Shares(name string, keys map[string][]string) error {
	var errs []error
	for _, t := range p.Transforms {
		for _, topic := range t.Outputs {
			if t.Name != name && keys[topic] != nil && mayCollide(keys[topic], t.KeyPrefixes[topic]) {
				errs = append(errs, config.ErrValue.New("transform %q may give keys of %s that the former rules of %q gave: they must not be ended while it runs", t.Name, topic, name).
					WithRemedy("Where the rule moved there, leave it out of a copy of the former configuration, and switch from that: what it gave stays, and is given again."))
			}
		}
	}
	return errors.Join(errs...)
}

// Posts are the sinks that read topic, or what transforms make of it, and whose
// far side takes each new key for a new document: what is no
// pipeline.OffsetKeeper, which writes by key. In order.
func (p *Pipeline) Posts(topic string) []string {
	reach := []string{topic}
	for i := 0; i < len(reach); i++ {
		for _, t := range p.Transforms {
			if !slices.Contains(t.Inputs(), reach[i]) {
				continue
			}
			for _, out := range t.Outputs {
				if !slices.Contains(reach, out) {
					reach = append(reach, out)
				}
			}
		}
	}
	var out []string
	for _, s := range p.Sinks {
		_, keeps := s.Sink.(pipeline.OffsetKeeper)
		if !keeps && slices.ContainsFunc(s.Topics, func(topic string) bool { return slices.Contains(reach, topic) }) {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Groups lists the consumer groups, transforms' first.
func (p *Pipeline) Groups() []string {
	var out []string
	for _, t := range p.Transforms {
		out = append(out, pipeline.GroupOf(t.Name))
	}
	for _, s := range p.Sinks {
		out = append(out, pipeline.GroupOf(s.Name))
	}
	return out
}

// Unfilled are the topics with a contract that something reads and nothing of
// the configuration fills, in order.
func (p *Pipeline) Unfilled() []string {
	filled, out := map[string]bool{}, []string{}
	for _, t := range p.Transforms {
		for _, topic := range t.Outputs {
			filled[topic] = true
		}
	}
	read := func(topics []string) {
		for _, topic := range topics {
			if p.contracts[topic] != nil && !filled[topic] && !slices.Contains(out, topic) {
				out = append(out, topic)
			}
		}
	}
	for _, t := range p.Transforms {
		read(t.Inputs())
	}
	for _, s := range p.Sinks {
		read(s.Topics)
	}
	slices.Sort(out)
	return out
}

// Names are those of all components: sources, transforms, sinks.
func (p *Pipeline) Names() []string {
	var out []string
	for _, s := range p.Sources {
		out = append(out, s.Name)
	}
	for _, t := range p.Transforms {
		out = append(out, t.Name)
	}
	for _, s := range p.Sinks {
		out = append(out, s.Name)
	}
	return out
}

// Run runs all components until ctx ends or none is left, and returns when all
// have ended. The error joins what halted; nil when nothing did.
func (p *Pipeline) Run(ctx context.Context, env *pipeline.Env) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	// What halted falls behind, and shows by how much, while others run.
	var halted sync.WaitGroup
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	start := func(kind, name string, run func(context.Context) error, behind func(context.Context)) {
		// Known from the start, so that readiness waits for it.
		env.Obs.Component(kind, name).Is(obs.Starting, "")
		wg.Go(func() {
			// A CPU profile tells components apart by it: go tool pprof -tags.
			pprof.SetGoroutineLabels(pprof.WithLabels(ctx, pprof.Labels("component", kind+" "+name)))
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				mu.Lock()
				errs = append(errs, placed(kind, name, err))
				mu.Unlock()
				halted.Go(func() {
					if err := outage.Guard(func() error { behind(watching); return nil }); err != nil {
						env.Obs.Component(kind, name).Log.Error("its lag is not shown", "code", outage.ErrPanic.ID, "error", err)
					}
				})
			}
		})
	}
	for _, s := range p.Sinks { // right to left: nobody writes before its reader is there
		start("sink", s.Name, func(ctx context.Context) error { return deliver.Run(ctx, env, s) },
			func(ctx context.Context) { deliver.ShowBehind(ctx, env, s) })
	}
	for _, t := range p.Transforms {
		start("transform", t.Name, func(ctx context.Context) error { return transform.Run(ctx, env, t) },
			func(ctx context.Context) { transform.ShowBehind(ctx, env, t) })
	}
	for _, s := range p.Sources {
		start("source", s.Name, func(ctx context.Context) error { return ingest.Run(ctx, env, s) }, func(ctx context.Context) {
			if l, is := s.Source.(pipeline.Laggard); is {
				l.ShowBehind(ctx)
			}
		})
	}
	wg.Wait()
	unwatch()
	halted.Wait()
	for _, s := range p.Sinks {
		if c, ok := s.Sink.(io.Closer); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("closing sink %s: %w", s.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func placed(kind, name string, err error) error {
	if e := problem.Of(err); e != nil && e.Where == "" {
		c := *e
		c.Where = kind + " " + name
		return &c
	}
	return err
}
