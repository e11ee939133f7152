// World: the servers that all contenders use, and the topics.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
)

const leftTopic = "ps.time_entry"

var rightTopics = []string{"ps.project", "ps.customer", "ps.cost_rate"}

// world outlives the contenders' runs.
type world struct {
	o       *options
	tmp     string
	binary  string // tallywire
	libs    string // jars of Kafka Streams
	classes string // the peer's program
	began   time.Time
	closers []func() error

	pg     *embedded.Postgres
	kafka  *embedded.Kafka
	admin  *kadm.Client
	client *kgo.Client // writes what newData made
	regURL string
	reg    *avro.Registry
	data   map[string]*data // by section
}

func (w *world) onClose(f func() error) { w.closers = append(w.closers, f) }

// close stops everything, the last started first.
func (w *world) close() error {
	var errs []error
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	w.closers = nil
	return errors.Join(errs...)
}

// say tells progress, with the seconds since the start.
func (w *world) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

// newWorld starts the servers; the world is to be closed also after an error.
func newWorld(ctx context.Context, o *options) (*world, error) {
	w := &world{o: o, began: time.Now(), binary: o.binary, data: map[string]*data{}}
	return w, w.start(ctx)
}

func (w *world) start(ctx context.Context) (err error) {
	if w.tmp, err = os.MkdirTemp("", "tallywire-lookups-"); err != nil {
		return err
	}
	if w.o.keep {
		w.say("logs are kept in %s", w.tmp)
	} else {
		w.onClose(func() error { return os.RemoveAll(w.tmp) })
	}
	if w.binary == "" {
		w.say("building tallywire")
		w.binary = filepath.Join(w.tmp, "tallywire")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", w.binary, "github.com/tallywire/tallywire/cmd/tallywire").CombinedOutput(); err != nil {
			return fmt.Errorf("building tallywire: %w\n%s", err, out)
		}
	} else if w.binary, err = filepath.Abs(w.binary); err != nil {
		return err
	}
	if err := w.compile(ctx); err != nil {
		return err
	}
	w.say("starting Kafka %s, Postgres and a registry", embedded.KafkaVersion)
	if w.pg, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{Dir: filepath.Join(w.tmp, "postgres"), Params: map[string]string{"fsync": "off"}}); err != nil {
		return err
	}
	w.onClose(w.pg.Stop)
	if err := w.broker(ctx); err != nil {
		return err
	}
	cluster, err := kafka.New(kafka.Config{Brokers: []string{w.kafka.Addr()}, ClientID: "lookups"}, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	w.onClose(func() error { cluster.Close(); return nil })
	addr, stop, err := supervise.StartRegistry(ctx, "127.0.0.1:0", cluster, obs.New(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	w.onClose(stop)
	w.regURL = "http://" + addr
	if w.reg, err = avro.NewRegistry(w.regURL); err != nil {
		return err
	}
	for _, s := range w.o.only {
		if w.data[s], err = newData(ctx, w.reg, w.o.entries, s != "load"); err != nil {
			return err
		}
	}
	return w.warm(ctx)
}

// broker starts Kafka; where a contender could notice, its settings are Kafka's
// own defaults.
func (w *world) broker(ctx context.Context) (err error) {
	w.kafka, err = embedded.StartKafka(ctx, embedded.KafkaOptions{
		Dir: filepath.Join(w.tmp, "kafka"), HeapMB: 1024,
		Settings: map[string]string{"add.partitions.to.txn.retry.backoff.ms": "20", "log.segment.delete.delay.ms": "1000"},
	})
	if err != nil {
		return err
	}
	w.onClose(w.kafka.Stop)
	w.client, err = kgo.NewClient(kgo.SeedBrokers(w.kafka.Addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()), kgo.MaxBufferedRecords(1<<20))
	if err != nil {
		return err
	}
	w.onClose(func() error { w.client.Close(); return nil })
	w.admin = kadm.NewClient(w.client)
	return nil
}

// warm lets the broker's JVM compile what all contenders use, so that the first
// of them does not pay for it.
func (w *world) warm(ctx context.Context) error {
	const topic, producers, txns, each = "warm", 8, 150, 300
	if err := w.create(ctx, producers, "delete", topic); err != nil {
		return err
	}
	errs := make(chan error, producers)
	for i := range producers {
		go func() { errs <- w.warmBy(ctx, topic, int32(i), txns, each) }()
	}
	var err error
	for range producers {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (w *world) warmBy(ctx context.Context, topic string, partition int32, txns, each int) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.Addr()), kgo.TransactionalID(fmt.Sprint(topic, partition)), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer cl.Close()
	value := []byte(strings.Repeat("what is written is of no interest ", 6))
	for range txns {
		if err := cl.BeginTransaction(); err != nil {
			return err
		}
		failed := kgo.AbortingFirstErrPromise(cl)
		for range each {
			cl.Produce(ctx, &kgo.Record{Topic: topic, Value: value, Partition: partition}, failed.Promise())
		}
		if err := failed.Err(); err != nil {
			return err
		}
		if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
			return err
		}
	}
	return nil
}

// clear deletes what the last contender left: all topics and groups but the
// broker's and the registry's own.
func (w *world) clear(ctx context.Context) error {
	all, err := w.admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	var topics []string
	for _, t := range all.Names() {
		if t != "_schemas" && !strings.HasPrefix(t, "__") {
			topics = append(topics, t)
		}
	}
	if len(topics) > 0 {
		res, err := w.admin.DeleteTopics(ctx, topics...)
		if err == nil {
			err = res.Error()
		}
		if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("deleting the topics of before: %w", err)
		}
		w.client.PurgeTopicsFromClient(topics...) // it would write to them by their former ids
	}
	groups, err := w.admin.ListGroups(ctx)
	if err != nil || len(groups) == 0 {
		return err
	}
	res, err := w.admin.DeleteGroups(ctx, groups.Groups()...)
	if err != nil {
		return fmt.Errorf("deleting the groups of before: %w", err)
	}
	for _, r := range res {
		// Kafka Streams does not leave its group; each run has another.
		if r.Err != nil && !errors.Is(r.Err, kerr.GroupIDNotFound) && !errors.Is(r.Err, kerr.NonEmptyGroup) {
			return fmt.Errorf("deleting the group %s: %w", r.Group, r.Err)
		}
	}
	return nil
}

