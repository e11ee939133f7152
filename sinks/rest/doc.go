// Package rest is the sink for ERP and PSA systems behind a REST API, with one
// profile so far: Microsoft Dynamics 365 Business Central.
//
// It takes ps.customer, ps.resource, ps.project and ps.time_entry, and delivers
// customers, employees, projects, and approved time with a work date from the
// go-live date on; never draft, submitted or rejected time, never history.
//
// Exactly once (invariant 11). What was delivered is on record per key in the
// control database: the version (topic id and offset), a digest of what the far
// side was given, its id and entity tag there. A version at or below it is
// skipped, and so is any version with the same digest; so neither a reset of
// the group nor new topics post anything twice. A record that the far side does
// not know yet is created under an intent, committed before the request. When
// the outcome stays unknown (a timeout, a reset connection, a 5xx, a process
// that died) the intent remains, and the truth is read from the far side by the
// record's number or external reference before anything else is done with that
// key (invariant 14); where the far side does not refuse a second record with
// the same reference, only after the longest time that it may still be working
// on the first. A PATCH needs no intent: it carries the entity tag that it
// replaces, so a repeat fails and is settled by reading.
//
// Order. Within a batch: customers and employees, then projects, then time;
// per key in the order given. Customers, employees and projects carry their
// full state, so that of several versions in one batch only the last is sent.
// A project waits for its customer, time for its employee and project: such a
// change comes back as a Failure with WaitsFor.
//
// What cannot be done. Business Central keeps customers, employees and projects
// that have entries, so a delete in the PSA blocks the customer or project and
// makes the employee inactive. Approved time is final: a later change or delete
// of a delivered entry is rejected (TW-REST-TIME-FINAL), and a person decides.
package rest
