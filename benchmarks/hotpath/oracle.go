// The oracle: the same work with pglogrepl, pgtype and goavro, as one writes it
// with care: each relation's columns are looked up once, codecs are made once,
// buffers are kept, and only goavro's native form is made anew for each change,
// since goavro takes no other.

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/linkedin/goavro/v2"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

type oracle struct {
	key, value *goavro.Codec
	keyHead    []byte // magic octet and schema id
	valueHead  []byte
	types      *pgtype.Map
	out        []byte
	spans      []span
	natives    []native
	recs       []kgo.Record
}

// native is a change in the form that goavro takes.
type native struct {
	key, value map[string]any
	delete     bool
}

// span is where a record's octets lie in out.
type span struct{ from, value, end int }

// newOracle writes with the schema ids that our encoder got.
func newOracle(h *hot) (*oracle, error) {
	key, value, err := avro.EnvelopeSchemas(h.enc.Table())
	if err != nil {
		return nil, err
	}
	o := &oracle{types: pgtype.NewMap()}
	if o.key, err = goavro.NewCodec(key); err != nil {
		return nil, err
	}
	if o.value, err = goavro.NewCodec(value); err != nil {
		return nil, err
	}
	if err := errors.Join(h.decode(messages('I')[:1]), h.encode()); err != nil {
		return nil, err
	}
	o.keyHead = append([]byte(nil), h.out[:5]...)
	_, rest, err := o.key.NativeFromBinary(h.out[5:])
	if err != nil {
		return nil, err
	}
	o.valueHead = append([]byte(nil), rest[:5]...)
	return o, nil
}

// parse is pglogrepl alone: cells are not decoded.
func (o *oracle) parse(msgs [][]byte) error {
	for _, m := range msgs {
		if _, err := pglogrepl.ParseV2(m, false); err != nil {
			return err
		}
	}
	return nil
}

// decode makes the native form of all messages.
func (o *oracle) decode(msgs [][]byte) error {
	o.natives = o.natives[:0]
	for i, m := range msgs {
		n, err := o.native(m, i+1)
		if err != nil {
			return err
		}
		o.natives = append(o.natives, n)
	}
	return nil
}

// encode writes key and value of the natives.
func (o *oracle) encode() error {
	o.out, o.spans = o.out[:0], o.spans[:0]
	for i := range o.natives {
		if err := o.write(&o.natives[i]); err != nil {
			return err
		}
	}
	return nil
}

// whole makes records of messages.
func (o *oracle) whole(msgs [][]byte) error {
	o.out, o.spans, o.recs = o.out[:0], o.spans[:0], o.recs[:0]
	at := position
	for i, m := range msgs {
		n, err := o.native(m, i+1)
		if err != nil {
			return err
		}
		if err := o.write(&n); err != nil {
			return err
		}
		id, ok := n.key["id"].(int64)
		if !ok {
			return errForm
		}
		at.Ordinal = uint64(i + 1)
		s := o.spans[i]
		r := kgo.Record{
			Topic: topic, Key: o.out[s.from:s.value], Value: o.out[s.value:s.end], Timestamp: time.UnixMilli(commitTime / 1000),
			Partition: kafka.Partition(strconv.AppendInt(nil, id, 10), partitions),
			Headers:   []kgo.RecordHeader{{Key: kafka.HeaderPos, Value: change.AppendPos(nil, at)}},
		}
		o.recs = append(o.recs, r)
		if n.delete {
			r.Value = nil
			o.recs = append(o.recs, r)
		}
	}
	return nil
}

