// Named types: a column's type by its name and its values by their text, for rows
// that a person writes and no catalog describes.

package pgoutput

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// Named is a built-in type by its name.
type Named struct {
	Column change.Column // without its name; never null
	coder  Coder
	pad    int // character(n): the blanks that PostgreSQL fills up with
}

// typeNames are the names of built-in types, each with its OID; the first name
// of an OID is the one that format_type gives.
var typeNames = []struct {
	name string
	id   uint32
}{
	{"boolean", 16},
	{"bool", 16},
	{"bytea", 17},
	{"name", 19},
	{"bigint", 20},
	{"int8", 20},
	{"smallint", 21},
	{"int2", 21},
	{"integer", 23},
	{"int", 23},
	{"int4", 23},
	{"text", 25},
	{"oid", 26},
	{"json", 114},
	{"real", 700},
	{"float4", 700},
	{"double precision", 701},
	{"float8", 701},
	{"character", 1042},
	{"char", 1042},
	{"bpchar", 1042},
	{"character varying", 1043},
	{"varchar", 1043},
	{"date", 1082},
	{"time without time zone", 1083},
	{"time", 1083},
	{"timestamp without time zone", 1114},
	{"timestamp", 1114},
	{"timestamp with time zone", 1184},
	{"timestamptz", 1184},
	{"interval", 1186},
	{"time with time zone", 1266},
	{"timetz", 1266},
	{"numeric", 1700},
	{"decimal", 1700},
	{"uuid", 2950},
	{"jsonb", 3802},
}

// TypeNames are the names that NamedType knows, without modifiers and brackets.
func TypeNames() []string {
	out := make([]string, len(typeNames))
	for i, n := range typeNames {
		out[i] = n.name
	}
	return out
}

// NamedType finds a built-in type as format_type prints it or as people write
// it: numeric(12,4), timestamp(3) with time zone, varchar(20), int8[]. ok is
// false of what is not built in, or has a modifier that it does not take.
func NamedType(written string) (n Named, ok bool) {
	name := strings.Join(strings.Fields(strings.ToLower(written)), " ")
	base, array := strings.CutSuffix(name, "[]")
	base, args, ok := modifier(base)
	if !ok {
		return n, false
	}
	id := uint32(0)
	for _, t := range typeNames {
		if t.name == base {
			id = t.id
			break
		}
	}
	if id == 0 {
		return n, false
	}
	mod, ok := typeModifier(id, args)
	if !ok {
		return n, false
	}
	var types Types
	types.Add(&Type{ID: id, Name: base, Class: 'b'})
	if array {
		const own = 1 // no OID of a type
		types.Add(&Type{ID: own, Elem: id, Name: name, Class: 'b', Array: true})
		n.Column, n.coder = types.Column(own, mod)
		return n, true
	}
	n.Column, n.coder = types.Column(id, mod)
	n.Column.Type = name
	if id == 1042 && len(args) == 1 {
		n.pad = args[0]
	}
	return n, true
}

// modifier takes "numeric(12,4)" or "time(3) with time zone" apart.
func modifier(name string) (base string, args []int, ok bool) {
	head, rest, has := strings.Cut(name, "(")
	if !has {
		return name, nil, true
	}
	inner, tail, closed := strings.Cut(rest, ")")
	if !closed {
		return "", nil, false
	}
	for _, a := range strings.Split(inner, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(a))
		if err != nil || n < -1000 || n > 1<<20 {
			return "", nil, false
		}
		args = append(args, n)
	}
	return strings.TrimSpace(head) + tail, args, true
}

// typeModifier is the modifier as pg_attribute has it.
func typeModifier(id uint32, args []int) (mod int32, ok bool) {
	switch id {
	case 1700:
		switch {
		case len(args) == 0:
			return -1, true
		case len(args) == 1:
			args = append(args, 0)
		case len(args) > 2:
			return 0, false
		}
		return int32(args[0]<<16|args[1]&0x7ff) + 4, args[0] >= 1 && args[0] <= 1000
	case 1083, 1114, 1184, 1266:
		if len(args) == 1 && args[0] >= 0 && args[0] <= 6 {
			return int32(args[0]), true
		}
	case 1042, 1043:
		if len(args) == 1 && args[0] > 0 {
			return int32(args[0]) + 4, true
		}
	}
	return -1, len(args) == 0
}

// Value reads a text that is not null into memory of b: PostgreSQL's own text,
// and what people write in its place (true, a T between date and time, a Z, a
// date as its midnight, fewer digits than the column has).
func (n *Named) Value(b *change.Batch, text string) (change.Value, error) {
	p := text
	switch n.Column.Kind {
	case change.Bool:
		switch p {
		case "true":
			p = "t"
		case "false":
			p = "f"
		}
	case change.Int:
		if v, err := strconv.ParseInt(p, 10, 8*max(2, int(n.Column.Width))); err == nil {
			p = strconv.FormatInt(v, 10)
		} else {
			return change.Value{}, n.not(text)
		}
	case change.Decimal:
		_, fraction, point := strings.Cut(p, ".")
		if missing := int(n.Column.Scale) - len(fraction); missing > 0 && len(p) > 0 && p[len(p)-1] >= '0' && p[len(p)-1] <= '9' {
			if !point {
				p += "."
			}
			p += strings.Repeat("0", missing)
		} else if n.Column.Scale >= 0 && missing < 0 {
			return change.Value{}, fmt.Errorf("%q has more digits than %s holds", text, n.Column.Type)
		}
	case change.Timestamp, change.TimestampTZ:
		if len(p) > 10 && p[10] == 'T' {
			p = p[:10] + " " + p[11:]
		}
		if z, is := strings.CutSuffix(p, "Z"); is && n.Column.Kind == change.TimestampTZ {
			p = z + "+00"
		}
		if len(p) == 10 && n.Column.Kind == change.Timestamp {
			p += " 00:00:00"
		}
	case change.String:
		if missing := n.pad - len([]rune(p)); missing > 0 {
			p += strings.Repeat(" ", missing)
		}
	}
	v, err := n.coder.DecodeText(b, []byte(p), -1)
	if err != nil {
		return v, n.not(text)
	}
	return v, nil
}

// not says what would be one.
func (n *Named) not(text string) error {
	like := map[change.Kind]string{
		change.Bool: "true", change.Date: "2026-03-31", change.Time: "08:30:00", change.TimeTZ: "08:30:00+02", change.Timestamp: "2026-03-31 23:00:00",
		change.TimestampTZ: "2026-03-31 23:00:00+02", change.Interval: "1 day 02:30:00", change.Bytes: `\x00ff`, change.Decimal: "12.50", change.Array: "{1,2}",
		change.UUID: "6f9619ff-8b86-d011-b42d-00c04fc964ff",
	}[n.Column.Kind]
	if like != "" {
		return fmt.Errorf("%q is no %s, such as %s", text, n.Column.Type, like)
	}
	return fmt.Errorf("%q is no %s", text, n.Column.Type)
}
