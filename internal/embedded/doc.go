// Package embedded runs the servers that tallywire brings when it is given none:
// in this process (MiniKafka, MiniRedis), or beneath it, the real ones (Postgres,
// Apache Kafka, redis-server). What runs beneath ends with this process, even
// when that is killed. A program that is not there is an error that names what
// to install. None of it is meant for production.
package embedded

import "time"

// StartWithin ends the wait for a server that does not answer. A start takes a
// second, or several on a machine that is busy with other things.
const StartWithin = 4 * time.Minute
