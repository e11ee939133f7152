// Package obs gives every component the same metrics under the same names, its
// logger, and its state for /readyz, `status` and the page.
package obs

import (
	"log/slog"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// State is what a component is doing.
type State string

const (
	Starting  State = "starting"
	Restoring State = "restoring" // rebuilding state, loading a snapshot
	Running   State = "running"
	Retrying  State = "retrying"
	Halted    State = "halted" // going on would lose data, or cannot succeed without a person
	Failed    State = "failed" // ended by a bug of its own, a panic
	Stopped   State = "stopped"
)

// Obs is one process's observability.
type Obs struct {
	Registry *prometheus.Registry
	Log      *slog.Logger

	mu         sync.Mutex
	components map[string]*Component

	records, bytes, failures                      *prometheus.CounterVec
	latency, txn                                  *prometheus.HistogramVec
	lag, stable, parked, waiting, state, progress *prometheus.GaugeVec
	ladder, notices                               *prometheus.GaugeVec
}

// New makes an Obs that logs to log.
func New(log *slog.Logger) *Obs {
	o := &Obs{Registry: prometheus.NewRegistry(), Log: log, components: map[string]*Component{}}
	comp := []string{"kind", "name"}
	with := func(more ...string) []string { return append(append([]string(nil), comp...), more...) }
	o.records = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tallywire_records_total", Help: "Records that went through, by direction in or out and topic (a sink's out: by target)."}, with("direction", "topic"))
	o.bytes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tallywire_bytes_total", Help: "Octets of keys and values, by direction and topic."}, with("direction", "topic"))
	o.failures = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tallywire_failures_total", Help: "Failures by decision (retry, reject, halt) and code."}, with("decision", "code"))
	o.latency = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tallywire_latency_seconds", Help: "From the commit at the source to here, by topic; of a sink: until durable.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 18)}, with("topic"))
	o.txn = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tallywire_transaction_seconds", Help: "Duration of Kafka or warehouse transactions, begin to end.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 18)}, comp)
	o.lag = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_lag_records", Help: "Records between the committed offset and the end of the partition."}, with("topic", "partition"))
	o.stable = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_last_stable_age_seconds", Help: "For how long an open transaction has kept readers from the end of an input partition; 0 when none does."}, with("topic", "partition"))
	o.parked = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_parked_records", Help: "Records parked now."}, comp)
	o.waiting = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_waiting_records", Help: "Records that wait for a reference now."}, comp)
	o.state = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_component_state", Help: "1 for the state that the component is in."}, with("state"))
	o.progress = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_progress_ratio", Help: "How far a load or a rebuild is, 0 to 1."}, comp)
	o.ladder = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_source_position_bytes", Help: "How far a source's log is, as octets of log: its head, and what of it is sent, received, in Kafka, acknowledged."}, with("rung"))
	o.notices = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tallywire_notices", Help: "What a component has to say while it runs, by code: of how many tables, or the like."}, with("code"))
	o.Registry.MustRegister(o.records, o.bytes, o.failures, o.latency, o.txn, o.lag, o.stable, o.parked, o.waiting, o.state, o.progress, o.ladder, o.notices)
	return o
}

// Component gives the one Component of that kind ("source", "transform",
// "sink", "state") and name; the same arguments give the same pointer.
func (o *Obs) Component(kind, name string) *Component {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := kind + "/" + name
	c := o.components[k]
	if c == nil {
		c = &Component{
			o: o, Kind: kind, Name: name, Log: o.Log.With("component", k),
			topics: map[string]*TopicStats{}, lags: map[string]map[int32]int64{}, state: Starting, since: time.Now(),
		}
		o.components[k] = c
	}
	return c
}

// Component is the face of one source, transform or sink. Safe for concurrent use.
type Component struct {
	o    *Obs
	Kind string
	Name string
	Log  *slog.Logger

	mu       sync.Mutex
	state    State
	reason   string
	remedy   string
	since    time.Time
	topics   map[string]*TopicStats // "in <topic>", "out <topic>"
	latency  Window                 // over all topics
	lags     map[string]map[int32]int64
	parked   int64
	waiting  int64
	progress string
	ladder   []Rung
	notices  map[string][]Notice // by part
}

// Notice is what a component says of a part of its work while it does the rest.
type Notice struct {
	Code     string    `json:"code"`     // of a problem
	Subjects []string  `json:"subjects"` // what it is about, such as tables
	Text     string    `json:"text"`
	Remedy   string    `json:"remedy"`
	Since    time.Time `json:"since"`
}

// Rung is one step of the way that a change takes from the head of a source's
// log to its acknowledgement. At is the position there, in octets of the log.
type Rung struct {
	Name string `json:"name"`
	At   uint64 `json:"at"`
}

