// Where the servers and clients come from that are not ours: fetched once, into
// the user's cache, and shared by all tests, the demo and the benchmarks.

package testkit

import (
	"context"
	"errors"

	"github.com/tallywire/tallywire/internal/embedded"
)

// PythonClient is the foreign Kafka client that the registry's tests read and
// write with, in pip's notation.
const PythonClient = "confluent-kafka[avro]==2.16.0"

// Artefacts fetches everything that the tests need, so that no test's deadline
// and no leak check has a download in it. What is there already costs nothing.
// All are tried; the error names each that failed.
func Artefacts(ctx context.Context) error {
	errs := []error{PostgresArtefacts(ctx)}
	_, err := embedded.KafkaLibs(ctx)
	errs = append(errs, err)
	_, err = apicurioHome(ctx)
	errs = append(errs, err)
	_, err = Python(ctx, PythonClient)
	return errors.Join(append(errs, err)...)
}

// PostgresArtefacts is Artefacts for the tests that need neither a JVM nor a
// foreign client.
func PostgresArtefacts(ctx context.Context) error {
	var errs []error
	for _, v := range []string{embedded.Postgres15, embedded.Postgres16, embedded.Postgres17, embedded.Postgres18} {
		_, err := embedded.PostgresBinaries(ctx, v)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
