package parked

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

type bed struct {
	*testing.T
	cluster *kafka.Cluster
	cl      *kgo.Client
	set     *Set
}

func newBed(t *testing.T) *bed {
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	o := obs.New(slog.New(slog.DiscardHandler))
	b := &bed{T: t}
	if b.cluster, err = kafka.New(kafka.Config{Brokers: fake.ListenAddrs()}, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cluster.Close)
	if b.cl, err = b.cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cl.Close)
	topic, err := b.cluster.EnsureTopic(t.Context(), kafka.TopicSpec{Name: TopicOf("erp"), Partitions: 2, Compact: true})
	if err != nil {
		t.Fatal(err)
	}
	b.set = NewSet("erp", control.KindSink, topic, o.Component("sink", "erp"))
	b.set.Following = true
	b.load()
	return b
}

func (b *bed) load() {
	b.Helper()
	mine := func(string, int32) bool { return true }
	if err := b.set.Load(b.Context(), b.cl, b.cluster, []int32{0, 1}, mine); err != nil {
		b.Fatal(err)
	}
}

func (b *bed) follow() {
	b.Helper()
	if err := b.set.Follow(b.Context(), b.cl, b.cluster); err != nil {
		b.Fatal(err)
	}
}

func of(key string, offset int64, value string) *control.Parked {
	return &control.Parked{
		Stage: "erp", Topic: "ps.project", TopicID: [16]byte{1}, Partition: 3, Offset: offset, Key: key, RecordKey: []byte(key),
		Value: []byte(value), Code: "TW-X", Reason: "refused", Attempts: 1, FirstAt: time.Unix(offset, 0).UTC(), LastAt: time.Unix(offset, 0).UTC(),
	}
}

// commit does a transaction, or only its part in Kafka.
func (b *bed) commit(known bool, do func(*Txn)) {
	b.Helper()
	tx := b.set.Begin()
	do(tx)
	if err := b.cl.ProduceSync(b.Context(), tx.Records(0)...).FirstErr(); err != nil {
		b.Fatal(err)
	}
	if known {
		tx.Committed()
	}
}

func (b *bed) has() string {
	var out []string
	for k, r := range b.set.refs {
		out = append(out, fmt.Sprintf("%s@%d x%d", k[strings.IndexByte(k, separator)+1:], r.Offset, r.Attempts))
	}
	return strings.Join(out, " ")
}

func (b *bed) want(has string) {
	b.Helper()
	if got := b.has(); got != has {
		b.Errorf("parked is %q, want %q", got, has)
	}
}

var key1 = AppendKey(nil, "ps.project", []byte("1"))

// G2, G4: an older version neither replaces what is parked nor takes it out.
func TestTxnKeepsTheNewest(t *testing.T) {
	b := newBed(t)
	b.commit(true, func(tx *Txn) { tx.Park(of("1", 10, "v10")) })
	b.want("1@10 x1")
	b.commit(true, func(tx *Txn) { tx.Park(of("1", 10, "v10")) }) // tried again
	b.want("1@10 x2")
	if r := b.set.refs[string(key1)]; !r.FirstAt.Equal(time.Unix(10, 0)) {
		t.Errorf("first tried at %v", r.FirstAt)
	}
	b.commit(true, func(tx *Txn) {
		tx.Park(of("1", 9, "v9"))
		tx.Release([16]byte{1}, key1, 3, 9)
	})
	b.want("1@10 x2")
	b.commit(true, func(tx *Txn) { tx.Park(of("1", 12, "v12")) })
	b.want("1@12 x1")
	b.load()
	b.want("1@12 x1")
	whole, gone, err := b.set.Read(t.Context(), b.cl, b.cluster, []string{string(key1)})
	if err != nil || len(whole) != 1 || len(gone) != 0 || string(whole[0].Value) != "v12" || whole[0].Kind != control.KindSink {
		t.Errorf("read %+v, %+v, %v", whole, gone, err)
	}
	b.commit(true, func(tx *Txn) {
		tx.Park(of("1", 13, "v13"))
		tx.Release([16]byte{1}, key1, 3, 14) // in the same transaction, later
	})
	b.want("")
	b.load()
	b.want("")
}

// What a session committed counts, though it reads of it only later, and reads
// what was before it first.
func TestFollowDoesNotGoBack(t *testing.T) {
	b := newBed(t)
	b.commit(true, func(tx *Txn) { tx.Park(of("1", 10, "v10")) })
	b.commit(true, func(tx *Txn) { tx.Release([16]byte{1}, key1, 3, 11) })
	// As far as the last stable offset was when it was asked for: the release
	// is not there yet.
	if err := b.set.read(t.Context(), b.cl, 1, 0, 1); err != nil {
		t.Fatal(err)
	}
	b.want("")
	b.follow()
	b.want("")
	if len(b.set.released) != 0 {
		t.Errorf("%d releases are remembered for ever", len(b.set.released))
	}
	b.commit(false, func(tx *Txn) { tx.Park(of("1", 20, "by another owner")) })
	b.want("")
	b.follow()
	b.want("1@20 x1")
}

