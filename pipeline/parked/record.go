// The form of a parked record: the original record with why it is parked, in
// the parked topic of a transform and, field by field, in the control database.

package parked

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/seal"
)

// ErrForm says that a record of a parked topic is not one of ours.
var ErrForm = problem.Define("TW-PARKED-FORM", problem.Halt,
	"A record of a parked topic cannot be read.",
	"Somebody else wrote to the topic, or a newer version did. Run that version, or write a tombstone for the key that the message names; then start again.")

const (
	separator = 0x1F
	version   = 1
	sealed    = 2 // the version of a record whose original is sealed
)

// Keeping says how the originals of parked records are kept. What is parked of
// all inputs lies in one topic, and whoever reads that would read rates too.
type Keeping struct {
	// Restricted are the topics whose records hold restricted values.
	Restricted map[string]bool
	// Seal seals those records. Nil: they are not copied, but stay where they
	// came from alone, and can be tried again for as long as they do.
	Seal *seal.Ring
}

// append is Append of p as it is to be kept.
func (k *Keeping) append(dst []byte, p *control.Parked, limit int) []byte {
	if p.Value == nil || p.Sealed != "" || !k.Restricted[p.Topic] {
		return Append(dst, p, limit)
	}
	q := *p
	if k.Seal == nil {
		q.Size, q.Value, q.Omitted, q.Headers = len(p.Value), nil, true, nil
	} else {
		q.Value, q.Sealed = k.Seal.Seal(nil, appendRecord(nil, Original(p)), about(p))
		q.Headers = nil
	}
	return Append(dst, &q, limit)
}

type meta struct {
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
	Omitted   bool             `json:"omitted,omitempty"` // the original is not kept here; it is at its offset
	Size      int              `json:"size,omitempty"`    // of its value, where it is omitted
	Sealed    string           `json:"sealed,omitempty"`  // the id of the key that the original is sealed with
	Headers   []control.Header `json:"headers,omitempty"`
	Code      string           `json:"code"`
	Reason    string           `json:"reason"`
	Remedy    string           `json:"remedy"`
	WaitsFor  string           `json:"waits_for,omitempty"`
	Attempts  int              `json:"attempts"`
	FirstAt   time.Time        `json:"first_at"`
	LastAt    time.Time        `json:"last_at"`
	Held      []control.Held   `json:"held,omitempty"`
}

// Of describes rec, parked because of err. key is how a person knows
// it, or "" when it could not be read.
func Of(stage, kind string, t *change.Topic, rec *kgo.Record, key string, err error) control.Parked {
	p := control.Parked{
		Stage: stage, Kind: kind, Topic: t.Name, TopicID: t.ID, Partition: rec.Partition, Offset: rec.Offset,
		Key: key, RecordKey: RecordKey(rec), Keyless: rec.Key == nil, Value: rec.Value, Millis: rec.Timestamp.UnixMilli(),
		Code: outage.CodeOf(err), Reason: ReasonText(err), Remedy: outage.RemedyOf(err), Attempts: 1,
	}
	if p.Key == "" {
		p.Key = ReadableKey(p.RecordKey)
	}
	p.Headers = headersOf(rec)
	p.FirstAt = time.Now().UTC().Truncate(time.Microsecond)
	p.LastAt = p.FirstAt
	return p
}

func headersOf(rec *kgo.Record) (out []control.Header) {
	for _, h := range rec.Headers {
		out = append(out, control.Header{Key: h.Key, Value: h.Value})
	}
	return out
}

// RecordKey is the identity of a record within its topic: its key, or where it
// lies when it has none.
func RecordKey(rec *kgo.Record) []byte {
	if rec.Key == nil {
		return control.KeylessKey(rec.Partition, rec.Offset)
	}
	return rec.Key
}