// TopicStats is what went over one arrow.
type TopicStats struct {
	Direction string // "in" or "out"
	Topic     string
	Records   int64
	Bytes     int64
	Latency   Window
}

func (c *Component) topic(dir, topic string) *TopicStats {
	k := dir + " " + topic
	t := c.topics[k]
	if t == nil {
		t = &TopicStats{Direction: dir, Topic: topic}
		c.topics[k] = t
	}
	return t
}

// In counts records read from a topic, Out records written to one (or to a target).
func (c *Component) In(topic string, records, bytes int)  { c.count("in", topic, records, bytes) }
func (c *Component) Out(topic string, records, bytes int) { c.count("out", topic, records, bytes) }

func (c *Component) count(dir, topic string, n, bytes int) {
	c.o.records.WithLabelValues(c.Kind, c.Name, dir, topic).Add(float64(n))
	c.o.bytes.WithLabelValues(c.Kind, c.Name, dir, topic).Add(float64(bytes))
	c.mu.Lock()
	t := c.topic(dir, topic)
	t.Records += int64(n)
	t.Bytes += int64(bytes)
	c.mu.Unlock()
}

// Latency notes the time from the commit at the source until now (a source:
// durable in Kafka; a stage: its output committed; a sink: durable there), for
// a sample of the records, say one per batch and topic.
func (c *Component) Latency(topic string, d time.Duration) {
	if d < 0 {
		d = 0
	}
	c.o.latency.WithLabelValues(c.Kind, c.Name, topic).Observe(d.Seconds())
	c.mu.Lock()
	c.topic("out", topic).Latency.Add(d)
	c.latency.Add(d)
	c.mu.Unlock()
}

// Txn notes the duration of a transaction.
func (c *Component) Txn(d time.Duration) {
	c.o.txn.WithLabelValues(c.Kind, c.Name).Observe(d.Seconds())
}

// Lag sets how many records a partition of an input is behind.
func (c *Component) Lag(topic string, partition int32, records int64) {
	c.o.lag.WithLabelValues(c.Kind, c.Name, topic, itoa(partition)).Set(float64(records))
	c.mu.Lock()
	m := c.lags[topic]
	if m == nil {
		m = map[int32]int64{}
		c.lags[topic] = m
	}
	m[partition] = records
	c.mu.Unlock()
}

// Stable sets for how long the last stable offset of a partition of an input
// has stood still below its end.
func (c *Component) Stable(topic string, partition int32, age time.Duration) {
	c.o.stable.WithLabelValues(c.Kind, c.Name, topic, itoa(partition)).Set(age.Seconds())
}

// Partitions forgets what was said of partitions: others are read from now on.
func (c *Component) Partitions() {
	of := prometheus.Labels{"kind": c.Kind, "name": c.Name}
	c.o.lag.DeletePartialMatch(of)
	c.o.stable.DeletePartialMatch(of)
	c.mu.Lock()
	clear(c.lags)
	c.mu.Unlock()
}

// Failed counts a failure by the engine's decision and the problem's code.
func (c *Component) Failed(decision, code string) {
	c.o.failures.WithLabelValues(c.Kind, c.Name, decision, code).Inc()
}

// Parked and Waiting set how many records are parked, or wait, now.
func (c *Component) Parked(n int64) {
	c.o.parked.WithLabelValues(c.Kind, c.Name).Set(float64(n))
	c.mu.Lock()
	c.parked = n
	c.mu.Unlock()
}

func (c *Component) Waiting(n int64) {
	c.o.waiting.WithLabelValues(c.Kind, c.Name).Set(float64(n))
	c.mu.Lock()
	c.waiting = n
	c.mu.Unlock()
}

// Progress tells how far a load or a rebuild is: done of total (0: unknown) of
// what, e.g. "rows of public.time_entry".
func (c *Component) Progress(what string, done, total int64) {
	text, ratio := what, 0.0
	if total > 0 {
		ratio = float64(done) / float64(total)
	}
	c.o.progress.WithLabelValues(c.Kind, c.Name).Set(ratio)
	c.mu.Lock()
	c.progress = progressText(text, done, total)
	c.mu.Unlock()
}

// Ladder sets the rungs of a source, from the head of its log downwards: each
// is at or behind the one before it.
func (c *Component) Ladder(rungs ...Rung) {
	for _, r := range rungs {
		c.o.ladder.WithLabelValues(c.Kind, c.Name, r.Name).Set(float64(r.At))
	}
	c.mu.Lock()
	c.ladder = append(c.ladder[:0], rungs...)
	c.mu.Unlock()
}

// Notices sets all that is to be said beside the state, but for what NoticesOf does.
func (c *Component) Notices(ns ...Notice) { c.NoticesOf("", ns...) }

