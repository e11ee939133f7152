package deliver

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/records"
	"github.com/tallywire/tallywire/sinks/warehouse"
)

// awayBed is a warehouse behind a canonical topic of two partitions.
type awayBed struct {
	*enginetest.TopicBed
	dsn  string
	conn *pgx.Conn
	outs *records.Outputs
}

var awayBeds atomic.Int64

func newAwayBed(bd *enginetest.Bed) *awayBed {
	t := bd.T
	t.Helper()
	b := &awayBed{TopicBed: enginetest.NewTopicBed(bd), dsn: testkit.NewDatabase(t)}
	topic := fmt.Sprintf("away%d.item", awayBeds.Add(1))
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "item.avsc"), []byte(`{"type": "record", "name": "Item", "namespace": "test", "doc": "An item.",
 "topic": "`+topic+`", "key": ["item_id"], "owner": "test", "fields": [
  {"name": "item_id", "type": "string", "doc": "Its id.", "owner": "test", "sensitivity": "internal"},
  {"name": "note", "type": ["null", "string"], "default": null, "doc": "A note.", "owner": "test", "sensitivity": "internal"}]}`), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	all, err := avro.LoadCatalogue(dir)
	if err != nil {
		t.Fatal(err)
	}
	b.Env.Contracts, b.Env.Registry.Contracts = all, all
	b.In = all[topic].Table
	b.outs = records.NewOutputs(b.Direct, b.Env.Registry, func(tt *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: tt.Topic, Partitions: 2, Compact: true}
	}, 0, nil)
	if _, err := b.outs.Ensure(t.Context(), b.In); err != nil {
		t.Fatal(err)
	}
	if b.conn, err = pgx.Connect(t.Context(), b.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.conn.Close(context.Background()) })
	return b
}

// say writes a record of each of the keys 1 to n; without a note they are deleted.
func (b *awayBed) say(note string, keys ...int) {
	b.T.Helper()
	batch := change.Get()
	defer batch.Release()
	for _, key := range keys {
		row := batch.Row(2)
		row[0], row[1] = batch.SpanString(change.String, fmt.Sprint(key)), batch.SpanString(change.String, note)
		if c := batch.Append(b.In, change.Update); note != "" {
			c.New = row
		} else {
			c.Op, c.Old = change.Delete, row
		}
	}
	var rs records.Buffer
	if err := b.outs.Encode(&rs, batch, 0, batch.Len()); err != nil {
		b.T.Fatal(err)
	}
	for i := range rs.Records { // one by one: each a batch of its own, as compaction sees it
		if err := b.Client.ProduceSync(b.T.Context(), &rs.Records[i]).FirstErr(); err != nil {
			b.T.Fatal(err)
		}
	}
}

func (b *awayBed) exec(sql string) {
	b.T.Helper()
	if _, err := b.conn.Exec(b.T.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		b.T.Fatalf("%s: %v", sql, err)
	}
}

func (b *awayBed) one(sql string) (out string) {
	b.T.Helper()
	if err := b.conn.QueryRow(b.T.Context(), sql).Scan(&out); err != nil {
		b.T.Fatalf("%s: %v", sql, err)
	}
	return out
}

func (b *awayBed) table() string { return b.In.Topic }

func (b *awayBed) rows() string {
	b.T.Helper()
	return b.one("SELECT COALESCE(string_agg(item_id || '=' || note, ' ' ORDER BY item_id), '') FROM " + b.table())
}

// missed leaves rows whose records and tombstones the topic does not hold any
// more, one in each partition, as if they had been written first.
func (b *awayBed) missed() {
	b.T.Helper()
	b.exec("INSERT INTO " + b.table() + " SELECT DISTINCT 'gone' || _partition, 'stale', _topic_id, _partition, 0 FROM " + b.table())
}

// away makes the sink one that stopped so long ago.
func (b *awayBed) away(interval string) {
	b.T.Helper()
	b.exec("UPDATE _tallywire.offsets SET read_at = now() - interval '" + interval + "'")
}

func (b *awayBed) sink() *warehouse.Sink {
	b.T.Helper()
	s, err := warehouse.New(warehouse.Config{DSN: secret.DSNOf(b.dsn)}, warehouse.Options{Name: "w", Contracts: b.Env.Contracts})
	if err != nil {
		b.T.Fatal(err)
	}
	b.T.Cleanup(func() { _ = s.Close() })
	return s
}

