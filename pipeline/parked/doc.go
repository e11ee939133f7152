// Package parked is what a loop does with records that it cannot take: their
// form, the set of those that are parked now, and the commands about them.
//
// A record of `_tallywire.parked.<name>`:
//
//	key    topic 0x1F record key        (a record without key: "@partition/offset")
//	value  4 octets n, big-endian · n octets of JSON (meta) · the original value
//
// A null value is the release. What a source parks is kept beside it, in parts
// with the key 0x1F 0x1F <number, 8 hexadecimal digits> 0x1F <key of the parked
// record>, which lie before it; their values together are its records
// (appendRecord). A command has the header tw.command, the key
// 0x1F command 0x1F <key of the parked record>, so that compaction keeps both,
// and as its value a copy of the parked record that it is about, without the
// original value. A retry is about whichever version of the record is parked, a
// discard about that very one. Its null value says that it was done; with the
// header tw.outcome, that there was nothing to do.
package parked
