// Topics: made before they are used, never by the broker's own accord, and
// checked against what they were filled with.

package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// TopicSpec says how a topic must be.
type TopicSpec struct {
	Name       string
	Partitions int32         // what it must have; 0: whatever it has
	Default    int32         // what it is made with when Partitions is 0; 0: 1
	Compact    bool          // cleanup.policy compact instead of delete
	Retention  time.Duration // how long records stay under delete; 0: for ever
	// Config holds more topic settings for its creation, e.g. max.message.bytes.
	Config map[string]string
}

// EnsureTopic creates the topic unless it is there. One that exists keeps its
// settings, but must have the number of partitions of spec
// (TW-KAFKA-PARTITIONS). Two processes that create it
// at once both succeed.
func (c *Cluster) EnsureTopic(ctx context.Context, spec TopicSpec) (*change.Topic, error) {
	t, err := c.Topic(ctx, spec.Name)
	switch {
	case err == nil:
	case problem.Has(err, ErrTopicName) && change.TopicLegal(spec.Name) != "":
		return nil, illegalName(spec.Name)
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		if err := c.create(ctx, spec); err != nil {
			return nil, err
		}
		if t, err = c.awaitTopic(ctx, spec.Name); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	if spec.Partitions > 0 && t.Partitions != spec.Partitions {
		return nil, ErrPartitions.New("topic %q has %d partitions, not %d", t.Name, t.Partitions, spec.Partitions)
	}
	return t, nil
}

func illegalName(topic string) error {
	return ErrTopicName.New("creating a topic: %s", change.TopicLegal(topic))
}

func (c *Cluster) create(ctx context.Context, spec TopicSpec) error {
	if change.TopicLegal(spec.Name) != "" { // other brokers than Apache's may take it
		return illegalName(spec.Name)
	}
	conf := map[string]*string{}
	set := func(k, v string) { conf[k] = &v }
	if spec.Compact {
		set("cleanup.policy", "compact")
		// Kafka looks at it under delete only; kfake always, and would take
		// the newest version of a row that was changed a week ago.
		set("retention.ms", "-1")
		if keep := c.cfg.DeleteRetention; keep > 0 {
			set("delete.retention.ms", strconv.FormatInt(keep.Milliseconds(), 10))
		}
	} else {
		set("cleanup.policy", "delete")
		ms := int64(-1)
		if spec.Retention > 0 {
			ms = spec.Retention.Milliseconds()
		}
		set("retention.ms", strconv.FormatInt(ms, 10))
	}
	for k, v := range spec.Config {
		set(k, v)
	}
	// Replication is the broker's default (-1), so that a cluster of three
	// brokers gets what its operator chose.
	n := spec.Partitions
	if n == 0 {
		n = max(spec.Default, 1)
	}
	res, err := c.admin.CreateTopic(ctx, n, -1, conf, spec.Name)
	if err == nil {
		err = res.Err
	}
	if errors.Is(err, kerr.InvalidTopicException) {
		if other, found := c.alike(ctx, spec.Name); found == nil && other != "" {
			return ErrTopicName.New("creating topic %q beside %q: names that differ in '.' and '_' alone are the same to Kafka: %w", spec.Name, other, err)
		}
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return Wrap(err, "creating topic %q", spec.Name)
	}
	return nil
}

// alike is the topic with which Kafka takes a name for the same; "": none.
func (c *Cluster) alike(ctx context.Context, name string) (string, error) {
	all, err := c.TopicsOf(ctx, "")
	for _, t := range all {
		if t != name && change.TopicFold(t) == change.TopicFold(name) {
			return t, nil
		}
	}
	return "", err
}

// awaitTopic waits until the broker that we ask knows a topic just created.
func (c *Cluster) awaitTopic(ctx context.Context, name string) (*change.Topic, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		t, err := c.Topic(ctx, name)
		if err == nil || !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return t, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// Topic reads a topic as it exists now: TW-KAFKA-NO-TOPIC (and
// kerr.UnknownTopicOrPartition below it) if it does not. The same topic gives
// the same pointer.
func (c *Cluster) Topic(ctx context.Context, name string) (*change.Topic, error) {
	ts, err := c.Topics(ctx, name)
	if err != nil {
		return nil, err
	}
	if ts[name] == nil {
		return nil, ErrNoTopic.New("topic %q: %w", name, kerr.UnknownTopicOrPartition)
	}
	return ts[name], nil
}

// Topics reads those of the topics that exist now, by name, as Topic does. One
// broker answers; one that has just come up may know less than there is.
func (c *Cluster) Topics(ctx context.Context, names ...string) (map[string]*change.Topic, error) {
	if len(names) == 0 {
		return nil, nil // asked for none, Kafka tells of all
	}
	// Asked directly: kadm and kgo would answer from what they heard a moment
	// ago, when the topic may have been another.
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range names {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, rt)
	}
	what := fmt.Sprintf("topic %q", names[0])
	if n := len(names) - 1; n > 0 {
		what += fmt.Sprintf(" and %d more", n)
	}
	resp, err := req.RequestWith(ctx, c.shared)
	if err != nil {
		return nil, Wrap(err, "reading about %s", what)
	}
	if len(resp.Topics) != len(names) {
		return nil, ErrUnavailable.New("reading about %s: the answer is about %d topics", what, len(resp.Topics))
	}
	out := make(map[string]*change.Topic, len(names))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range resp.Topics {
		d := &resp.Topics[i]
		if d.Topic == nil {
			return nil, ErrUnavailable.New("reading about %s: the answer names no topic", what)
		}
		name := *d.Topic
		switch err := kerr.ErrorForCode(d.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			return nil, Wrap(err, "reading about topic %q", name)
		}
		t := &change.Topic{Name: name, ID: d.TopicID, Partitions: int32(len(d.Partitions))}
		if was := c.topics[name]; was != nil && *was == *t {
			t = was
		}
		c.topics[name], out[name] = t, t
	}
	return out, nil
}

// CompactedOnly tells of which topics records go by compaction alone
// (cleanup.policy is compact and not delete): a newer one of the same key is
// there for each that is gone, or its tombstone was. Kafka refuses DeleteRecords
// on them. A topic whose settings we may not read is not said to be one.
func (c *Cluster) CompactedOnly(ctx context.Context, names ...string) (map[string]bool, error) {
	all, err := c.Settings(ctx, names...)
	out := map[string]bool{}
	for name, settings := range all {
		out[name] = settings["cleanup.policy"] == "compact"
	}
	return out, err
}

// Settings are those of topics, by topic and name. One whose settings we may not
// read, or that is not there, has none.
func (c *Cluster) Settings(ctx context.Context, names ...string) (map[string]map[string]string, error) {
	rs, err := c.admin.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return nil, Wrap(err, "reading the settings of topics %q", names)
	}
	out := map[string]map[string]string{}
	for _, r := range rs {
		if errors.Is(r.Err, kerr.TopicAuthorizationFailed) || errors.Is(r.Err, kerr.UnknownTopicOrPartition) {
			continue // to read a topic does not take the right to know
		}
		if r.Err != nil {
			return nil, Wrap(r.Err, "reading the settings of topic %q", r.Name)
		}
		out[r.Name] = map[string]string{}
		for _, k := range r.Configs {
			if k.Value != nil {
				out[r.Name][k.Key] = *k.Value
			}
		}
	}
	return out, nil
}

// MaxRecordBytes is the largest batch that the topic takes, in octets
// (max.message.bytes): a single record must stay below it by the overhead of
// a batch.
func (c *Cluster) MaxRecordBytes(ctx context.Context, name string) (int, error) {
	rs, err := c.admin.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return 0, Wrap(err, "reading the settings of topic %q", name)
	}
	r, err := rs.On(name, nil)
	if err == nil {
		err = r.Err
	}
	if err != nil {
		return 0, Wrap(err, "reading the settings of topic %q", name)
	}
	for _, k := range r.Configs {
		if k.Key == "max.message.bytes" && k.Value != nil {
			n, err := strconv.Atoi(*k.Value)
			if err != nil {
				return 0, ErrUnavailable.New("topic %q: max.message.bytes is %q", name, *k.Value)
			}
			return n, nil
		}
	}
	return 1_048_588, nil // Kafka's default
}
