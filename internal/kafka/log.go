// The log of the Kafka clients, in ours.

package kafka

import (
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
)

// clientLog passes warnings and errors of franz-go on for debugging: it retries
// most of them, and what it gives up comes back to the engine, which decides
// and says whether it is an error.
type clientLog struct{ log *slog.Logger }

func (l clientLog) Level() kgo.LogLevel { return kgo.LogLevelWarn }

func (l clientLog) Log(_ kgo.LogLevel, msg string, kv ...any) {
	l.log.Debug("kafka client: "+msg, kv...)
}
