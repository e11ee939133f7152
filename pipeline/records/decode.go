// Decode: a record read back, for a message.

package records

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

// Decode reads one record of a raw or canonical topic back, for a message: it
// asks the registry for its schemas each time. See avro.Decoder.
func Decode(ctx context.Context, reg *avro.Registry, b *change.Batch, r *kgo.Record) error {
	at := change.Coord{Topic: &change.Topic{Name: r.Topic}}
	return avro.NewDecoder(reg).Append(ctx, b, at, r.Key, r.Value, kafka.Headers(r), r.Timestamp.UnixMilli())
}
