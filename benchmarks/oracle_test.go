// The oracle: the same work with pglogrepl, pgtype and goavro, as one writes it
// with care: each relation's columns are looked up once, codecs are made once,
// buffers are kept, and only goavro's native form is made anew for each change,
// since goavro takes no other.

package benchmarks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/linkedin/goavro/v2"

	"github.com/tallywire/tallywire/avro"
)

type oracle struct {
	key, value *goavro.Codec
	keyHead    []byte // magic octet and schema id
	valueHead  []byte
	types      *pgtype.Map
	out        []byte
	ordinal    int
}

func newOracle(tb testing.TB, h *hot) *oracle {
	key, value, err := avro.EnvelopeSchemas(h.enc.Table())
	if err != nil {
		tb.Fatal(err)
	}
	o := &oracle{types: pgtype.NewMap()}
	if o.key, err = goavro.NewCodec(key); err != nil {
		tb.Fatal(err)
	}
	if o.value, err = goavro.NewCodec(value); err != nil {
		tb.Fatal(err)
	}
	// The schema ids are those that our encoder got.
	if err := h.run(messages('I')[:1]); err != nil {
		tb.Fatal(err)
	}
	o.keyHead = append([]byte(nil), h.out[:5]...)
	_, rest, err := o.key.NativeFromBinary(h.out[5:])
	if err != nil {
		tb.Fatal(err)
	}
	o.valueHead = append([]byte(nil), rest[:5]...)
	return o
}

func (o *oracle) run(msgs [][]byte) error {
	o.out, o.ordinal = o.out[:0], 0
	for _, m := range msgs {
		if err := o.one(m); err != nil {
			return err
		}
	}
	return nil
}

func (o *oracle) one(m []byte) error {
	o.ordinal++
	msg, err := pglogrepl.ParseV2(m, false)
	if err != nil {
		return err
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
		return err
	}
	row := after
	if row == nil {
		row = before
	}
	if o.out, err = o.key.BinaryFromNative(append(o.out, o.keyHead...), map[string]any{"id": row["id"]}); err != nil {
		return err
	}
	now := time.Now().UnixMicro()
	long := func(n int64) any { return goavro.Union("long", n) }
	o.out, err = o.value.BinaryFromNative(append(o.out, o.valueHead...), map[string]any{
		"before": optional(before),
		"after":  optional(after),
		"source": map[string]any{
			"version": avro.Version, "connector": "postgresql", "name": "psa", "ts_ms": commitTime / 1000,
			"snapshot": goavro.Union("string", "false"), "db": "psa",
			"sequence": goavro.Union("string", fmt.Sprintf(`["%d","%d"]`, position.LSN, o.ordinal)),
			"ts_us":    long(commitTime), "ts_ns": long(commitTime * 1000),
			"schema": "public", "table": "time_entry", "txId": long(int64(xid)), "lsn": long(int64(position.LSN)), "xmin": nil,
		},
		"transaction": nil,
		"op":          op,
		"ts_ms":       long(now / 1000), "ts_us": long(now), "ts_ns": long(now * 1000),
	})
	return err
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

// split cuts octets into records of key and value, without the time at which
// each was written.
func (o *oracle) split(tb testing.TB, p []byte) [][]byte {
	tb.Helper()
	var out [][]byte
	for len(p) > 0 {
		_, rest, err := o.key.NativeFromBinary(p[5:])
		if err != nil {
			tb.Fatal(err)
		}
		native, rest, err := o.value.NativeFromBinary(rest[5:])
		if err != nil {
			tb.Fatal(err)
		}
		record := p[:len(p)-len(rest)]
		size := 0
		for _, f := range []string{"ts_ms", "ts_us", "ts_ns"} {
			branch, ok := native.(map[string]any)[f].(map[string]any)
			if !ok {
				tb.Fatalf("%s is not there", f)
			}
			n, ok := branch["long"].(int64)
			if !ok || n <= 0 {
				tb.Fatalf("%s is %v", f, branch)
			}
			size += 1 + len(binary.AppendVarint(nil, n))
		}
		out = append(out, record[:len(record)-size])
		p = rest
	}
	return out
}
