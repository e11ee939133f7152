// Package testkit runs the real servers that tallywire talks to: Postgres,
// Apache Kafka, redis-server, a schema registry. Each has a form for programs,
// Start…(ctx, Options), which `tallywire demo` uses too, and a form for tests,
// which stops the server when the test ends. A program that is not there is an
// error that names what to install.
package testkit
