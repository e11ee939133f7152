package kafka

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

// leaveOpen writes a record as part of a transaction that its coordinator takes
// for complete, as a broker leaves it that was killed before it wrote the
// markers: before is 1, since the decision raised the epoch. With 0 it is one
// that was begun since. The broker must not verify (transaction.partition.verification.enable).
func leaveOpen(ctx context.Context, c *Cluster, topic string, id string, before int16) error {
	all, err := c.Admin().DescribeTransactions(ctx, id)
	if err != nil {
		return err
	}
	t := all[id]
	value := []byte("of an open transaction")
	rec := kmsg.Record{Value: value}
	rec.Length = int32(len(rec.AppendTo(nil)) - 1) // less its own length, one octet
	now := time.Now().UnixMilli()
	batch := kmsg.RecordBatch{
		PartitionLeaderEpoch: -1, Magic: 2, Attributes: 1 << 4, // transactional
		FirstTimestamp: now, MaxTimestamp: now, ProducerID: t.ProducerID, ProducerEpoch: t.ProducerEpoch - before, FirstSequence: 0, NumRecords: 1,
		Records: rec.AppendTo(nil),
	}
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	req := kmsg.NewPtrProduceRequest()
	req.TransactionID, req.Acks, req.TimeoutMillis = &id, -1, 5000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	meta, err := c.Topic(ctx, topic)
	if err != nil {
		return err
	}
	rt.TopicID = meta.ID
	rp := kmsg.NewProduceRequestTopicPartition()
	rp.Records = raw
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	// From version 12 on, the broker tells the coordinator.
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(0, 11)
	cl, err := c.Client(kgo.MaxVersions(versions))
	if err != nil {
		return err
	}
	defer cl.Close()
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}

func clusterAt(t *testing.T, addr string, opts ...kgo.Opt) *Cluster {
	c, err := New(Config{Brokers: []string{addr}, Opts: opts}, obs.New(slog.New(slog.NewTextHandler(io.Discard, nil))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Lost if this fails: Kafka is killed between a decision and its markers, comes
// back without them, and the source and all who read its topics wait for ever.
func TestEndHanging(t *testing.T) {
	k := testkit.NewKafka(t, embedded.KafkaOptions{Settings: map[string]string{"transaction.partition.verification.enable": "false"}})
	ctx := t.Context()
	c := clusterAt(t, k.Addr())
	look := func(topics []string, ids ...string) ([]Hanging, error) {
		return c.endHanging(ctx, ids, func(context.Context) ([]string, error) { return topics, nil }, map[string]fate{})
	}
	for i, commit := range []bool{true, false} {
		topic, id := fmt.Sprintf("raw.%d", i), fmt.Sprintf("tallywire.ingest.%d", i)
		for _, name := range []string{topic, topic + ".quiet", topic + ".live"} {
			if _, err := c.EnsureTopic(ctx, TopicSpec{Name: name, Partitions: 1}); err != nil {
				t.Fatal(err)
			}
		}
		cl, err := c.Client(kgo.TransactionalID(id), kgo.DefaultProduceTopic(topic))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		end := kgo.TryAbort
		if commit {
			end = kgo.TryCommit
		}
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: []byte("of a whole transaction")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
		topics, err := c.TopicsOf(ctx, topic)
		if err != nil || len(topics) != 3 {
			t.Fatal(topics, err)
		}
		if found, err := look(topics, id, "tallywire.ingest.unknown"); err != nil || len(found) > 0 {
			t.Fatalf("nothing hangs, and it finds %v, %v", found, err)
		}
		// A predecessor that is not fenced has begun its next transaction: to
		// commit that would show half of it.
		if err := leaveOpen(ctx, c, topic+".live", id, 0); err != nil {
			t.Fatal(err)
		}
		if found, err := look(topics, id); err != nil || len(found) > 0 {
			t.Fatalf("a transaction that is under way is ended: %v, %v", found, err)
		}
		topic += ".quiet" // the producer is not known there, and may come with its former epoch
		if err := leaveOpen(ctx, c, topic, id, 1); err != nil {
			t.Fatal(err)
		}
		if who := c.Holders(ctx, topic); !strings.Contains(who, "partition 0, from offset 0") {
			t.Errorf("open for %s", who)
		}
		// A reader says what it waits for, rather than wait for ever.
		meta, err := c.Topic(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		scanPatience = time.Millisecond
		err = Scan(ctx, c.Shared(), meta, 0, 0, 1, func(*kgo.Record) error { return nil })
		scanPatience = time.Minute
		if !problem.Has(err, ErrUnavailable) || !strings.Contains(err.Error(), "open at offset 0") {
			t.Errorf("reading what is open: %v", err)
		}
		// It is nobody's whose id is not asked for.
		if found, err := look(topics, "tallywire.ingest.other"); err != nil || len(found) > 0 {
			t.Fatalf("it finds %v, %v", found, err)
		}
		found, err := look(topics, id)
		if err != nil || len(found) != 1 || found[0].Commit != commit || found[0].Offset != 0 || found[0].ID != id {
			t.Fatalf("it finds %v, %v", found, err)
		}
		stable, err := c.Admin().ListCommittedOffsets(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		ends, err := c.Admin().ListEndOffsets(ctx, topic)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := stable.Lookup(topic, 0)
		e, _ := ends.Lookup(topic, 0)
		if s.Offset != e.Offset {
			t.Fatalf("stable up to %d of %d", s.Offset, e.Offset)
		}
		seen := map[string]bool{}
		reader, err := c.Client()
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		if err := Scan(ctx, reader, meta, 0, 0, e.Offset, func(r *kgo.Record) error {
			if !r.Attrs.IsControl() {
				seen[string(r.Value)] = true
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if seen["of an open transaction"] != commit {
			t.Errorf("commit %v: a reader sees %v", commit, seen)
		}
		// A broker that does not know a topic yet says nothing about it.
		if _, err := look([]string{topic, "raw.unknown"}, id); !problem.Has(err, ErrUnavailable) {
			t.Errorf("with a topic that is not there: %v", err)
		}
		// The id goes on.
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Value: []byte("next")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(ctx, kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
}
