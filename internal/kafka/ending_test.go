package kafka

import (
	"crypto/rand"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/testkit"
)

// slowStart partitions records while the client learns of their topic: the
// first when all are buffered, the last when it is let go.
type slowStart struct{ buffered, last chan struct{} }

func (s slowStart) ForTopic(string) kgo.TopicPartitioner { return s }

func (slowStart) RequiresConsistency(*kgo.Record) bool { return true }

func (s slowStart) Partition(r *kgo.Record, _ int) int {
	if string(r.Value) == "last" {
		<-s.last
		return -1 // refused
	}
	<-s.buffered
	return 0
}

// awaiting is a client's log in which something is waited for.
type awaiting struct {
	what string
	then func()
}

func (awaiting) Level() kgo.LogLevel { return kgo.LogLevelInfo }

func (a awaiting) Log(_ kgo.LogLevel, msg string, _ ...any) {
	if strings.HasPrefix(msg, a.what) {
		a.then()
	}
}

// A12. Lost if this fails: a client that writes to a topic for the first time
// takes its transaction for empty, aborts it, and says that it is committed.
func TestCommitOfATopicThatIsNew(t *testing.T) {
	t.Run("kfake", func(t *testing.T) {
		fake, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		defer fake.Close()
		commitsWhatIsNew(t, fake.ListenAddrs()[0])
	})
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		commitsWhatIsNew(t, testkit.SharedKafka(t).Addr())
	})
}

func commitsWhatIsNew(t *testing.T, addr string) {
	ctx := t.Context()
	c, name := clusterAt(t, addr), "new."+rand.Text()
	if _, err := c.EnsureTopic(ctx, TopicSpec{Name: name, Partitions: 1}); err != nil {
		t.Fatal(err)
	}
	s := slowStart{make(chan struct{}), make(chan struct{})}
	letGo := sync.OnceFunc(func() { close(s.last) })
	// The client is still learning of the topic when its first record is
	// acknowledged, and until somebody waits for that.
	id := ours("tallywire."+name, name)
	cl, err := c.Client(append(id.Opts(c), kgo.RecordPartitioner(s),
		kgo.WithLogger(awaiting{"producer state set to aborting", letGo}))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	defer letGo()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	acknowledged := make(chan error, 1)
	cl.Produce(ctx, &kgo.Record{Topic: name, Value: []byte("first")}, func(_ *kgo.Record, err error) { acknowledged <- err })
	cl.Produce(ctx, &kgo.Record{Topic: name, Value: []byte("last")}, nil)
	close(s.buffered)
	if err := <-acknowledged; err != nil {
		t.Fatal(err)
	}
	if err := Commit(ctx, cl); err != nil {
		t.Fatal(err)
	}
	if err := c.TakeOver(ctx, id); err != nil { // it waits for the markers
		t.Fatal(err)
	}
	if got := committed(t, c, name, 1); got["first"] != 1 || len(got) != 1 {
		t.Errorf("what was committed reads as %v", got)
	}
}
