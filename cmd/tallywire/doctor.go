// doctor.go: everything that the configuration names, asked whether it is well.

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/pipeline"
)

// finding is one thing that was looked at.
type finding struct {
	Part    string          `json:"part"` // "kafka", "sources.psa"
	What    string          `json:"what"`
	OK      bool            `json:"ok"`
	Advice  string          `json:"advice,omitempty"` // it works, and could be better
	Problem *problem.Report `json:"problem,omitempty"`
}

var errDoctor = problem.Define("TW-DOCTOR-UNREACHABLE", problem.Retry,
	"Something that the configuration names cannot be reached, or refuses us.",
	"Look whether it runs, whether the address is right, and whether the login may connect.")

func (a *app) doctorCmd() *cobra.Command {
	var patience time.Duration
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Connect to everything that is named; say what is wrong and how to mend it",
		Long: `doctor connects to the broker, the registry, Redis, the control database, every
source and every sink that the configuration names, and checks what each needs:
rights, settings, tables, columns and their types, who fills each topic that is
read. It changes nothing. Exit code 4 when anything is not
well. What is not named is embedded by run, and not looked at.`,
		Example: "  tallywire doctor -c tallywire.yml\n  tallywire doctor --output json | jq '.[] | select(.ok | not)'",
		Args:    none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := checked(a.configFile(), false)
			if err != nil {
				return err
			}
			d := &doctor{cfg: cfg, patience: patience, filled: map[string]*change.Table{}}
			if err := d.look(cmd.Context()); err != nil {
				return err
			}
			if err := a.print(d.found, d.text); err != nil {
				return err
			}
			for _, f := range d.found {
				if !f.OK {
					return exit(exitUnwell)
				}
			}
			return nil
		},
	}
	c.Flags().DurationVar(&patience, "patience", 10*time.Second, "how long each is waited for")
	return c
}

type doctor struct {
	cfg      *config.Config
	patience time.Duration
	found    []finding

	cluster *kafka.Cluster           // nil: none is named, or it does not answer
	schemas *avro.Registry           // nil: as well
	filled  map[string]*change.Table // raw topics of sources that could tell
	untold  []string                 // sources that could not

	contracts avro.Catalogue
}

func (d *doctor) text(w io.Writer) {
	for _, f := range d.found {
		mark := "ok"
		if !f.OK {
			mark = "!!"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.Part, f.What)
		if f.Problem != nil {
			fmt.Fprintf(w, "\t\t%s: %s\n", f.Problem.Code, f.Problem.What)
			if f.Problem.Where != "" {
				fmt.Fprintf(w, "\t\twhere: %s\n", f.Problem.Where)
			}
			fmt.Fprintf(w, "\t\tremedy: %s\n", strings.ReplaceAll(f.Problem.Remedy, "\n", "\n\t\t"))
		}
		if f.Advice != "" {
			fmt.Fprintf(w, "\t\tadvice: %s\n", f.Advice)
		}
	}
}

// note keeps a finding; an error without a code becomes TW-DOCTOR-UNREACHABLE.
func (d *doctor) note(part, what string, err error) bool {
	f := finding{Part: part, What: what, OK: err == nil}
	if err != nil {
		if problem.Of(err) == nil {
			err = errDoctor.New("%w", err)
		}
		r := problem.Reports(err)[0]
		f.Problem = &r
	}
	d.found = append(d.found, f)
	return err == nil
}

func (d *doctor) look(ctx context.Context) error {
	each := func(f func(context.Context)) {
		ctx, cancel := context.WithTimeout(ctx, d.patience)
		defer cancel()
		f(ctx)
	}
	each(d.kafka)
	if d.cluster != nil {
		defer d.cluster.Close()
	}
	each(d.registry)
	each(d.redis)
	if dsn := d.cfg.Control.DSN; !dsn.IsZero() {
		each(func(ctx context.Context) { d.control(ctx, dsn.Reveal()) })
	}
	env := supervise.Bare(d.cfg)
	env.Kafka, env.Registry, env.Tables = d.cluster, d.schemas, d.tables
	p, err := supervise.Build(env, d.cfg)
	if err != nil {
		return err
	}
	d.contracts = env.Contracts
	for _, s := range p.Sources {
		each(func(ctx context.Context) { d.component(ctx, "sources."+s.Name, s.Source) })
		each(func(ctx context.Context) { d.catalog(ctx, s) })
	}
	for _, t := range p.Transforms {
		for _, stage := range t.Stages {
			if _, ok := stage.(pipeline.Doctor); ok {
				each(func(ctx context.Context) { d.component(ctx, "transforms."+t.Name, stage) })
			}
		}
	}
	for _, s := range p.Sinks {
		each(func(ctx context.Context) { d.component(ctx, "sinks."+s.Name, s.Sink) })
	}
	each(func(ctx context.Context) { d.fed(ctx, p) })
	each(func(ctx context.Context) { d.topicNames(ctx, p) })
	each(func(ctx context.Context) { d.takes(ctx, p) })
	each(func(ctx context.Context) { d.keeps(ctx, p) })
	return nil
}