// A command is about one version: when another one is parked by then, it is
// about nothing. It is heard until it is done.
func TestCommandsAreAboutOneVersion(t *testing.T) {
	b := newBed(t)
	b.commit(true, func(tx *Txn) { tx.Park(of("1", 10, "v10")) })
	if _, err := Send(t.Context(), b.cluster, []control.Parked{*of("1", 10, "v10"), *of("2", 4, "")}, CommandRetry); err != nil {
		t.Fatal(err)
	}
	b.follow()
	heard := b.set.Commands(10)
	if len(heard) != 2 || heard[0].About.Value != nil {
		t.Fatalf("heard %+v", heard)
	}
	if _, _, is := b.set.About(heard[0]); !is {
		t.Error("the one about what is parked is about nothing")
	}
	if _, _, is := b.set.About(heard[1]); is {
		t.Error("the one about what is not parked is about something")
	}
	b.commit(true, func(tx *Txn) { tx.Park(of("1", 12, "v12")) })
	if _, ref, is := b.set.About(heard[0]); !is || ref.Offset != 12 {
		t.Error("a retry is not about the version that is parked now")
	}
	discard := *heard[0]
	discard.Name = CommandDiscard
	if _, _, is := b.set.About(&discard); is {
		t.Error("a discard of the version before is about the new one")
	}
	b.load()
	if n := len(b.set.Commands(10)); n != 2 {
		t.Errorf("%d are heard after a restart, want 2", n)
	}
	b.commit(true, func(tx *Txn) {
		for _, c := range b.set.Commands(10) {
			tx.Done(c)
		}
	})
	b.load()
	if n := len(b.set.Commands(10)); n != 0 {
		t.Errorf("%d are heard after they were done", n)
	}
	junk := &kgo.Record{Topic: b.set.Topic.Name, Key: []byte("\x1fretry\x1fps.project\x1f1"), Value: []byte("junk")}
	if err := b.cl.ProduceSync(t.Context(), junk).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b.follow()
	b.want("1@12 x1")
}

// Parked records may be large, and many: what is in memory of them is not their
// payload.
func TestPayloadsAreNotHeld(t *testing.T) {
	b := newBed(t)
	const n, size = 64, 512 << 10
	value := strings.Repeat("x", size)
	for i := range n {
		b.commit(false, func(tx *Txn) { tx.Park(of(fmt.Sprint(i), int64(i), value)) })
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	b.load()
	if b.set.Len() != n {
		t.Fatalf("%d are parked", b.set.Len())
	}
	if grown := heap() - before; grown > n*size/4 {
		t.Errorf("the heap grew by %d octets, of payloads of %d", grown, n*size)
	}
	runtime.KeepAlive(b.set)
}

// Lost if this fails: of a row that is parked under two keys, since its schema's
// id was part of them, the older version comes back when the newer one is gone.
func TestSetEndsWhatIsParkedTwice(t *testing.T) {
	for _, again := range []bool{true, false} {
		b := newBed(t)
		older, newer := of("k", 10, "older"), of("k", 20, "newer")
		older.RecordKey, newer.RecordKey = []byte("\x00\x00\x00\x00\x01k"), []byte("\x00\x00\x00\x00\x02k")
		raw := func(p *control.Parked) []byte { return append([]byte(p.Topic+"\x1f"), p.RecordKey...) }
		for _, p := range []*control.Parked{older, newer} { // as an older version parks
			r := &kgo.Record{Topic: b.set.Topic.Name, Partition: 1, Key: raw(p), Value: Append(nil, p, 0)}
			if err := b.cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		b.load()
		b.want("\x1fk@20 x1")
		b.commit(true, func(tx *Txn) {
			if again {
				tx.Park(of("other", 1, ""))
				newest := of("k", 30, "newest")
				newest.RecordKey = []byte("\x00\x00\x00\x00\x03k")
				tx.Park(newest)
				return
			}
			tx.Release(newer.TopicID, AppendKey(nil, newer.Topic, newer.RecordKey), newer.Partition, 30)
		})
		live := map[string]bool{}
		for part := range int32(2) {
			ends, err := b.cluster.Admin().ListEndOffsets(t.Context(), b.set.Topic.Name)
			if err != nil {
				t.Fatal(err)
			}
			end, _ := ends.Lookup(b.set.Topic.Name, part)
			if err := kafka.Scan(t.Context(), b.cl, b.set.Topic, part, 0, end.Offset, func(r *kgo.Record) error {
				if live[string(r.Key)] = r.Value != nil; r.Value == nil {
					delete(live, string(r.Key))
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if want := map[bool]int{true: 2, false: 0}[again]; len(live) != want || live[string(raw(older))] {
			t.Errorf("parked again %v: in the topic are %v, want %d", again, live, want)
		}
		b.load()
		if !again && b.set.Len() != 0 {
			t.Errorf("after all %q is parked", b.has())
		}
	}
}

// Somebody else wrote to the topic. If this failed, nobody could tell which
// record it is, and a tombstone for its key would not help before the cleaner
// has been there.
func TestRecordThatIsNotOurs(t *testing.T) {
	b := newBed(t)
	b.commit(true, func(tx *Txn) { tx.Park(of("k", 10, "older")) })
	write := func(value []byte) {
		t.Helper()
		if err := b.cl.ProduceSync(t.Context(), &kgo.Record{Topic: b.set.Topic.Name, Partition: 1, Key: []byte("who"), Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("what"))
	load := func() error {
		return b.set.Load(t.Context(), b.cl, b.cluster, []int32{0, 1}, func(string, int32) bool { return true })
	}
	for _, err := range []error{b.set.Follow(t.Context(), b.cl, b.cluster), load()} {
		if !problem.Has(err, ErrForm) || !strings.Contains(err.Error(), "partition 1") || !strings.Contains(err.Error(), `"who"`) {
			t.Fatalf("got %v, want TW-PARKED-FORM with the record", err)
		}
	}
	write(nil) // Remedy: TW-PARKED-FORM
	if err := load(); err != nil {
		t.Fatal(err)
	}
	b.want("k@10 x1")
}
