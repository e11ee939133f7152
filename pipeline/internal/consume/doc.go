// Package consume is what the loops that read from Kafka share: a place in a
// consumer group (Membership), the partitions owned in it (Assignment), and the
// records of a poll (Polled).
package consume
