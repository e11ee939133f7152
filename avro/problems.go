// Package avro carries changes in and out of Avro: the contracts of the
// canonical topics, Debezium's envelope for the raw ones, a hot encoder and a
// hot decoder between change.Batch and Confluent's wire format, and the client
// of the schema registry. problems.go is what can go wrong with them.
package avro

import "github.com/tallywire/tallywire/internal/problem"

// The problems of schemas, records and the registry. None of their texts ever
// holds the value of a field: fields may be restricted (invariant 13).
var (
	ErrDecimalOverflow = problem.Define("TW-AVRO-DECIMAL-OVERFLOW", problem.Reject,
		"A number has more digits than its schema allows.",
		"Widen precision or scale in the contract (avro/contracts) or of the source's column, or correct the number, then retry the parked record.")
	ErrNoForm = problem.Define("TW-AVRO-NO-FORM", problem.Reject,
		"A value that the field of a contract cannot hold: NaN or infinity in a number, infinity in a date or time, an array with several dimensions.",
		"Correct the value at the source: the corrected row takes the place of the parked one. Or map the column to a text.")
	ErrNull = problem.Define("TW-AVRO-NULL", problem.Reject,
		"A null in a field that its schema says is never null.",
		"Fill the value at the source, or make the field nullable in the contract, then retry the parked record.")
	ErrKind = problem.Define("TW-AVRO-TYPE", problem.Reject,
		"A value of another type than its field.",
		"Correct the mapping that fills the field; docs/types.md lists what fits.")
	ErrUnchanged = problem.Define("TW-AVRO-UNCHANGED", problem.Reject,
		"A value that the source did not resend, where the record must be complete.",
		"Set REPLICA IDENTITY FULL on the source's table, so that every update carries all columns.")
	ErrGarbage = problem.Define("TW-AVRO-GARBAGE", problem.Reject,
		"The octets are no Avro record in Confluent's wire format, or do not follow their schema.",
		"Find out who writes to the topic; discard the parked record once that is known.")
	ErrUnknownSchema = problem.Define("TW-AVRO-UNKNOWN-SCHEMA", problem.Reject,
		"The registry does not know the schema id that a record names.",
		"Check that writer and reader use the same registry; register the schema, then retry the parked record.")
	ErrUnreadableSchema = problem.Define("TW-AVRO-SCHEMA", problem.Reject,
		"The schema that a record was written with is invalid, or has a type that tallywire does not read.",
		"Write the topic with a schema that follows docs/types.md, then retry the parked record.")
	ErrTable = problem.Define("TW-AVRO-TABLE", problem.Halt,
		"A table that no Avro schema can describe, or that does not fit the contract of its topic.",
		"Rename the column or correct the contract or the mapping as the message says.")
	ErrRegistryUnavailable = problem.Define("TW-REGISTRY-UNAVAILABLE", problem.Retry,
		"The schema registry cannot be reached or does not answer properly.",
		"Check registry.url and that the registry runs; work goes on by itself when it answers.")
	ErrRegistryDenied = problem.Define("TW-REGISTRY-DENIED", problem.Halt,
		"The schema registry refuses the request.",
		"Give the user in registry.url the right to read and register schemas.")
	ErrIncompatible = problem.Define("TW-REGISTRY-INCOMPATIBLE", problem.Halt,
		"A new schema is not compatible with those that its subject has.",
		"Undo the change of the table or contract, or set another compatibility level for the subject if every reader can take it.")
)
