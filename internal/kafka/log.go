package kafka

import (
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
)

// clientLog passes the warnings of franz-go on to our log, and its errors as
// warnings: whether something is an error is decided by the engine.
type clientLog struct{ log *slog.Logger }

func (l clientLog) Level() kgo.LogLevel { return kgo.LogLevelWarn }

func (l clientLog) Log(_ kgo.LogLevel, msg string, kv ...any) {
	l.log.Debug("kafka client: "+msg, kv...)
}