// NoticesOf sets what a part of the component has to say beside the state.
func (c *Component) NoticesOf(part string, ns ...Notice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.notices == nil {
		c.notices = map[string][]Notice{}
	}
	c.notices[part] = slices.Clone(ns)
	c.o.notices.DeletePartialMatch(prometheus.Labels{"kind": c.Kind, "name": c.Name})
	for _, n := range c.noticed() {
		c.o.notices.WithLabelValues(c.Kind, c.Name, n.Code).Add(float64(len(n.Subjects)))
	}
}

// noticed is called with mu held.
func (c *Component) noticed() (all []Notice) {
	for _, part := range slices.Sorted(maps.Keys(c.notices)) {
		all = append(all, c.notices[part]...)
	}
	return all
}

// Is sets the state; reason is for a person and may be empty.
func (c *Component) Is(s State, reason string) { c.Ails(s, reason, "") }

// Ails is Is of what does not run, with what a person is to do about it.
func (c *Component) Ails(s State, reason, remedy string) {
	c.mu.Lock()
	changed := c.state != s
	was := c.state
	c.state, c.reason, c.remedy = s, reason, remedy
	if changed {
		c.since = time.Now()
	}
	if s == Running {
		c.progress = ""
	}
	c.mu.Unlock()
	if changed {
		c.o.state.WithLabelValues(c.Kind, c.Name, string(was)).Set(0)
		c.o.state.WithLabelValues(c.Kind, c.Name, string(s)).Set(1)
		c.Log.Info("state", "state", s, "reason", reason)
	}
}

// View is a copy of a component's numbers.
type View struct {
	Kind, Name string
	State      State
	Reason     string
	Remedy     string // of this very reason; may be empty
	Since      time.Time
	Progress   string
	Topics     []TopicView
	Lag        map[string]int64 // by topic, summed over partitions
	Parked     int64
	Waiting    int64
	Ladder     []Rung
	Notices    []Notice

	P50, P95, P99 time.Duration // over all topics, of the last minute or so
}

// TopicView is a copy of TopicStats with its quantiles.
type TopicView struct {
	Direction     string
	Topic         string
	Records       int64
	Bytes         int64
	P50, P95, P99 time.Duration // of the last minute or so
}

// Views lists all components, sources first, by kind and name.
func (o *Obs) Views() []View {
	o.mu.Lock()
	cs := make([]*Component, 0, len(o.components))
	for _, c := range o.components {
		cs = append(cs, c)
	}
	o.mu.Unlock()
	rank := map[string]int{"source": 0, "transform": 1, "sink": 2}
	sort.Slice(cs, func(i, j int) bool {
		a, b := cs[i], cs[j]
		if a.Kind != b.Kind {
			return rank[a.Kind] < rank[b.Kind]
		}
		return a.Name < b.Name
	})
	out := make([]View, len(cs))
	for i, c := range cs {
		out[i] = c.View()
	}
	return out
}

// View copies the component's numbers.
func (c *Component) View() View {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := View{
		Kind: c.Kind, Name: c.Name, State: c.state, Reason: c.reason, Remedy: c.remedy, Since: c.since, Progress: c.progress,
		Lag: map[string]int64{}, Parked: c.parked, Waiting: c.waiting, Ladder: append([]Rung(nil), c.ladder...), Notices: c.noticed(),
	}
	v.P50, v.P95, v.P99 = c.latency.Quantiles()
	for t, m := range c.lags {
		for _, n := range m {
			v.Lag[t] += n
		}
	}
	for _, t := range c.topics {
		p50, p95, p99 := t.Latency.Quantiles()
		v.Topics = append(v.Topics, TopicView{t.Direction, t.Topic, t.Records, t.Bytes, p50, p95, p99})
	}
	sort.Slice(v.Topics, func(i, j int) bool {
		if v.Topics[i].Direction != v.Topics[j].Direction {
			return v.Topics[i].Direction < v.Topics[j].Direction
		}
		return v.Topics[i].Topic < v.Topics[j].Topic
	})
	return v
}

// Down reports whether a component has ended and does not come back by itself.
func (s State) Down() bool { return s == Halted || s == Failed }

// Halted names the first component that halted or failed, with its reason; ""
// when none did.
func (o *Obs) Halted() string {
	for _, v := range o.Views() {
		if v.State.Down() {
			return v.Kind + " " + v.Name + ": " + v.Reason
		}
	}
	return ""
}

// ForgetLatencies empties the windows that the quantiles of Views are taken
// from, so that they tell of what comes from now on. Metrics are not touched.
func (o *Obs) ForgetLatencies() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.components {
		c.mu.Lock()
		c.latency.Forget()
		for _, t := range c.topics {
			t.Latency.Forget()
		}
		c.mu.Unlock()
	}
}
