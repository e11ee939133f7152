// The form of a parked record: the original record with why it is parked, in
// the parked topic of a transform and, field by field, in the control database.

package pipeline

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// ErrParkedForm says that a record of a parked topic is not one of ours.
var ErrParkedForm = problem.Define("TW-PARKED-FORM", problem.Halt,
	"A record of a parked topic cannot be read.",
	"Somebody else wrote to the topic, or a newer version did. Delete the record with a tombstone for its key, or run that version.")

// A record of `_tallywire.parked.<name>`:
//
//	key    topic 0x1F record key        (a record without key: "@partition/offset")
//	value  4 octets n, big-endian · n octets of JSON (parkedMeta) · the original value
//
// A null value is the release. A command has the header tw.command, the key
// 0x1F command 0x1F <key of the parked record>, so that compaction keeps both,
// and as its value a copy of the parked record that it is about: it applies
// only while that very record is the parked one.
const (
	headerCommand  = "tw.command"
	commandRetry   = "retry"
	commandDiscard = "discard"
	unitSeparator  = 0x1F
	parkedVersion  = 1
)

type parkedMeta struct {
	Version   int              `json:"v"`
	Topic     string           `json:"topic"`
	TopicID   string           `json:"topic_id"`
	Partition int32            `json:"partition"`
	Offset    int64            `json:"offset"`
	Millis    int64            `json:"timestamp_ms"`
	Key       string           `json:"key"`
	RecordKey []byte           `json:"record_key"`
	Keyless   bool             `json:"keyless,omitempty"`
	Null      bool             `json:"null,omitempty"`    // the original is a tombstone
	Omitted   bool             `json:"omitted,omitempty"` // the original was too large to be kept here; it is at its offset
	Headers   []control.Header `json:"headers,omitempty"`
	Code      string           `json:"code"`
	Reason    string           `json:"reason"`
	Remedy    string           `json:"remedy"`
	WaitsFor  string           `json:"waits_for,omitempty"`
	Attempts  int              `json:"attempts"`
	FirstAt   time.Time        `json:"first_at"`
	LastAt    time.Time        `json:"last_at"`
}

// parkRecord describes rec, parked because of err. key is how a person knows
// it, or "" when it could not be read.
func parkRecord(stage, kind string, t *change.Topic, rec *kgo.Record, key string, err error) control.Parked {
	p := control.Parked{
		Stage: stage, Kind: kind, Topic: t.Name, TopicID: t.ID, Partition: rec.Partition, Offset: rec.Offset,
		Key: key, RecordKey: recordKey(rec), Keyless: rec.Key == nil, Value: rec.Value, Millis: rec.Timestamp.UnixMilli(),
		Code: outage.CodeOf(err), Reason: reasonText(err), Remedy: outage.RemedyOf(err), Attempts: 1,
	}
	if p.Key == "" {
		p.Key = readableKey(p.RecordKey)
	}
	for _, h := range rec.Headers {
		p.Headers = append(p.Headers, control.Header{Key: h.Key, Value: h.Value})
	}
	p.FirstAt = time.Now().UTC().Truncate(time.Microsecond)
	p.LastAt = p.FirstAt
	return p
}

// recordKey is the identity of a record within its topic: its key, or where it
// lies when it has none.
func recordKey(rec *kgo.Record) []byte {
	if rec.Key == nil {
		return control.KeylessKey(rec.Partition, rec.Offset)
	}
	return rec.Key
}

// readableKey shows octets that could not be decoded.
func readableKey(b []byte) string {
	if utf8.Valid(b) {
		ok := true
		for _, r := range string(b) {
			ok = ok && unicode.IsPrint(r)
		}
		if ok {
			return string(b)
		}
	}
	return "0x" + hex.EncodeToString(b)
}

// reasonText is the message without the code, which stands beside it.
func reasonText(err error) string {
	if e := problem.Of(err); e != nil {
		return e.Text
	}
	return err.Error()
}

// originalRecord is the record as it was read.
func originalRecord(p *control.Parked) *kgo.Record {
	r := &kgo.Record{
		Topic: p.Topic, Partition: p.Partition, Offset: p.Offset, Key: p.RecordKey, Value: p.Value,
		Timestamp: time.UnixMilli(p.Millis),
	}
	if p.Keyless {
		r.Key = nil
	}
	for _, h := range p.Headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return r
}

// appendParkedKey appends the key of the parked topic for a record.
func appendParkedKey(dst []byte, topic string, recordKey []byte) []byte {
	dst = append(dst, topic...)
	dst = append(dst, unitSeparator)
	return append(dst, recordKey...)
}

func commandKey(command string, parkedKey []byte) []byte {
	k := append([]byte{unitSeparator}, command...)
	k = append(k, unitSeparator)
	return append(k, parkedKey...)
}

// appendParked appends the value of a parked record; the original value is
// left out when the whole would be larger than limit octets.
func appendParked(dst []byte, p *control.Parked, limit int) []byte {
	m := parkedMeta{
		Version: parkedVersion, Topic: p.Topic, TopicID: hex.EncodeToString(p.TopicID[:]), Partition: p.Partition, Offset: p.Offset,
		Millis: p.Millis, Key: p.Key, RecordKey: p.RecordKey, Keyless: p.Keyless, Null: p.Value == nil, Headers: p.Headers,
		Code: p.Code, Reason: p.Reason, Remedy: p.Remedy, WaitsFor: p.WaitsFor, Attempts: p.Attempts, FirstAt: p.FirstAt, LastAt: p.LastAt,
	}
	const slack = 4096 // of the JSON, less the key, which is in there and in the record's key
	if limit > 0 && len(p.Value)+base64.StdEncoding.EncodedLen(len(p.RecordKey))+len(p.RecordKey)+slack > limit {
		m.Omitted = true
	}
	j, err := json.Marshal(&m)
	if err != nil {
		panic(fmt.Sprintf("BUG: parked record to JSON: %v", err))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(j)))
	dst = append(dst, j...)
	if m.Omitted {
		return dst
	}
	return append(dst, p.Value...)
}

// parseParked reads what appendParked wrote. The value is a slice of b. When
// omitted is true the original must be read where it lies.
func parseParked(stage string, b []byte) (p control.Parked, omitted bool, err error) {
	var m parkedMeta
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return p, false, ErrParkedForm.New("parked record of %q: %d octets, the length at its start does not fit", stage, len(b))
	}
	n := 4 + int(binary.BigEndian.Uint32(b))
	if err := json.Unmarshal(b[4:n], &m); err != nil {
		return p, false, ErrParkedForm.New("parked record of %q: %w", stage, err)
	}
	id, err := hex.DecodeString(m.TopicID)
	if m.Version != parkedVersion || err != nil || len(id) != 16 {
		return p, false, ErrParkedForm.New("parked record of %q: version %d, topic id %q", stage, m.Version, m.TopicID)
	}
	p = control.Parked{
		Stage: stage, Kind: control.KindTransform, Topic: m.Topic, TopicID: [16]byte(id), Partition: m.Partition, Offset: m.Offset,
		Key: m.Key, RecordKey: m.RecordKey, Keyless: m.Keyless, Headers: m.Headers, Millis: m.Millis, Code: m.Code, Reason: m.Reason,
		Remedy: m.Remedy, WaitsFor: m.WaitsFor, Attempts: m.Attempts, FirstAt: m.FirstAt, LastAt: m.LastAt,
	}
	if p.RecordKey == nil {
		p.RecordKey = []byte{}
	}
	if !m.Null && !m.Omitted {
		p.Value = b[n:]
	}
	return p, m.Omitted, nil
}
