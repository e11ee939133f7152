// codec: records of Debezium's form, read by goavro, as Postgres prints them.

package history

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/linkedin/goavro/v2"
)

// unavailable stands, as in Debezium, in a text that was not sent.
const unavailable = "__debezium_unavailable_value"

// codec reads what was written with one schema.
type codec struct {
	avro    *goavro.Codec
	fields  []string          // of the record, or of the rows of an envelope, in order
	columns map[string]string // their types, see typeOf
	names   map[string]string // column of a field that has another name
	oldFull bool              // an envelope whose rows before are whole
}

type field struct {
	Name   string `json:"name"`
	Type   any    `json:"type"`
	Column string `json:"tw.name"` // where Avro does not take the column's name
}

func newCodec(text string) (*codec, error) {
	var schema map[string]any
	c := &codec{columns: map[string]string{}, names: map[string]string{}}
	if strings.HasPrefix(text, `"`) { // a key that is no record
		var err error
		c.avro, err = goavro.NewCodec(text)
		return c, err
	}
	if err := json.Unmarshal([]byte(text), &schema); err != nil {
		return nil, err
	}
	record := schema
	if fs, err := fieldsOf(schema); err != nil {
		return nil, err
	} else if len(fs) > 2 && fs[0].Name == "before" && fs[1].Name == "after" {
		record, _ = someOf(fs[0].Type).(map[string]any)
		about, err := json.Marshal(schema["tw.table"])
		if err != nil {
			return nil, err
		}
		if s, is := schema["tw.table"].(string); is {
			about = []byte(s)
		}
		var t struct {
			OldFull bool `json:"old_full"`
		}
		if err := json.Unmarshal(about, &t); err != nil {
			return nil, fmt.Errorf("tw.table: %w", err)
		}
		c.oldFull = t.OldFull
	}
	fs, err := fieldsOf(record)
	if err != nil {
		return nil, err
	}
	for _, f := range fs {
		if f.Column != "" {
			c.names[f.Name], f.Name = f.Column, f.Column
		}
		c.fields = append(c.fields, f.Name)
		c.columns[f.Name] = typeOf(f.Type)
	}
	// The types' own names tell what they are; goavro is to leave them alone.
	plain, err := json.Marshal(withoutLogical(schema))
	if err != nil {
		return nil, err
	}
	c.avro, err = goavro.NewCodec(string(plain))
	return c, err
}

func fieldsOf(schema map[string]any) ([]field, error) {
	b, err := json.Marshal(schema["fields"])
	if err != nil {
		return nil, err
	}
	var fs []field
	return fs, json.Unmarshal(b, &fs)
}

// someOf is the type of a value that is not null.
func someOf(t any) any {
	if union, is := t.([]any); is {
		for _, m := range union {
			if m != "null" {
				return m
			}
		}
	}
	return t
}

func withoutLogical(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			if k != "logicalType" {
				out[k] = withoutLogical(x)
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = withoutLogical(x)
		}
		return out
	}
	return v
}

// typeOf names the type of a field: Connect's name of it, Avro's, "decimal/"
// and the scale, or "array/" and the type of the members.
func typeOf(t any) string {
	t = someOf(t)
	m, is := t.(map[string]any)
	if !is {
		return fmt.Sprint(t)
	}
	if m["logicalType"] == "decimal" {
		scale, _ := m["scale"].(float64)
		return fmt.Sprintf("decimal/%d", int(scale))
	}
	if name, named := m["connect.name"].(string); named {
		return name
	}
	if m["type"] == "array" {
		return "array/" + typeOf(m["items"])
	}
	return fmt.Sprint(m["type"])
}

var errEnvelope = errors.New("this is no envelope of Debezium")

// envelope reads the value of a raw record.
func (c *codec) envelope(native any) (Change, error) {
	m, is := native.(map[string]any)
	if !is {
		return Change{}, errEnvelope
	}
	op, _ := m["op"].(string)
	source, _ := m["source"].(map[string]any)
	if len(op) != 1 || source == nil {
		return Change{}, errEnvelope
	}
	ch := Change{Table: fmt.Sprint(some(source["schema"]), ".", some(source["table"])), Op: op[0]}
	if before := some(m["before"]); before != nil {
		ch.Old = c.row(before)
	}
	if after := some(m["after"]); after != nil {
		ch.New = c.row(after)
	}
	return ch, nil
}