// ReadableKey shows octets that could not be decoded.
func ReadableKey(b []byte) string {
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

// ReasonText is the message without the code, which stands beside it.
func ReasonText(err error) string {
	if e := problem.Of(err); e != nil {
		return e.Text
	}
	return err.Error()
}

// Original is the record as it was read.
func Original(p *control.Parked) *kgo.Record {
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

// schemaID is the length of what Confluent's wire format puts before a key: 0
// and the schema's id, 4 octets.
const schemaID = 5

// AppendKey appends the key of the parked topic for a record: its topic, and its
// key without the id of the key's schema. The same row has another id when the
// schema evolved, or the registry was filled anew. What follows the topic in such
// a key may be given for the record's key, and stays as it is.
func AppendKey(dst []byte, topic string, recordKey []byte) []byte {
	dst = append(dst, topic...)
	dst = append(dst, separator)
	if len(recordKey) > schemaID && recordKey[0] == 0 {
		dst = append(dst, separator)
		recordKey = recordKey[schemaID:]
	}
	return append(dst, recordKey...)
}

// identity is the key as AppendKey gives it of one in the parked topic: those
// that older versions wrote have the schema's id.
func identity(key []byte) string {
	topic, recordKey := splitKey(string(key))
	return string(AppendKey(nil, topic, recordKey))
}

// about is what a sealed original is sealed together with: it opens nowhere else.
func about(p *control.Parked) []byte {
	return AppendKey(binary.BigEndian.AppendUint64(nil, uint64(p.Offset)), p.Topic, p.RecordKey)
}

// unseal gives p its original back.
func (k *Keeping) unseal(p *control.Parked) error {
	plain, err := k.Seal.Open(p.Sealed, p.Value, about(p))
	if err != nil {
		return err
	}
	rs, err := parseRecords(p.Topic, plain)
	if err != nil {
		return err
	}
	if len(rs) != 1 {
		return ErrForm.New("%d records are sealed in one of topic %q", len(rs), p.Topic)
	}
	p.Value, p.Sealed = rs[0].Value, ""
	p.Headers = headersOf(rs[0])
	return nil
}

// Append appends the value of a parked record; the original value is
// left out when the whole would be larger than limit octets.
func Append(dst []byte, p *control.Parked, limit int) []byte {
	m := meta{
		Version: version, Topic: p.Topic, TopicID: hex.EncodeToString(p.TopicID[:]), Partition: p.Partition, Offset: p.Offset,
		Millis: p.Millis, Key: p.Key, RecordKey: p.RecordKey, Keyless: p.Keyless, Null: p.Value == nil && !p.Omitted, Omitted: p.Omitted, Size: p.Size, Sealed: p.Sealed, Headers: p.Headers,
		Code: p.Code, Reason: p.Reason, Remedy: p.Remedy, WaitsFor: p.WaitsFor, Attempts: p.Attempts, FirstAt: p.FirstAt, LastAt: p.LastAt,
		Held: p.Held,
	}
	const slack = 4096 // of the JSON, less the key, which is in there and in the record's key
	if limit > 0 && len(p.Value)+base64.StdEncoding.EncodedLen(len(p.RecordKey))+len(p.RecordKey)+slack > limit {
		m.Omitted, m.Size, m.Sealed = true, len(p.Value), ""
	}
	if m.Sealed != "" {
		m.Version = sealed
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

// Parse reads what Append wrote. The value is a slice of b.
func Parse(stage string, b []byte) (p control.Parked, err error) {
	return parse(stage, b, true)
}

// parse leaves the value out unless it is wanted.
func parse(stage string, b []byte, value bool) (p control.Parked, err error) {
	var m meta
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return p, ErrForm.New("parked record of %q: %d octets, the length at its start does not fit", stage, len(b))
	}
	n := 4 + int(binary.BigEndian.Uint32(b))
	if err := json.Unmarshal(b[4:n], &m); err != nil {
		return p, ErrForm.New("parked record of %q: %w", stage, err)
	}
	id, err := hex.DecodeString(m.TopicID)
	if m.Version != version && m.Version != sealed || err != nil || len(id) != 16 {
		return p, ErrForm.New("parked record of %q: version %d, topic id %q", stage, m.Version, m.TopicID)
	}
	p = control.Parked{
		Stage: stage, Kind: control.KindTransform, Topic: m.Topic, TopicID: [16]byte(id), Partition: m.Partition, Offset: m.Offset,
		Key: m.Key, RecordKey: m.RecordKey, Keyless: m.Keyless, Omitted: m.Omitted, Size: m.Size, Sealed: m.Sealed, Headers: m.Headers, Millis: m.Millis, Code: m.Code, Reason: m.Reason,
		Remedy: m.Remedy, WaitsFor: m.WaitsFor, Attempts: m.Attempts, FirstAt: m.FirstAt, LastAt: m.LastAt,
		Held: m.Held,
	}
	if p.RecordKey == nil {
		p.RecordKey = []byte{}
	}
	if value && !m.Null && !m.Omitted {
		p.Value = b[n:]
	}
	return p, nil
}

// KeyText is the canonical key as text; its separator shows as a slash.
func KeyText(b *change.Batch, c *change.Change) string {
	return strings.ReplaceAll(string(change.AppendKey(nil, b, c)), "\x1f", "/")
}

// TopicOf is the topic that keeps what a source or a transform could not take.
func TopicOf(name string) string { return "_tallywire.parked." + name }