func (d *doctor) kafka(ctx context.Context) {
	if len(d.cfg.Kafka.Brokers) == 0 {
		return
	}
	kc, err := kafka.New(kafka.Config{Brokers: d.cfg.Kafka.Brokers, ClientID: "tallywire-doctor"}, quiet())
	if !d.note("kafka", fmt.Sprintf("brokers %v", d.cfg.Kafka.Brokers), err) {
		return
	}
	id, err := kc.ID(ctx)
	if !d.note("kafka", "a broker answers", err) {
		kc.Close()
		return
	}
	d.cluster = kc
	d.found[len(d.found)-1].What = "cluster " + id + " answers"
	m, err := kc.Admin().BrokerMetadata(ctx)
	if !d.note("kafka", "its brokers", kafka.Wrap(err, "listing the brokers")) {
		return
	}
	d.found[len(d.found)-1].What = fmt.Sprintf("%d brokers", len(m.Brokers))
	rcs, err := kc.Admin().DescribeBrokerConfigs(ctx, m.Brokers.NodeIDs()...)
	if err != nil {
		d.found = append(d.found, finding{Part: "kafka", What: "its settings", OK: true, Advice: "they cannot be read with our rights, so they are not checked"})
		return
	}
	for _, rc := range rcs {
		d.brokerSettings(rc)
		break // brokers of one cluster are set up alike
	}
}

func (d *doctor) brokerSettings(rc kadm.ResourceConfig) {
	for _, c := range rc.Configs {
		if c.Value == nil {
			continue
		}
		n, err := strconv.ParseInt(*c.Value, 10, 64)
		if err != nil {
			continue
		}
		f := finding{Part: "kafka", What: c.Key + " = " + *c.Value, OK: true}
		switch {
		case c.Key == "add.partitions.to.txn.retry.backoff.ms" && n > 5 && len(d.cfg.Transforms) > 0:
			f.Advice = "1 spares each transform waits of that length between two transactions; sources use several transactional ids in turn, and do not wait"
		case c.Key == "transaction.max.timeout.ms" && n < 30_000:
			f.OK = false
			r := problem.Reports(kafka.ErrConfig.New("transaction.max.timeout.ms is %d, our transactions ask for 30000", n).
				WithRemedy("Set transaction.max.timeout.ms to 30000 or more on the brokers."))[0]
			f.Problem = &r
		default:
			continue
		}
		d.found = append(d.found, f)
	}
}

func (d *doctor) registry(ctx context.Context) {
	if d.cfg.Registry.URL.IsZero() {
		return
	}
	r, err := avro.NewRegistry(d.cfg.Registry.URL.Reveal())
	if !d.note("registry", "its URL", err) {
		return
	}
	d.found[len(d.found)-1].What = r.URL()
	if d.note("registry", "it answers", r.Ping(ctx)) {
		d.schemas = r
	}
}

func (d *doctor) redis(ctx context.Context) {
	if d.cfg.Redis.Addr.IsZero() || len(d.cfg.Transforms) == 0 {
		return
	}
	c, err := redis.Open(ctx, d.cfg.Redis.Addr.Reveal())
	if !d.note("redis", "it answers and evicts nothing", err) {
		return
	}
	d.found[len(d.found)-1].What = c.Options().Addr + " answers and evicts nothing"
	if err := c.Close(); err != nil {
		d.note("redis", "closing", err)
	}
}

// control connects, and asks whether we may make schemas.
func (d *doctor) control(ctx context.Context, dsn string) {
	const part = "control"
	c, err := pgx.Connect(ctx, dsn)
	if !d.note(part, "the database answers", err) {
		return
	}
	defer c.Close(context.WithoutCancel(ctx))
	var name, version string
	var create bool
	err = c.QueryRow(ctx, `select current_database(), current_setting('server_version'), has_database_privilege(current_database(), 'CREATE')`).Scan(&name, &version, &create)
	if !d.note(part, "database", err) {
		return
	}
	d.found[len(d.found)-1].What = fmt.Sprintf("database %s of Postgres %s", name, version)
	if !create {
		err = errDoctor.New("the login may not create schemas in database %s", name).WithRemedy("GRANT CREATE ON DATABASE %s TO its login.", name)
	}
	d.note(part, "the login may create its schemas", err)
}

// placed is err with line and column of the configuration, if it has a place there.
func (d *doctor) placed(part string, err error) error {
	if e := problem.Of(err); e == nil || e.Where == "" {
		return err
	}
	for _, c := range slices.Concat(d.cfg.Sources, d.cfg.Transforms, d.cfg.Sinks) {
		if c.Path() == part {
			return c.Place(err)
		}
	}
	return err
}

// component asks a source, a stage or a sink.
func (d *doctor) component(ctx context.Context, part string, c any) {
	doc, ok := c.(pipeline.Doctor)
	if !ok {
		d.found = append(d.found, finding{Part: part, What: fmt.Sprintf("%T has no check of its own", c), OK: true})
		return
	}
	for _, f := range doc.Doctor(ctx) {
		d.note(part, f.What, d.placed(part, f.Err))
		d.found[len(d.found)-1].Advice = f.Advice
	}
}
