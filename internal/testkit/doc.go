// Package testkit runs the real servers that tallywire talks to: Postgres,
// Apache Kafka, redis-server, a schema registry. Each has a form for programs,
// Start…(ctx, Options), which `tallywire demo` uses too, and a form for tests,
// which stops the server when the test ends. A program that is not there is an
// error that names what to install.
package testkit

import "time"

// startWithin ends the wait for a server that does not answer. A start takes a
// second, or several on a machine that is busy with other things.
const startWithin = 4 * time.Minute
