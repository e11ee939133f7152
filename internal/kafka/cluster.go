// Package kafka is what the engine needs of a Kafka cluster: clients that are
// set up alike, topics that are made and checked before use, and partitioning.
// cluster.go holds the connection.
package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
)

// The headers of our records; docs/types.md has them for readers. HeaderFrom is
// of what a transform makes, the others are of raw records.
const (
	HeaderPos        = "tw.pos"         // change.AppendPos of the change: 29 octets
	HeaderUnchanged  = "tw.unchanged"   // names of columns that the source did not resend, joined by commas; absent when there is none
	HeaderUnknown    = "tw.unknown"     // the same of the row before
	HeaderText       = "tw.text"        // JSON: values that their Avro type cannot hold, as text by column
	HeaderTextBefore = "tw.text.before" // the same of the row before
	HeaderBefore     = "tw.before"      // of a sweep: rows that came before that position, and not since, are gone
	HeaderFrom       = "tw.from"        // the input's topic id and partition: 16 and 4 octets
)

// AppendFrom appends the value of HeaderFrom.
func AppendFrom(dst []byte, c change.Coord) []byte {
	return binary.BigEndian.AppendUint32(append(dst, c.Topic.ID[:]...), uint32(c.Partition))
}

// Headers are those that a decoder asks for.
func Headers(r *kgo.Record) (h avro.Headers) {
	for i := range r.Headers {
		v := r.Headers[i].Value
		switch r.Headers[i].Key {
		case HeaderPos:
			h.Pos = v
		case HeaderUnchanged:
			h.Unchanged = v
		case HeaderUnknown:
			h.Unknown = v
		case HeaderText:
			h.Text = v
		case HeaderTextBefore:
			h.TextBefore = v
		case HeaderBefore:
			h.Before = v
		}
	}
	return h
}

// Config names a cluster.
type Config struct {
	Brokers  []string // host:port of one broker at least
	ClientID string   // as brokers log it; "": tallywire
	// DeleteRetention is how long compacted topics that are made keep what says
	// that a record is deleted; 0: as long as the broker has it.
	DeleteRetention time.Duration
	// Fake: it is the embedded broker, whose compaction moves the start of a
	// partition. Kafka's does not: what is before the start was cut off.
	Fake bool
	// Opts come after our own in every client: TLS, SASL.
	Opts []kgo.Opt
}

// Cluster makes clients of one Kafka cluster. Safe for concurrent use.
type Cluster struct {
	cfg Config
	obs *obs.Obs

	shared *kgo.Client // for admin work and metadata only
	admin  *kadm.Client

	mu     sync.Mutex
	id     string
	topics map[string]*change.Topic
}

// New makes a Cluster; it does not connect yet. Close it.
func New(cfg Config, o *obs.Obs) (*Cluster, error) {
	if len(cfg.Brokers) == 0 {
		return nil, ErrConfig.New("kafka.brokers names no broker")
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "tallywire"
	}
	c := &Cluster{cfg: cfg, obs: o, topics: map[string]*change.Topic{}}
	cl, err := c.Client()
	if err != nil {
		return nil, err
	}
	c.shared, c.admin = cl, kadm.NewClient(cl)
	c.admin.SetTimeoutMillis(10_000)
	return c, nil
}

// Client makes a client with the cluster's settings and then opts; the caller
// closes it. It does not connect before its first request.
func (c *Cluster) Client(opts ...kgo.Opt) (*kgo.Client, error) {
	cl, err := kgo.NewClient(c.options(opts)...)
	if err != nil {
		return nil, ErrConfig.New("setting up a client of Kafka at %v: %w", c.cfg.Brokers, err)
	}
	return cl, nil
}

// GroupSession is Client for one that reads and writes in transactions.
func (c *Cluster) GroupSession(opts ...kgo.Opt) (*kgo.GroupTransactSession, error) {
	s, err := kgo.NewGroupTransactSession(c.options(opts)...)
	if err != nil {
		return nil, ErrConfig.New("setting up a transactional client of Kafka at %v: %w", c.cfg.Brokers, err)
	}
	return s, nil
}

func (c *Cluster) options(opts []kgo.Opt) []kgo.Opt {
	base := []kgo.Opt{
		kgo.SeedBrokers(c.cfg.Brokers...),
		kgo.ClientID(c.cfg.ClientID),
		kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.RetryTimeout(15 * time.Second),
		kgo.DialTimeout(5 * time.Second),
		// A broker that stops behind a balancer or a proxy takes connections
		// and closes them at once; kgo would take that for a wrong setting
		// and fail what is being produced.
		kgo.AlwaysRetryEOF(),
		// Of the codecs that every client reads, snappy costs the producer
		// least: 0.3 µs for a raw record of 400 octets, where lz4 takes 1.0
		// (two thirds of all that a record costs) and zstd 2.9; it is as
		// small as lz4.
		kgo.ProducerBatchCompression(kgo.SnappyCompression(), kgo.NoCompression()),
	}
	if c.obs != nil {
		base = append(base, kgo.WithLogger(clientLog{c.obs.Log}))
	}
	return append(append(base, c.cfg.Opts...), opts...)
}

// Admin is a client for administration, shared by all: do not close it.
func (c *Cluster) Admin() *kadm.Client { return c.admin }

// Shared is a plain client, shared by all, for requests like those of Scan: do
// not close it, and produce or consume nothing with it.
func (c *Cluster) Shared() *kgo.Client { return c.shared }

// Brokers are the addresses that the cluster was named by.
func (c *Cluster) Brokers() []string { return c.cfg.Brokers }

// StartMoves reports that compaction moves the start of partitions: Config.Fake.
func (c *Cluster) StartMoves() bool { return c.cfg.Fake }

// Close ends the shared connections; clients from Client live on.
func (c *Cluster) Close() { c.shared.Close() }

// ID is the cluster's own id; it stays the same while the cluster lives.
func (c *Cluster) ID(ctx context.Context) (string, error) {
	c.mu.Lock()
	id := c.id
	c.mu.Unlock()
	if id != "" {
		return id, nil
	}
	m, err := c.admin.BrokerMetadata(ctx)
	if err != nil {
		return "", Wrap(err, "asking Kafka at %v for its id", c.cfg.Brokers)
	}
	if m.Cluster == "" {
		return "", ErrUnavailable.New("Kafka at %v gives no cluster id", c.cfg.Brokers)
	}
	c.mu.Lock()
	c.id = m.Cluster
	c.mu.Unlock()
	return m.Cluster, nil
}

// Wrap classifies an error of Kafka and says what was being done: what the
// cluster refuses for good halts, all else (no connection, no leader, a
// timeout, a coordinator that moves) is an outage. A cancelled context stays
// itself. nil gives nil.
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	doing := fmt.Sprintf(format, args...)
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if errors.Is(err, kerr.InvalidTopicException) {
		return ErrTopicName.New("%s: %w", doing, err)
	}
	if refused(err) {
		return ErrRefused.New("%s: %w", doing, err)
	}
	return ErrUnavailable.New("%s: %w", doing, err)
}