// some takes a value out of goavro's form of a union.
func some(v any) any {
	if m, is := v.(map[string]any); is && len(m) == 1 {
		for _, x := range m {
			return x
		}
	}
	return v
}

func (c *codec) row(native any) Row {
	m, is := native.(map[string]any)
	if !is {
		return nil
	}
	r := Row{}
	for name, v := range m {
		if column, other := c.names[name]; other {
			name = column
		}
		if r[name] = Null; v != nil {
			r[name] = text(c.columns[name], some(v))
		}
	}
	return r
}

// text is a value as Postgres prints it; one that there is no rule for is as it
// is in the record.
func text(typ string, v any) string {
	if of, is := strings.CutPrefix(typ, "array/"); is {
		return array(of, v)
	}
	switch v := v.(type) {
	case bool:
		if v {
			return "t"
		}
		return "f"
	case int32:
		if typ == "org.apache.kafka.connect.data.Date" {
			return date(int64(v))
		}
		return strconv.Itoa(int(v))
	case int64:
		switch typ {
		case "io.debezium.time.MicroTime":
			return clock(v)
		case "io.debezium.time.MicroTimestamp":
			switch v {
			case math.MaxInt64:
				return "infinity"
			case math.MinInt64:
				return "-infinity"
			}
			return moment(time.UnixMicro(v).UTC(), "")
		}
		return strconv.FormatInt(v, 10)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	case []byte:
		if scale, is := strings.CutPrefix(typ, "decimal/"); is {
			return decimal(v, scale)
		}
		return `\x` + hex.EncodeToString(v)
	case string:
		switch typ {
		case "io.debezium.time.ZonedTimestamp":
			if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
				return moment(t.UTC(), "+00")
			}
		case "io.debezium.time.ZonedTime":
			return strings.TrimSuffix(v, ":00")
		}
		return v
	}
	return fmt.Sprint(v)
}

// normal is a text in the form that text gives it: Postgres prints floats
// otherwise than Go.
func normal(typ, s string) string {
	bits := 64
	switch typ {
	case "float":
		bits = 32
	case "double":
	default:
		return s
	}
	f, err := strconv.ParseFloat(s, bits)
	if err != nil {
		return s
	}
	return strconv.FormatFloat(f, 'g', -1, bits)
}

func date(days int64) string {
	switch days {
	case math.MaxInt32:
		return "infinity"
	case math.MinInt32:
		return "-infinity"
	}
	return day(time.Unix(days*86400, 0).UTC())
}

// day is a date; the year before 1 is 1 BC.
func day(t time.Time) string {
	y, era := t.Year(), ""
	if y <= 0 {
		y, era = 1-y, " BC"
	}
	return fmt.Sprintf("%04d-%02d-%02d%s", y, t.Month(), t.Day(), era)
}

func moment(t time.Time, zone string) string {
	d, era, _ := strings.Cut(day(t), " ")
	if era != "" {
		era = " " + era
	}
	micros := int64(t.Hour())*3600e6 + int64(t.Minute())*60e6 + int64(t.Second())*1e6 + int64(t.Nanosecond()/1000)
	return d + " " + clock(micros) + zone + era
}

func clock(micros int64) string {
	s := fmt.Sprintf("%02d:%02d:%02d", micros/3600e6, micros/60e6%60, micros/1e6%60)
	if f := micros % 1e6; f != 0 {
		s += strings.TrimRight(fmt.Sprintf(".%06d", f), "0")
	}
	return s
}

// decimal reads an unscaled two's complement, big-endian.
func decimal(b []byte, scale string) string {
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	digits, sign := n.String(), ""
	if digits[0] == '-' {
		digits, sign = digits[1:], "-"
	}
	s, err := strconv.Atoi(scale)
	if err != nil || s <= 0 {
		return sign + digits
	}
	if len(digits) <= s {
		digits = strings.Repeat("0", s-len(digits)+1) + digits
	}
	return sign + digits[:len(digits)-s] + "." + digits[len(digits)-s:]
}

// array is a list of one dimension.
func array(of string, v any) string {
	list, is := v.([]any)
	if !is {
		return fmt.Sprint(v)
	}
	out := make([]string, len(list))
	for i, x := range list {
		if x == nil {
			out[i] = "NULL"
			continue
		}
		s := text(of, some(x))
		if s == "" || strings.EqualFold(s, "null") || strings.ContainsAny(s, "{}\",\\ \t\n\r\v\f") {
			s = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}
		out[i] = s
	}
	return "{" + strings.Join(out, ",") + "}"
}
