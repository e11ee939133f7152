// Kafka's problems: what passes, and what does not.

package kafka

import (
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/clock"
	"github.com/tallywire/tallywire/internal/problem"
)

// Kafka's problems.
var (
	ErrConfig = problem.Define("TW-KAFKA-CONFIG", problem.Halt,
		"The settings of the Kafka cluster cannot be used.",
		"Set kafka.brokers to a list of host:port.")
	ErrUnavailable = problem.Define("TW-KAFKA-UNAVAILABLE", problem.Retry,
		"Kafka does not answer, or not as it should for now.",
		"Nothing is lost: work goes on when Kafka is back. If it is up, check kafka.brokers and its advertised.listeners.")
	ErrRefused = problem.Define("TW-KAFKA-REFUSED", problem.Halt,
		"Kafka refuses the request for good: no right, or a version without what we need.",
		"Give tallywire's user Create, Describe, DescribeConfigs, Read, Write and Delete on its topics, Describe on the topic __consumer_offsets, Read and Describe on its groups, Describe and Write on transactional ids with the prefix tallywire, and ClusterAction on the cluster; Kafka 2.8 or newer. Then start again.")
	ErrTopicName = problem.Define("TW-KAFKA-TOPIC-NAME", problem.Halt,
		"Kafka does not take the name of a topic: it is not legal, too long, or the same as another's but for '.' and '_'.",
		"Have what fills the topic call it otherwise, as the message says: of a table, `topics: {schema.table: source.name}` of its source, or leave it out in `tables` (\"!schema.table\"). Of a topic that nobody needs any more, delete it. Then start again.")
	ErrPartitions = problem.Define("TW-KAFKA-PARTITIONS", problem.Halt,
		"A topic has another number of partitions than it was filled with.",
		"A key would move to another partition and lose its order. Set `partitions` back to what the topic has; or delete the topic if its records are not needed, or come again (docs/recovery.md), then start again.")
	ErrNoTopic = problem.Define("TW-KAFKA-NO-TOPIC", problem.Retry,
		"A topic that is read does not exist yet.",
		"Start the component that writes it, or check the name.")
	ErrOffsetRange = problem.Define("TW-OFFSET-OUT-OF-RANGE", problem.Halt,
		"Records that were to be read next are no longer in Kafka.",
		"If the missing range may be skipped, set the group's offset, with kafka-consumer-groups --reset-offsets or `tallywire replay`, and start again; otherwise start the source over (docs/recovery.md). Raise the topic's retention.")
)

// refused reports whether trying again cannot help.
func refused(err error) bool {
	for _, e := range []*kerr.Error{
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed,
		kerr.TransactionalIDAuthorizationFailed, kerr.SaslAuthenticationFailed, kerr.UnsupportedVersion,
		kerr.InvalidConfig, kerr.InvalidReplicationFactor, kerr.PolicyViolation,
		kerr.UnsupportedSaslMechanism, kerr.InvalidTransactionTimeout,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Fenced reports whether a newer producer with the same transactional id, or a
// newer member in the same place of its group, was seen.
func Fenced(err error) bool {
	return errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.FencedInstanceID)
}

// Replaced reports whether err says that another producer took our transactional
// id. Kafka gives the same answer when a transaction has timed out, so it is
// so only while one of ours that began then cannot have: for nine tenths of its
// timeout, time in which the machine was suspended included.
func Replaced(err error, began time.Time, timeout time.Duration) bool {
	return Fenced(err) && clock.Since(began) < timeout/10*9
}
