// Types: which Avro type carries which column, and how its octets look. The
// same table, for people, is docs/types.md. Encoder and decoder both compile
// from the parsed schema, so they cannot disagree about it.

package avro

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// Connect's and Debezium's names of semantic types.
const (
	kDecimal   = "org.apache.kafka.connect.data.Decimal"
	kDate      = "org.apache.kafka.connect.data.Date"
	kTime      = "org.apache.kafka.connect.data.Time"
	kTimestamp = "org.apache.kafka.connect.data.Timestamp"
	dJSON      = "io.debezium.data.Json"
	dUUID      = "io.debezium.data.Uuid"
	dEnum      = "io.debezium.data.Enum"
	dVarScale  = "io.debezium.data.VariableScaleDecimal"
	tDate      = "io.debezium.time.Date"
	tTime      = "io.debezium.time.Time"
	tMicroTime = "io.debezium.time.MicroTime"
	tTimestamp = "io.debezium.time.Timestamp"
	tMicroTS   = "io.debezium.time.MicroTimestamp"
	tZonedTS   = "io.debezium.time.ZonedTimestamp"
	tZonedTime = "io.debezium.time.ZonedTime"
	tInterval  = "io.debezium.time.Interval"
)

// Our own attributes of a field, which a foreign reader ignores.
const (
	attrType   = "tw.type"   // the source's name of the type
	attrName   = "tw.name"   // the column's name, where Avro forbids it
	attrKind   = "tw.kind"   // "decimal" or "text": what a plain string is
	attrLabels = "tw.labels" // the labels of an enum
	attrTable  = "tw.table"  // on the envelope: source, database, schema, name, identity
)

// An infinite date or timestamp travels as PostgreSQL itself stores it, in raw
// topics only: the ends of int32 and int64, which no finite one reaches.
const (
	dateInfinity    = math.MaxInt32
	dateNegInfinity = math.MinInt32
)

// placeholder stands in a raw record for a text, or octets, that the source did
// not resend; the header tw.unchanged is what tells for sure.
const placeholder = "__debezium_unavailable_value"

// form is how a value's octets look.
type form uint8

const (
	fBool form = iota + 1
	fInt
	fFloat
	fDouble
	fString
	fBytes
	fFixed
	fUUID
	fDate
	fTimeMicros
	fTimeMillis
	fMicros // timestamps
	fMillis
	fDecimal
	fDecimalFixed
	fDecimalText
	fVarScale
	fZoned
	fZonedTime
	fInterval
	fSymbol
	fArray
)

// codec is the compiled form of one field.
type codec struct {
	form    form
	kind    change.Kind
	null    int8  // index of the null branch, -1: never null
	own     bool  // written by tallywire into a raw topic: infinities are in use
	width   int8  // fInt: 4 or 8
	scale   int16 // decimals
	digits  int16 // decimals: precision; fZoned, fZonedTime: digits of the fraction
	size    int   // fixed
	at      int   // the column's index in the Table
	name    string
	elem    *codec
	symbols [][]byte // fSymbol
}

// columnOf compiles a field of a record.
func columnOf(f *field) (change.Column, codec, error) {
	_, own := f.props[attrType]
	kind, _ := f.props[attrKind].(string)
	col, c, err := compileType(f.typ, own, kind)
	if err != nil {
		return col, c, err
	}
	col.Name = f.name
	if s, ok := f.props[attrName].(string); ok {
		col.Name = s
	}
	if s, ok := f.props[attrType].(string); ok {
		col.Type = s
		if col.Elem != nil {
			col.Elem.Type = strings.TrimSuffix(s, "[]")
		}
	}
	if labels, ok := f.props[attrLabels].([]any); ok && c.kind == change.Enum {
		col.Labels = nil
		for _, l := range labels {
			s, _ := l.(string)
			col.Labels = append(col.Labels, s)
		}
	}
	c.name = col.Name
	return col, c, nil
}