// native decodes one message.
func (o *oracle) native(m []byte, ordinal int) (n native, err error) {
	msg, err := pglogrepl.ParseV2(m, false)
	if err != nil {
		return n, err
	}
	var before, after map[string]any
	op := ""
	switch msg := msg.(type) {
	case *pglogrepl.InsertMessageV2:
		op = "c"
		after, err = o.row(msg.Tuple)
	case *pglogrepl.UpdateMessageV2:
		op = "u"
		if before, err = o.row(msg.OldTuple); err == nil {
			after, err = o.row(msg.NewTuple)
		}
	case *pglogrepl.DeleteMessageV2:
		op = "d"
		before, err = o.row(msg.OldTuple)
	default:
		err = fmt.Errorf("a message of type %T", msg)
	}
	if err != nil {
		return n, err
	}
	row := after
	if row == nil {
		row = before
	}
	now := time.Now().UnixMicro()
	long := func(n int64) any { return goavro.Union("long", n) }
	n.key, n.delete = map[string]any{"id": row["id"]}, op == "d"
	n.value = map[string]any{
		"before": optional(before),
		"after":  optional(after),
		"source": map[string]any{
			"version": connector.Version, "connector": "postgresql", "name": "psa", "ts_ms": commitTime / 1000,
			"snapshot": goavro.Union("string", "false"), "db": "psa",
			"sequence": goavro.Union("string", fmt.Sprintf(`["%d","%d"]`, position.LSN, ordinal)),
			"ts_us":    long(commitTime), "ts_ns": long(commitTime * 1000),
			"schema": "public", "table": "time_entry", "txId": long(int64(xid)), "lsn": long(int64(position.LSN)), "xmin": nil,
		},
		"transaction": nil,
		"op":          op,
		"ts_ms":       long(now / 1000), "ts_us": long(now), "ts_ns": long(now * 1000),
	}
	return n, nil
}

func (o *oracle) write(n *native) error {
	s := span{from: len(o.out)}
	var err error
	if o.out, err = o.key.BinaryFromNative(append(o.out, o.keyHead...), n.key); err != nil {
		return err
	}
	s.value = len(o.out)
	if o.out, err = o.value.BinaryFromNative(append(o.out, o.valueHead...), n.value); err != nil {
		return err
	}
	s.end = len(o.out)
	o.spans = append(o.spans, s)
	return nil
}

func optional(row map[string]any) any {
	if row == nil {
		return nil
	}
	return goavro.Union("psa.public.time_entry.Value", row)
}

var errForm = errors.New("a cell of another form")

// row decodes a tuple into what goavro takes.
func (o *oracle) row(t *pglogrepl.TupleData) (map[string]any, error) {
	if len(t.Columns) != len(columns) {
		return nil, errForm
	}
	row := make(map[string]any, len(columns))
	for i, c := range t.Columns {
		if c.DataType != pglogrepl.TupleDataTypeBinary {
			return nil, errForm
		}
		v, union, err := o.cell(columns[i].oid, c.Data)
		if err != nil {
			return nil, err
		}
		if i > 0 { // the key is not nullable
			v = goavro.Union(union, v)
		}
		row[columns[i].name] = v
	}
	return row, nil
}

// cell decodes the fixed forms by hand and the numeric by pgtype; union is the
// name of its branch.
func (o *oracle) cell(oid uint32, p []byte) (v any, union string, err error) {
	switch oid {
	case pgtype.Int8OID:
		return int64(binary.BigEndian.Uint64(p)), "long", nil
	case pgtype.Int4OID:
		return int32(binary.BigEndian.Uint32(p)), "int", nil
	case pgtype.BoolOID:
		return p[0] != 0, "boolean", nil
	case pgtype.TextOID:
		return string(p), "string", nil
	case pgtype.DateOID:
		return time.Unix((int64(int32(binary.BigEndian.Uint32(p)))+10957)*86_400, 0).UTC(), "int.date", nil
	case pgtype.TimestamptzOID:
		t := time.UnixMicro(int64(binary.BigEndian.Uint64(p)) + 10957*86_400_000_000).UTC()
		return t.Format("2006-01-02T15:04:05.000000Z"), "string", nil
	case pgtype.NumericOID:
		var n pgtype.Numeric
		if err := o.types.Scan(oid, pgtype.BinaryFormatCode, p, &n); err != nil {
			return nil, "", err
		}
		r := new(big.Rat).SetInt(n.Int)
		pow := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(n.Exp, -n.Exp))), nil)
		if n.Exp < 0 {
			r.Quo(r, new(big.Rat).SetInt(pow))
		} else {
			r.Mul(r, new(big.Rat).SetInt(pow))
		}
		return r, "bytes.decimal", nil
	}
	return nil, "", fmt.Errorf("type %d", oid)
}
