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
		"Correct the number at its source: the corrected row takes the place of the parked one. If such numbers are right, the contract is too narrow; it is part of the program (docs/extending.md).")
	ErrNoForm = problem.Define("TW-AVRO-NO-FORM", problem.Reject,
		"A value that the field of a contract cannot hold: NaN or infinity in a number, infinity in a date or time.",
		"Correct the value at its source: the corrected row takes the place of the parked one.")
	ErrNull = problem.Define("TW-AVRO-NULL", problem.Reject,
		"A null in a field that its schema says is never null.",
		"Fill the value at its source: the filled row takes the place of the parked one.")
	ErrKind = problem.Define("TW-AVRO-TYPE", problem.Reject,
		"A value of another type than its field.",
		"Have the sender send what docs/types.md lists for the field's type: the row's next record takes the place of the parked one.")
	ErrUnchanged = problem.Define("TW-AVRO-UNCHANGED", problem.Reject,
		"A value that the source did not resend, where the record must be complete.",
		"Set REPLICA IDENTITY FULL on the source's table, so that every update carries all columns, then touch the row (any update): it takes the place of the parked one.")
	ErrGarbage = problem.Define("TW-AVRO-GARBAGE", problem.Reject,
		"The octets are no Avro record in Confluent's wire format, or do not follow their schema.",
		"Find out who writes to the topic; discard the parked record once that is known.")
	ErrUnknownSchema = problem.Define("TW-AVRO-UNKNOWN-SCHEMA", problem.Reject,
		"The registry does not know the schema id that a record names.",
		"Check that writer and reader use the same registry. If that has lost the schema, register it there under the same id (mode IMPORT), then `tallywire parked retry STAGE --all`; else have the record written again, or discard it.")
	ErrUnreadableSchema = problem.Define("TW-AVRO-SCHEMA", problem.Reject,
		"The schema that a record was written with is invalid, or has a type that tallywire does not read.",
		"Have the record written again with a schema that follows docs/types.md: it takes the place of the parked one. One without a key has to be discarded.")
	ErrContract = problem.Define("TW-CONTRACT", problem.Halt,
		"A contract cannot be used.",
		"Correct the file that the message names; `tallywire contracts show TOPIC --avro` prints one that is good.")
	ErrTable = problem.Define("TW-AVRO-TABLE", problem.Halt,
		"A table that no Avro schema can describe, or that does not fit the contract of its topic.",
		"Rename the column or correct the mapping as the message says, then start again.")
	ErrRegistryUnavailable = problem.Define("TW-REGISTRY-UNAVAILABLE", problem.Retry,
		"The schema registry cannot be reached or does not answer properly.",
		"Check registry.url and that the registry runs; work goes on by itself when it answers.")
	ErrRegistryDenied = problem.Define("TW-REGISTRY-DENIED", problem.Halt,
		"The schema registry refuses the request.",
		"Give the user in registry.url the right to read and register schemas, then start again.")
	ErrIncompatible = problem.Define("TW-REGISTRY-INCOMPATIBLE", problem.Halt,
		"A new schema is not compatible with those that its subject has.",
		"If every reader can take the new schema, register it all the same: of a contract by `tallywire contracts register --breaking`. A table goes to quarantine (`tallywire schema list`) where the registry lets us set the level of a subject, and else halts its source: give its user that right; or set the level of the table's subject: curl -X PUT -H 'Content-Type: application/json' -d '{\"compatibility\": \"NONE\"}' REGISTRY/config/SUBJECT. Then start again and, once a row of the table came through, set it back: curl -X DELETE REGISTRY/config/SUBJECT.")
)