func compileType(n *node, own bool, kind string) (change.Column, codec, error) {
	of, null, err := n.optional()
	if err != nil {
		return change.Column{}, codec{}, err
	}
	col := change.Column{Nullable: null >= 0, Precision: -1, Scale: -1}
	c := codec{null: int8(null), own: own, digits: -1}
	is := func(f form, k change.Kind, typ string) {
		c.form, c.kind, col.Kind, col.Type = f, k, k, typ
	}
	cn := of.str("connect.name")
	switch of.typ {
	case "boolean":
		is(fBool, change.Bool, "boolean")
	case "int":
		switch {
		case of.logical == "date" || cn == tDate || cn == kDate:
			is(fDate, change.Date, "date")
		case of.logical == "time-millis" || cn == tTime || cn == kTime:
			is(fTimeMillis, change.Time, "time(3) without time zone")
			col.Precision = 3
		default:
			is(fInt, change.Int, "integer")
			col.Width, c.width = 4, 4
			if t := of.str("connect.type"); t == "int16" || t == "int8" {
				col.Width, c.width, col.Type = 2, 2, "smallint"
			}
		}
	case "long":
		switch {
		case of.logical == "time-micros" || cn == tMicroTime:
			is(fTimeMicros, change.Time, "time without time zone")
		case cn == tMicroTS || of.logical == "local-timestamp-micros":
			is(fMicros, change.Timestamp, "timestamp without time zone")
		case cn == tTimestamp || cn == kTimestamp || of.logical == "local-timestamp-millis":
			is(fMillis, change.Timestamp, "timestamp(3) without time zone")
			col.Precision = 3
		case of.logical == "timestamp-micros":
			is(fMicros, change.TimestampTZ, "timestamp with time zone")
		case of.logical == "timestamp-millis":
			is(fMillis, change.TimestampTZ, "timestamp(3) with time zone")
			col.Precision = 3
		default:
			is(fInt, change.Int, "bigint")
			col.Width, c.width = 8, 8
		}
	case "float":
		is(fFloat, change.Float32, "real")
	case "double":
		is(fDouble, change.Float64, "double precision")
	case "bytes", "fixed":
		if of.logical == "decimal" || cn == kDecimal {
			is(fDecimal, change.Decimal, "")
			if of.precision < 1 {
				of.precision = 64 // Connect's default
			}
			if of.precision > math.MaxInt16 || of.scale > of.precision {
				return col, c, fmt.Errorf("a decimal of %d digits with %d after the point", of.precision, of.scale)
			}
			col.Precision, col.Scale = int16(of.precision), int16(of.scale)
			c.digits, c.scale = col.Precision, col.Scale
			col.Type = "numeric(" + strconv.Itoa(of.precision) + "," + strconv.Itoa(of.scale) + ")"
			if of.typ == "fixed" {
				c.form, c.size = fDecimalFixed, of.size
			}
			break
		}
		is(fBytes, change.Bytes, "bytea")
		if of.typ == "fixed" {
			c.form, c.size = fFixed, of.size
		}
	case "string":
		compileString(of, cn, kind, &col, &c, is)
	case "enum":
		is(fSymbol, change.Enum, "text")
		col.Labels = of.symbols
		for _, s := range of.symbols {
			c.symbols = append(c.symbols, []byte(s))
		}
	case "array":
		elem, ec, err := compileType(of.items, own, kind)
		if err != nil {
			return col, c, fmt.Errorf("element: %w", err)
		}
		if ec.form == fArray {
			return col, c, fmt.Errorf("an array of arrays")
		}
		is(fArray, change.Array, elem.Type+"[]")
		col.Elem, c.elem = &elem, &ec
	case "record":
		s, v := of.field("scale"), of.field("value")
		if (cn == dVarScale || of.name == dVarScale) && len(of.fields) == 2 && s != nil && v != nil && s.typ.typ == "int" && v.typ.typ == "bytes" {
			is(fVarScale, change.Decimal, "numeric")
			break
		}
		return col, c, fmt.Errorf("record %s is no type of a field", of.name)
	default:
		return col, c, fmt.Errorf("%s is no type of a field", of.typ)
	}
	return col, c, nil
}