// create makes topics and waits until the broker leads them.
func (w *world) create(ctx context.Context, n int32, policy string, topics ...string) error {
	res, err := w.admin.CreateTopics(ctx, n, 1, map[string]*string{"cleanup.policy": &policy}, topics...)
	if err == nil {
		err = res.Error()
	}
	if err != nil {
		return fmt.Errorf("creating %v: %w", topics, err)
	}
	return w.until(ctx, time.Minute, "the topics to be there", func() (bool, error) {
		for _, t := range topics {
			if _, err := w.ends(ctx, t); err != nil {
				return false, nil //nolint:nilerr // not yet; until gives up in time
			}
		}
		return true, nil
	})
}

// ends is the sum of a topic's last stable offsets.
func (w *world) ends(ctx context.Context, topic string) (sum int64, err error) {
	l, err := w.admin.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = l.Error()
	}
	if err != nil {
		return 0, err
	}
	l.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum, nil
}

// produce writes copies of records, as fast as it can.
func (w *world) produce(ctx context.Context, records ...*kgo.Record) error {
	var failed kgo.FirstErrPromise
	for _, r := range records {
		w.client.Produce(ctx, &kgo.Record{Topic: r.Topic, Key: r.Key, Value: r.Value, Partition: r.Partition}, failed.Promise())
	}
	return failed.Err()
}

// until asks again and again.
func (w *world) until(ctx context.Context, within time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
}
