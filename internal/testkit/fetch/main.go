// Command fetch fetches what the tests need beyond Debian's packages: Postgres,
// Apache Kafka, Apicurio, a Python client. Once per user; afterwards it takes
// no time.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/tallywire/tallywire/internal/testkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := testkit.Artefacts(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "fetching what the tests need failed; a package registry may be out of reach (is there a proxy to set?):\n%v\n", err)
		os.Exit(1)
	}
}
