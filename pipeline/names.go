// Names of topics and groups, as Kafka's own tools show them.

package pipeline

// PositionsTopicOf is the topic that keeps the position of a source.
func PositionsTopicOf(source string) string { return "_tallywire.positions." + source }

// GroupOf is the consumer group of a transform or a sink.
func GroupOf(name string) string { return "tallywire." + name }
