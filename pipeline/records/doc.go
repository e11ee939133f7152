// Package records is how a change becomes records of Kafka: Outputs knows the
// topics and encoders, a Buffer holds what was encoded and what was Refused.
// Ingest and the transform loop both write through it.
//
// A raw change (its Table has a Source) gives Debezium's records: an envelope;
// a delete gives an envelope and a tombstone; a change of the key gives a
// delete and a tombstone of the old key and a create of the new one, which
// name each other by the headers __debezium.newkey and __debezium.oldkey; a
// truncate gives one envelope without key in every partition, so that each
// reader meets it in order. A canonical change gives the contract's record, or
// a tombstone.
package records
