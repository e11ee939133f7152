// Package enginetest is what the loops are tested with: a broker (kfake, or
// Apache Kafka) behind a proxy that loses what a test says, a registry, topics
// that a test fills, stages and sinks that fail as it says, and readers that
// count every record. Only tests import it.
package enginetest