func compileString(of *node, cn, kind string, col *change.Column, c *codec, is func(form, change.Kind, string)) {
	switch {
	case cn == dJSON:
		is(fString, change.JSON, "json")
	case cn == dUUID || of.logical == "uuid":
		is(fUUID, change.UUID, "uuid")
	case cn == dEnum:
		is(fString, change.Enum, "text")
		if p, ok := of.props["connect.parameters"].(map[string]any); ok {
			if s, ok := p["allowed"].(string); ok && s != "" {
				col.Labels = strings.Split(s, ",")
			}
		}
	case cn == tZonedTS:
		is(fZoned, change.TimestampTZ, "timestamp with time zone")
		col.Precision = int16(number(of.props["tw.precision"], 6))
		c.digits = col.Precision
	case cn == tZonedTime:
		is(fZonedTime, change.TimeTZ, "time with time zone")
		col.Precision = int16(number(of.props["tw.precision"], 6))
		c.digits = col.Precision
	case cn == tInterval:
		is(fInterval, change.Interval, "interval")
	case kind == "decimal":
		is(fDecimalText, change.Decimal, "numeric")
	case kind == "text":
		is(fString, change.Text, "text")
	default:
		is(fString, change.String, "text")
	}
}

// avroType writes the Avro type of a source's column; kind is the field's
// attribute tw.kind where the type alone does not tell.
func avroType(c *change.Column) (typ, kind string, err error) {
	named := func(base, name, more string) string {
		return `{"type":"` + base + `"` + more + `,"connect.version":1,"connect.name":"` + name + `"}`
	}
	precision := func() string {
		if c.Precision < 0 || c.Precision > 6 {
			return ""
		}
		return `,"tw.precision":` + strconv.Itoa(int(c.Precision))
	}
	switch c.Kind {
	case change.Bool:
		return `"boolean"`, "", nil
	case change.Int:
		switch c.Width {
		case 2:
			return `{"type":"int","connect.type":"int16"}`, "", nil
		case 4:
			return `"int"`, "", nil
		}
		return `"long"`, "", nil
	case change.Float32:
		return `"float"`, "", nil
	case change.Float64:
		return `"double"`, "", nil
	case change.Decimal:
		p, s := c.Precision, c.Scale
		if p < 1 || s < 0 || s > p { // unconstrained, or of a shape that Avro does not have
			return `"string"`, "decimal", nil
		}
		return fmt.Sprintf(`{"type":"bytes","logicalType":"decimal","precision":%d,"scale":%d,"connect.version":1,"connect.parameters":{"scale":"%d","connect.decimal.precision":"%d"},"connect.name":"%s"}`, p, s, s, p, kDecimal), "", nil
	case change.String:
		return `"string"`, "", nil
	case change.Bytes:
		return `"bytes"`, "", nil
	case change.UUID:
		return named("string", dUUID, `,"logicalType":"uuid"`), "", nil
	case change.Date:
		// Connect's converter refuses a logical type beside another name than its own.
		return named("int", kDate, `,"logicalType":"date"`), "", nil
	case change.Time:
		return named("long", tMicroTime, `,"logicalType":"time-micros"`), "", nil
	case change.TimeTZ:
		return named("string", tZonedTime, precision()), "", nil
	case change.Timestamp:
		return named("long", tMicroTS, `,"logicalType":"local-timestamp-micros"`), "", nil
	case change.TimestampTZ:
		return named("string", tZonedTS, precision()), "", nil
	case change.Interval:
		return named("string", tInterval, ""), "", nil
	case change.JSON:
		return named("string", dJSON, ""), "", nil
	case change.Enum:
		return named("string", dEnum, `,"connect.parameters":{"allowed":`+quote(strings.Join(c.Labels, ","))+`}`), "", nil
	case change.Array:
		if c.Elem == nil || c.Elem.Kind == change.Array {
			return "", "", fmt.Errorf("an array without a description of its elements")
		}
		elem, kind, err := avroType(c.Elem)
		return `{"type":"array","items":["null",` + elem + `]}`, kind, err
	case change.Text:
		return `"string"`, "text", nil
	}
	return "", "", fmt.Errorf("a column of kind %s", c.Kind)
}
