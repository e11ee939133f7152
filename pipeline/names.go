// The names of groups, as Kafka's own tools show them.

package pipeline

// GroupOf is the consumer group of a transform or a sink.
func GroupOf(name string) string { return "tallywire." + name }
