// Types: what a column's type is in a Batch, and how its cells are read.

package pgoutput

import (
	"fmt"

	"github.com/tallywire/tallywire/change"
)

// Type is a row of pg_type.
type Type struct {
	ID, Base, Elem uint32
	Name           string
	Class          rune  // typtype: b, c, d, e, m, p, r
	Mod            int32 // typtypmod, of a domain's base
	Array          bool  // a true array type of Elem
	Labels         []string
}

// Types are what the catalog says of the types of some columns. The zero Types
// knows none.
type Types struct {
	byID  map[uint32]*Type
	names map[typeMod]string
}

type typeMod struct {
	id  uint32
	mod int32
}

// Add describes a type. The types that it is made of have to be added too.
func (t *Types) Add(i *Type) {
	if t.byID == nil {
		t.byID = map[uint32]*Type{}
	}
	t.byID[i.ID] = i
}

// Has reports whether a type was added.
func (t *Types) Has(id uint32) bool { return t.byID[id] != nil }

// SetName gives the name that the server has for a type with a modifier
// (format_type).
func (t *Types) SetName(id uint32, mod int32, name string) {
	if t.names == nil {
		t.names = map[typeMod]string{}
	}
	t.names[typeMod{id, mod}] = name
}

func (t *Types) name(id uint32, mod int32) string {
	if n, ok := t.names[typeMod{id, mod}]; ok {
		return n
	}
	if i := t.byID[id]; i != nil {
		return i.Name
	}
	return fmt.Sprintf("type %d", id)
}

// The OIDs of built-in types that have a decoder (src/include/catalog/pg_type.dat).
var builtin = map[uint32]struct {
	code  code
	kind  change.Kind
	width int8
}{
	16: {asBool, change.Bool, 0}, 17: {asBytes, change.Bytes, 0}, 18: {asChar, change.String, 0}, 19: {asString, change.String, 0},
	20: {asInt8, change.Int, 8}, 21: {asInt2, change.Int, 2}, 23: {asInt4, change.Int, 4}, 25: {asString, change.String, 0},
	26: {asOID, change.Int, 8}, 114: {asJSON, change.JSON, 0}, 700: {asFloat4, change.Float32, 0}, 701: {asFloat8, change.Float64, 0},
	1042: {asString, change.String, 0}, 1043: {asString, change.String, 0}, 1082: {asDate, change.Date, 0}, 1083: {asTime, change.Time, 0},
	1114: {asTimestamp, change.Timestamp, 0}, 1184: {asTimestampTZ, change.TimestampTZ, 0}, 1186: {asInterval, change.Interval, 0},
	1266: {asTimeTZ, change.TimeTZ, 0}, 1700: {asNumeric, change.Decimal, 0}, 2950: {asUUID, change.UUID, 0}, 3802: {asJSONB, change.JSON, 0},
}

// BuiltinKind is of what kind the values of a built-in type are; of others Text.
func BuiltinKind(id uint32) change.Kind {
	if known, is := builtin[id]; is {
		return known.kind
	}
	return change.Text
}

// Column describes a column of a type with its modifier, without its name, and
// how its cells are read; a domain is its base type. A type that is unknown, or
// that has no decoder, is carried as its exact text.
func (t *Types) Column(id uint32, mod int32) (change.Column, Coder) {
	c := change.Column{Type: t.name(id, mod), TypeID: id, Precision: -1, Scale: -1, Kind: change.Text}
	i := t.byID[id]
	if i == nil {
		return c, Coder{}
	}
	if i.Class == 'd' {
		base, cd := t.Column(i.Base, i.Mod)
		base.Type, base.TypeID = c.Type, id
		return base, cd
	}
	if i.Class == 'e' {
		c.Kind, c.Labels = change.Enum, i.Labels
		return c, Coder{code: asEnum}
	}
	if i.Array {
		elem, cd := t.Column(i.Elem, mod)
		elem.Nullable = true
		if cd.code == asText || cd.code == asArray { // an array over a domain over an array: as text
			return c, Coder{}
		}
		c.Kind, c.Elem = change.Array, &elem
		return c, Coder{code: asArray, elem: &cd}
	}
	known, ok := builtin[id]
	if !ok {
		return c, Coder{}
	}
	c.Kind, c.Width = known.kind, known.width
	if mod >= 0 {
		switch known.code {
		case asNumeric: // ((precision << 16) | (scale & 0x7ff)) + 4, the scale signed
			m := mod - 4
			c.Precision, c.Scale = int16(m>>16), int16((m&0x7ff)^1024-1024)
		case asTime, asTimeTZ, asTimestamp, asTimestampTZ:
			c.Precision = int16(mod)
		case asInterval:
			if p := mod & 0xFFFF; p != 0xFFFF {
				c.Precision = int16(p)
			}
		}
	}
	return c, Coder{code: known.code}
}