func (b *awayBed) start() (stop func(), ended <-chan error) {
	run, ended := delivering(b.TopicBed, b.Env, b.DeliverSpec(b.sink()))
	return func() {
		b.T.Helper()
		if err := run(); err != nil {
			b.T.Fatal(err)
		}
	}, ended
}

// once delivers what there is, and stops.
func (b *awayBed) once() {
	b.T.Helper()
	stop, _ := b.start()
	b.Drained()
	stop()
}

// until delivers until the warehouse has the rows, and stops.
func (b *awayBed) until(rows string) {
	b.T.Helper()
	stop, _ := b.start()
	b.Eventually("the rows that the topic holds", func() (bool, string) { got := b.rows(); return got == rows, got })
	b.Eventually("the reconciliation to be written down", func() (bool, string) {
		got := b.one("SELECT min(read_at)::text FROM _tallywire.offsets")
		return b.one("SELECT (min(read_at) > now() - interval '1 hour')::text FROM _tallywire.offsets") == "true", got
	})
	b.Drained()
	stop()
}

// halts starts the sink, which must end with ErrAway and leave the rows of keys.
func (b *awayBed) halts(keys string) {
	b.T.Helper()
	_, ended := b.start()
	select {
	case err := <-ended:
		if !problem.Has(err, ErrAway) {
			b.T.Fatalf("it ended with %v", err)
		}
	case <-time.After(testkit.Patience):
		b.T.Fatal("it goes on")
	}
	// What came meanwhile may be delivered or not.
	if got := b.one("SELECT string_agg(item_id, ' ' ORDER BY item_id) FROM " + b.table()); got != keys {
		b.T.Fatalf("the warehouse has %s", got)
	}
}

// F6. Lost if this fails: rows that were deleted while the sink was away stay in
// every dashboard; or rows that were not go.
func TestDeliverAwayReconciles(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := newAwayBed(bd)
		b.say("old", 1, 2, 3, 4, 5, 6)
		b.once()
		b.missed()
		b.say("new", 1, 2, 3)
		b.away("12 hours") // of 24
		b.once()
		stale := "1=new 2=new 3=new 4=old 5=old 6=old gone0=stale gone1=stale"
		if got := b.rows(); got != stale {
			t.Fatalf("it was not away for long, and has %s", got)
		}
		b.say("newer", 1, 2, 3, 4, 5)
		b.away("30 hours")
		b.until("1=newer 2=newer 3=newer 4=newer 5=newer 6=old")
	})
}

// F6. The same by a real compaction, after which the log starts later on the
// embedded broker.
func TestDeliverAwayCompacted(t *testing.T) {
	b := newAwayBed(enginetest.NewBed(t, ""))
	b.say("old", 1, 2, 3, 4, 5, 6)
	b.once()
	b.say("", 1, 4)
	b.say("not for Postgres: \x00", 5) // it is parked, and its row is older than what the topic holds
	b.say("new", 2, 3, 6, 7, 8)        // compaction spares the last of each partition
	enginetest.SetTopic(t, b.Direct, b.In.Topic, "delete.retention.ms", "1")
	b.Eventually("tombstones and what was superseded to be compacted away", func() (bool, string) {
		b.Fake.Compact() // the broker heeds a setting a little after it shows it
		left := -1       // what the topic holds of key 5
		for _, r := range b.Read(b.In.Topic) {
			if r.Value == nil || strings.HasSuffix(string(r.Key), "5") {
				left++
			}
		}
		return left == 0, fmt.Sprintf("%d are left", left)
	})
	b.away("1 minute")
	b.until("2=new 3=new 5=old 6=new 7=new 8=new")
}

// interrupted is a warehouse whose reconciliations come to nothing.
type interrupted struct {
	*warehouse.Sink
	began chan struct{}
}

func (s *interrupted) Reconcile(ctx context.Context, _ string, _ change.Range, _ time.Time, _ func(func(*change.Batch) error) error) (int64, int64, error) {
	select {
	case s.began <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return 0, 0, ctx.Err()
}

// F6. Lost if this fails: what a process that was killed while it reconciled had
// yet to delete, since its successor stands at the end of the topic.
func TestDeliverAwayIsOwedUntilDone(t *testing.T) {
	b := newAwayBed(enginetest.NewBed(t, ""))
	b.say("old", 1, 2, 3, 4)
	b.once()
	b.missed()
	b.say("new", 1, 2, 3, 4)
	b.away("30 hours")
	s := &interrupted{Sink: b.sink(), began: make(chan struct{}, 1)}
	stop, _ := delivering(b.TopicBed, b.Env, b.DeliverSpec(s))
	b.Shows(b.Env, "sink", "what it does", func(v obs.View) bool {
		return v.State == obs.Restoring && v.Reason == "reconciling "+b.In.Topic+": rows deleted while it was away"
	})
	b.Await("the reconciliation", s.began)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	ends, err := b.Direct.Admin().ListEndOffsets(t.Context(), b.In.Topic)
	if err != nil {
		t.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) { // it had read to the end, or might have
		b.exec(fmt.Sprintf("UPDATE _tallywire.offsets SET next_offset = %d WHERE partition = %d", o.Offset, o.Partition))
	})
	b.until("1=new 2=new 3=new 4=new")
}

