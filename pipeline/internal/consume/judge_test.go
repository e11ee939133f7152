package consume

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// A join that belongs to a session of ours that is gone takes our place, since
// it lay in a socket: that is an outage. From anybody else it is for good.
func TestMemberForgivesItsOwnLateJoin(t *testing.T) {
	m := &Membership{group: "g", held: true}
	fenced := Fenced(kerr.FencedInstanceID, "reading")
	if err := m.judge(fenced); !problem.Has(err, pipeline.ErrFenced) || m.held {
		t.Errorf("a fenced member made %v of it, held %v", err, m.held)
	}
	m.held, m.nameless = true, time.Now()
	if err := m.judge(fenced); !problem.Has(err, kafka.ErrUnavailable) || problem.Has(err, pipeline.ErrFenced) || !m.held {
		t.Errorf("fenced by a join of its own: %v, held %v", err, m.held)
	}
	other := pipeline.ErrFenced.New("a newer producer: %w", kerr.ProducerFenced)
	if err := m.judge(other); !problem.Has(err, pipeline.ErrFenced) {
		t.Errorf("a fenced producer: %v", err)
	}
}
