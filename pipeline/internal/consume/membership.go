// Membership: this process's place in a consumer group, across the sessions
// that come and go. Members are static: a process that was killed finds its
// place as it left it when it starts again, and needs not wait until its
// former session has run out. Who stops on purpose gives the place back.

package consume

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/clock"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

const (
	// How long the group waits for a member that is gone and does not come
	// back, before others get its partitions.
	sessionTimeout = 30 * time.Second
	heartbeatEvery = time.Second
	// How long a farewell may take: the broker may be down as well.
	farewell = 2 * time.Second
)

// Membership is used by one loop, which runs one session after another.
type Membership struct {
	cluster  *kafka.Cluster
	group    string
	instance string
	log      *slog.Logger

	held   bool   // a session ended and the place was not given back
	member string // as the group named us in it; "": not known
	// When a session was closed that did not know its name yet. Its first join
	// may still lie in a socket, arrive after that of the next session, and
	// take the place from us.
	nameless time.Time
}

// NewMembership: the place is that of the instance for these topics. (To a
// static member that comes back, the group gives its former partitions
// whatever it now asks for; with other topics it must be another member.)
func NewMembership(env *pipeline.Env, comp *slog.Logger, group string, topics []string) *Membership {
	h := fnv.New32a()
	for _, t := range slices.Sorted(slices.Values(topics)) {
		h.Write([]byte(t + "\x00")) // never fails
	}
	return &Membership{
		cluster: env.Kafka, group: group, log: comp,
		instance: env.Instance + "." + strconv.FormatUint(uint64(h.Sum32()), 36),
	}
}

// Instance names the place in the group.
func (m *Membership) Instance() string { return m.instance }

func (m *Membership) opts() []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumerGroup(m.group),
		kgo.InstanceID(m.instance),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeatEvery),
	}
}

// Close ends a session that failed with err and says what to make of it. The
// place is kept for the next session, unless others wait for its partitions.
func (m *Membership) Close(ctx context.Context, cl *kgo.Client, err error) error {
	member, generation := cl.GroupMetadata()
	cl.CloseAllowingRebalance()
	if member == "" {
		m.nameless = time.Now()
	}
	m.held, m.member = true, member
	if ctx.Err() != nil || pipeline.Classify(err) != problem.Retry {
		return m.judge(err) // the loop ends; leave comes
	}
	if member == "" {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	switch herr := m.cluster.Heartbeat(asking, m.group, m.instance, member, generation); {
	case errors.Is(herr, kerr.FencedInstanceID):
		return m.judge(Fenced(herr, "after: %v", err))
	case errors.Is(herr, kerr.RebalanceInProgress):
		m.Leave(ctx)
	}
	return err
}

// judge turns being fenced by a join of our own into an outage, and notes when
// the place is not ours any more.
func (m *Membership) judge(err error) error {
	if !problem.Has(err, pipeline.ErrFenced) {
		return err
	}
	if errors.Is(err, kerr.FencedInstanceID) && clock.Since(m.nameless) < sessionTimeout+farewell {
		return kafka.ErrUnavailable.New("a late join of this process took its own place in group %s: %s", m.group, err)
	}
	m.held = false
	return err
}

// Leave gives back a place that is still held, so that the group is empty, or
// others get the partitions, at once.
func (m *Membership) Leave(ctx context.Context) {
	if !m.held {
		return
	}
	m.held = false
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if err := m.cluster.LeaveGroup(ctx, m.group, m.instance, m.member); err != nil && !errors.Is(err, kerr.FencedInstanceID) {
		m.log.Warn("the group keeps this process's place until its session has run out", "group", m.group, "session", sessionTimeout, "err", err)
	}
}

// Fenced is the problem of a member whose place another process took.
func Fenced(err error, format string, args ...any) error {
	return pipeline.ErrFenced.New("another process with the same instance joined the group: %w: "+format, append([]any{err}, args...)...)
}

// ProducerError judges an error of a transactional producer whose transaction
// began then. A producer of the same id that came after us means that we are
// replaced (kafka.Replaced); of anything else but a refusal nobody knows what
// became of the transaction.
func ProducerError(err error, began time.Time, timeout time.Duration, format string, args ...any) error {
	werr := kafka.Wrap(err, format, args...)
	switch {
	case errors.Is(err, context.Canceled):
		return werr
	case errors.Is(err, kerr.FencedInstanceID):
		return Fenced(err, format, args...)
	case kafka.Replaced(err, began, timeout):
		return pipeline.ErrFenced.New("%w", werr)
	case problem.Has(werr, kafka.ErrRefused), problem.Has(werr, kafka.ErrTopicName):
		return werr
	}
	return pipeline.ErrTxnUnknown.New("%w", werr)
}

// SessionError is what the group's management found, if it found anything: it
// goes on by itself, and would go on without end with what cannot succeed.
func SessionError(a *Assignment, fs kgo.Fetches) error {
	for _, e := range fs.Errors() {
		var of *kgo.ErrGroupSession
		if errors.As(e.Err, &of) {
			return fetchError(a, kgo.FetchTopicPartition{FetchPartition: kgo.FetchPartition{Err: e.Err}})
		}
	}
	return nil
}