// held is a warehouse whose first reconciliation waits to be let go.
type held struct {
	*warehouse.Sink
	once       sync.Once
	began, let chan struct{}
}

func (s *held) Reconcile(ctx context.Context, assignment string, span change.Range, at time.Time, keys func(func(*change.Batch) error) error) (int64, int64, error) {
	s.once.Do(func() { close(s.began); <-s.let })
	return s.Sink.Reconcile(ctx, assignment, span, at, keys)
}

// F6. Lost if this fails: what the partition's next owner wrote; or others wait
// for their partitions until a whole topic is read.
func TestDeliverAwayMovesInTheMiddle(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := newAwayBed(bd)
		b.say("old", 1, 2, 3, 4)
		b.once()
		b.missed()
		b.say("new", 1, 2, 3, 4)
		b.away("30 hours")
		s := &held{Sink: b.sink(), began: make(chan struct{}), let: make(chan struct{})}
		stop, _ := delivering(b.TopicBed, b.Env, b.DeliverSpec(s))
		letGo := sync.OnceFunc(func() { close(s.let) })
		t.Cleanup(letGo) // before stop, which waits for it
		b.Await("the reconciliation", s.began)
		stopOther, _ := delivering(b.TopicBed, b.Member("other"), b.DeliverSpec(b.sink()))
		b.Eventually("the other process to own a partition", func() (bool, string) {
			got := b.one("SELECT string_agg(owner, ' ') FROM _tallywire.offsets")
			return strings.Contains(got, "other/"), got
		})
		letGo()
		b.Eventually("the rows that the topic holds", func() (bool, string) { got := b.rows(); return got == "1=new 2=new 3=new 4=new", got })
		b.say("newer", 1, 2, 3, 4)
		b.Eventually("what came then", func() (bool, string) { got := b.rows(); return got == "1=newer 2=newer 3=newer 4=newer", got })
		for _, stop := range []func() error{stop, stopOther} {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
}

// F6. Lost if this fails: all rows whose records somebody cut off.
func TestDeliverAwayOfATopicThatWasCutOff(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, bd *enginetest.Bed) {
		b := newAwayBed(bd)
		// A broker that moves no start by compaction.
		real, err := kafka.New(kafka.Config{Brokers: b.Direct.Brokers()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(real.Close)
		b.Env.Kafka = real
		b.say("old", 1, 2, 3, 4, 5, 6)
		b.once()
		b.missed()
		b.say("new", 1, 2, 3, 4, 5, 6)
		b.away("30 hours")
		all := "1=new 2=new 3=new 4=new 5=new 6=new"
		enginetest.SetTopic(t, b.Direct, b.In.Topic, "cleanup.policy", "compact,delete")
		b.halts("1 2 3 4 5 6 gone0 gone1")
		b.halts("1 2 3 4 5 6 gone0 gone1") // though it stands at the end
		enginetest.SetTopic(t, b.Direct, b.In.Topic, "cleanup.policy", "compact")
		b.until(all) // Remedy: TW-SINK-AWAY, one way

		// By hand, or by a retention that the topic had for a while.
		b.say("newest", 1, 2, 3, 4, 5, 6)
		enginetest.SetTopic(t, b.Direct, b.In.Topic, "cleanup.policy", "delete")
		cut := kadm.Offsets{}
		ends, err := b.Direct.Admin().ListEndOffsets(t.Context(), b.In.Topic)
		if err != nil {
			t.Fatal(err)
		}
		ends.Each(func(o kadm.ListedOffset) { cut.AddOffset(o.Topic, o.Partition, o.Offset-1, -1) })
		b.once()
		if rs, err := b.Direct.Admin().DeleteRecords(t.Context(), cut); err != nil || rs.Error() != nil {
			t.Fatal(err, rs.Error())
		}
		enginetest.SetTopic(t, b.Direct, b.In.Topic, "cleanup.policy", "compact")
		b.say("last", 1)
		b.away("30 hours")
		b.halts("1 2 3 4 5 6")
		b.exec("BEGIN; TRUNCATE " + b.table() + "; DELETE FROM _tallywire.offsets; COMMIT")
		held := map[string]bool{}
		for _, r := range b.Read(b.In.Topic) {
			held[string(r.Key)] = true
		}
		stop, _ := b.start() // Remedy: TW-SINK-AWAY, the other
		b.Eventually("the table to be filled anew", func() (bool, string) {
			got := b.rows()
			return len(strings.Fields(got)) == len(held), fmt.Sprintf("%s of %d keys", got, len(held))
		})
		stop()
	})
}

// F6. Lost if this fails: rows of keys that a registry does not know for now; or
// one record of somebody else's keeps the sink from what was deleted.
func TestDeliverAwayWithKeysThatCannotBeRead(t *testing.T) {
	b := newAwayBed(enginetest.NewBed(t, ""))
	b.say("old", 1, 2, 3, 4)
	b.once()
	b.missed()
	put := func(key string) {
		t.Helper()
		for p := range int32(2) {
			if err := b.Client.ProduceSync(t.Context(), &kgo.Record{Topic: b.In.Topic, Partition: p, Key: []byte(key), Value: []byte("x")}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("no key of ours")
	b.away("30 hours")
	b.until("1=old 2=old 3=old 4=old")
	b.missed()
	put("\x00\x00\x00\x03\xe7\x021") // of a schema 999
	b.away("30 hours")
	b.halts("1 2 3 4 gone0 gone1")
}

// F6. Lost if this fails: the idle time of a sink that ran counts as absence, and
// its next start reads whole topics in vain.
func TestDeliverIdleIsNotAway(t *testing.T) {
	was := lookEvery
	lookEvery = 10 * time.Millisecond
	t.Cleanup(func() { lookEvery = was })
	b := newAwayBed(enginetest.NewBed(t, ""))
	b.say("old", 1, 2, 3, 4)
	stop, _ := b.start()
	b.Drained()
	before := b.one("SELECT now()::text")
	b.Eventually("the idle partitions to be read on", func() (bool, string) {
		got := b.one("SELECT min(read_at)::text FROM _tallywire.offsets")
		return b.one("SELECT (min(read_at) > '"+before+"')::text FROM _tallywire.offsets") == "true", got + ", after " + before
	})
	stop()
}

// F6. Lost if this fails: a deletion that was written and removed while a sink
// fell behind; or it reads whole topics for nothing.
func TestSight(t *testing.T) {
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(hours int) time.Time { return day.Add(time.Duration(hours) * time.Hour) }
	const limit = 20 * time.Hour
	type look struct {
		hour      int
		next, end int64
		away      bool
		read      int // hour; -1: unknown
	}
	for name, c := range map[string]struct {
		readAt time.Time
		looks  []look
	}{
		"at the end":                         {at(0), []look{{1, 5, 5, false, 1}, {2, 5, 5, false, 2}}},
		"idle while it was stopped":          {at(0), []look{{100, 5, 5, false, 100}}},
		"a little was written meanwhile":     {at(0), []look{{19, 5, 6, false, 0}, {20, 6, 6, false, 20}}},
		"too long":                           {at(0), []look{{21, 5, 6, true, 0}}},
		"never at the end, but within sight": {at(0), []look{{1, 5, 9, false, 0}, {15, 9, 20, false, 1}, {25, 20, 30, false, 15}, {36, 29, 40, true, 15}}},
		"caught up with what is gone":        {at(0), []look{{1, 5, 9, false, 0}, {22, 12, 12, true, 1}}},
		"unknown":                            {time.Time{}, []look{{0, 5, 5, true, -1}}},
	} {
		var g *sight
		for i, l := range c.looks {
			if g == nil {
				g = &sight{readAt: c.readAt, next: l.next, end: math.MaxInt64}
			}
			if away := g.see(at(l.hour), l.next, l.end, limit); away != l.away {
				t.Errorf("%s, look %d: away is %v", name, i, away)
			}
			if want := at(l.read); l.read >= 0 && !g.readAt.Equal(want) || l.read < 0 && !g.readAt.IsZero() {
				t.Errorf("%s, look %d: read at %v, want %v", name, i, g.readAt, want)
			}
		}
	}
}
