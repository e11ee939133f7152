// Package chaos holds the crash tests: the real binary on real Postgres, Kafka
// and Redis, killed and cut off while a firm works, and a judge
// (pipelinetest/history) that holds every change in the raw topics and every
// row in the sinks against what was committed: as a second slot has it, decoded
// by the server's own test_decoding, and as the sessions that wrote it recorded.
package chaos
