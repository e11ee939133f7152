package kafka

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/testkit"
)

func ours(id string, topics ...string) Transactional {
	return Transactional{ID: id, Timeout: 20 * time.Second, Topics: func(context.Context) ([]string, error) { return topics, nil }}
}

// commitOne writes a record in a transaction of its own.
func commitOne(ctx context.Context, cl *kgo.Client, topic string, part int32, value string, end kgo.TransactionEndTry) error {
	if err := cl.BeginTransaction(); err != nil {
		return err
	}
	if err := cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: part, Value: []byte(value)}).FirstErr(); err != nil {
		return err
	}
	return cl.EndTransaction(ctx, end)
}

// committed reads all values of a topic that were committed, and fails while
// something is open in it.
func committed(t *testing.T, c *Cluster, topic string, parts int32) map[string]int {
	t.Helper()
	ctx := t.Context()
	meta, err := c.Topic(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	ends, err := c.Admin().ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	if open, err := c.unstable(ctx, []string{topic}); err != nil || len(open) > 0 {
		t.Fatalf("open in %v, for %s; %v", open, c.Holders(ctx, topic), err)
	}
	seen := map[string]int{}
	for part := range parts {
		e, _ := ends.Lookup(topic, part)
		if err := Scan(ctx, c.Shared(), meta, part, 0, e.Offset, func(r *kgo.Record) error {
			if !r.Attrs.IsControl() {
				seen[string(r.Value)]++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return seen
}

// Lost if this fails: a broker comes back and has left a transaction open, and
// its producer, who lives, goes on over it; or who takes over does.
func TestTransactional(t *testing.T) {
	k := testkit.NewKafka(t, embedded.KafkaOptions{Settings: map[string]string{"transaction.partition.verification.enable": "false"}})
	ctx := t.Context()
	proxy, err := testkit.NewKafkaProxy(k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	c, direct := clusterAt(t, k.Addr(), kgo.Dialer(proxy.Dial)), clusterAt(t, k.Addr())
	for i, commit := range []bool{true, false} {
		busy, quiet := fmt.Sprintf("busy.%d", i), fmt.Sprintf("quiet.%d", i)
		for _, name := range []string{busy, quiet} {
			if _, err := direct.EnsureTopic(ctx, TopicSpec{Name: name, Partitions: 1}); err != nil {
				t.Fatal(err)
			}
		}
		id := ours(fmt.Sprintf("tallywire.%d", i), busy, quiet)
		end := kgo.TryAbort
		if commit {
			end = kgo.TryCommit
		}
		want := func(when string, n int) {
			t.Helper()
			if got := committed(t, direct, quiet, 1)["of an open transaction"]; commit && got != n || !commit && got != 0 {
				t.Fatalf("%s, commit %v: %d are seen", when, commit, got)
			}
		}
		start := func() *kgo.Client {
			t.Helper()
			if err := c.TakeOver(ctx, id); err != nil {
				t.Fatal(err)
			}
			cl, err := c.Client(append(id.Opts(c), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cl.Close)
			return cl
		}
		cl := start()
		if err := commitOne(ctx, cl, busy, 0, "first", end); err != nil {
			t.Fatal(err)
		}
		if err := leaveOpen(ctx, direct, quiet, id.ID, 1); err != nil {
			t.Fatal(err)
		}
		proxy.Cut()
		proxy.Mend()
		if err := commitOne(ctx, cl, busy, 0, "second", end); err != nil {
			t.Fatal(err)
		}
		want("who lived goes on", 1)
		if err := leaveOpen(ctx, direct, quiet, id.ID, 1); err != nil {
			t.Fatal(err)
		}
		cl.Close()
		cl = start()
		want("who takes over begins", 2)
		// What a predecessor has open is aborted, whichever way it is left.
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: busy, Value: []byte("open")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		cl = start()
		if n := committed(t, direct, busy, 1)["open"]; n != 0 {
			t.Fatal("what was open was committed")
		}
		// Older than the last decision: nobody knows what it was.
		for range 2 {
			if err := commitOne(ctx, cl, busy, 0, "third", kgo.TryCommit); err != nil {
				t.Fatal(err)
			}
		}
		if err := leaveOpen(ctx, direct, quiet, id.ID, 2); err != nil {
			t.Fatal(err)
		}
		if err := c.TakeOver(ctx, id); !problem.Has(err, ErrUndecided) || !strings.Contains(err.Error(), quiet) {
			t.Fatalf("of a forgotten decision it says %v", err)
		}
		if commit {
			continue
		}
		// Remedy: TW-KAFKA-UNDECIDED
		open, err := direct.openIn(ctx, []string{quiet})
		if err != nil || len(open) != 1 {
			t.Fatalf("open are %v, %v", open, err)
		}
		if out, err := k.Tool(ctx, "org.apache.kafka.tools.TransactionsCommand", "--bootstrap-server", k.Addr(),
			"abort", "--topic", quiet, "--partition", "0", "--start-offset", fmt.Sprint(open[0].CurrentTxnStartOffset)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := c.TakeOver(ctx, id); err != nil {
			t.Fatal(err)
		}
		want("who takes over", 0)
	}
}

// Lost if this fails: a client whose dialer looks first speaks in the clear.
func TestTransactionalOverTLS(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer web.Close()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(&tls.Config{Certificates: web.TLS.Certificates}))
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	ctx := t.Context()
	c := clusterAt(t, fake.ListenAddrs()[0], kgo.DialTLSConfig(web.Client().Transport.(*http.Transport).TLSClientConfig))
	if _, err := c.EnsureTopic(ctx, TopicSpec{Name: "raw", Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	id := ours("tallywire.tls", "raw")
	if err := c.TakeOver(ctx, id); err != nil {
		t.Fatal(err)
	}
	cl, err := c.Client(append(id.Opts(c), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := commitOne(ctx, cl, "raw", 0, "one", kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if n := committed(t, c, "raw", 1)["one"]; n != 1 {
		t.Fatalf("it is there %d times", n)
	}
}

// The same with a broker that is killed in the middle of what many do: all that
// was told to be committed is there once, nothing else, and nothing is open.
func TestTransactionalOutlivesABroker(t *testing.T) {
	const (
		writers, kills = 8, 2
		parts          = 2*kills + 2
	)
	k := testkit.NewKafka(t, embedded.KafkaOptions{})
	ctx := t.Context()
	c := clusterAt(t, k.Addr())
	var (
		mu    sync.Mutex
		told  [writers]map[string]bool // whether it was committed; absent: not known
		wg    sync.WaitGroup
		pause = make(chan struct{})
		done  = make(chan struct{}, 1<<20) // one for each commit
		round atomic.Int32                 // what was written before a kill is not written over after it
	)
	for i := range writers {
		told[i] = map[string]bool{}
		name := fmt.Sprintf("raw.%d", i)
		if _, err := c.EnsureTopic(ctx, TopicSpec{Name: name, Partitions: parts}); err != nil {
			t.Fatal(err)
		}
		id := ours("tallywire."+name, name)
		wg.Go(func() {
			var cl *kgo.Client
			defer func() {
				if cl != nil {
					cl.Close()
				}
			}()
			for n := 0; ; n++ {
				select {
				case <-pause:
					return
				default:
				}
				for cl == nil {
					err := c.TakeOver(ctx, id)
					if err == nil {
						cl, err = c.Client(append(id.Opts(c), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
					}
					switch {
					case ctx.Err() != nil:
						return
					case err != nil && !problem.Has(err, ErrUnavailable):
						t.Errorf("%s: %v", name, err)
						return
					}
				}
				value := fmt.Sprint(n)
				if err := commitOne(ctx, cl, name, 2*round.Load()+int32(n%2), value, kgo.TryCommit); err != nil {
					cl.Close()
					cl = nil
					continue
				}
				mu.Lock()
				told[i][value] = true
				mu.Unlock()
				done <- struct{}{}
			}
		})
	}
	busy := func() {
		for range len(done) + 30*writers {
			select {
			case <-done:
			case <-time.After(testkit.Patience):
				t.Fatal("the writers stand still")
			}
		}
	}
	for range kills {
		busy()
		if err := k.Kill(); err != nil {
			t.Fatal(err)
		}
		round.Add(1)
		if err := k.Restart(ctx); err != nil {
			t.Fatal(err)
		}
	}
	busy()
	close(pause)
	wg.Wait()
	for i := range writers {
		name := fmt.Sprintf("raw.%d", i)
		if err := c.TakeOver(ctx, ours("tallywire."+name, name)); err != nil { // of an id that failed at last
			t.Fatal(err)
		}
		seen := committed(t, c, name, parts)
		for v := range told[i] {
			if seen[v] != 1 {
				t.Errorf("%s: %s was committed, and is there %d times", name, v, seen[v])
			}
		}
		if extra := len(seen) - len(told[i]); extra > kills*2 {
			t.Errorf("%s: %d of %d were not told to be committed", name, extra, len(seen))
		}
	}
}
