package kafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/testkit"
)

// Lost if this fails: a source whose transaction timed out, because Kafka was
// slow or the machine asleep, stops for good and says that another runs.
func TestReplaced(t *testing.T) {
	fenced := fmt.Errorf("ending: %w", kerr.InvalidProducerEpoch)
	const timeout = 20 * time.Second
	for _, c := range []struct {
		name  string
		err   error
		began time.Time
		want  bool
	}{
		{"fenced at once", fenced, time.Now(), true},
		{"an outage", kerr.NotCoordinator, time.Now(), false},
		{"after its timeout", fenced, time.Now().Add(-timeout), false},
		{"just before it", fenced, time.Now().Add(-19 * time.Second), false},
		{"after a night's sleep", fenced, testkit.Suspended(time.Now(), 8*time.Hour), false},
		{"no transaction yet", fenced, time.Time{}, false},
	} {
		if got := Replaced(c.err, c.began, timeout); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
