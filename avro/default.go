// Default: what a field is where its source has nothing, as the contract's
// schema says it.

package avro

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// Default is the value of a field that is never null, for rows that have none.
// It is immutable, and shared.
type Default struct {
	in *change.Batch
	v  change.Value
}

// Value gives it as a value of b.
func (d *Default) Value(b *change.Batch) change.Value { return b.Copy(d.in, d.v) }

// String is its canonical text.
func (d *Default) String() string { return string(d.in.AppendText(nil, d.v)) }

// written is what a person takes for a number. Of a decimal it would be taken
// for octets.
var written = regexp.MustCompile(`^-?[0-9]*\.?[0-9]+$`)

// readDefault reads the attribute "default" of a field in Avro's JSON form
// (specification, "Complex Types", default); nil: it has none that is not null.
func readDefault(n *field, col *change.Column, values []string) (*Default, error) {
	given, is := n.props["default"]
	switch {
	case !is, given == nil && col.Nullable:
		return nil, nil
	case given == nil:
		return nil, fmt.Errorf("its default is null, and it is never null: give it another, or the type [\"null\", …]")
	case col.Nullable:
		return nil, fmt.Errorf("its default is not null, and it may be null: null stands for what is not there")
	}
	d := &Default{in: new(change.Batch)}
	of, _, err := n.typ.optional()
	if err != nil {
		return nil, err
	}
	if d.v, err = defaultValue(d.in, given, of, col); err != nil {
		return nil, fmt.Errorf("its default %w", err)
	}
	if text := d.String(); values != nil && !slices.Contains(values, text) {
		return nil, fmt.Errorf("its default %q is none of %s", text, strings.Join(values, ", "))
	}
	return d, nil
}

// defaultValue makes a value of what stands in JSON for a type.
func defaultValue(b *change.Batch, given any, of *node, col *change.Column) (change.Value, error) {
	number, _ := given.(json.Number)
	text, isText := given.(string)
	switch {
	case col.Kind == change.Bool:
		if is, ok := given.(bool); ok {
			return change.BoolValue(is), nil
		}
		return change.Value{}, fmt.Errorf("must be true or false")
	case col.Kind == change.Decimal && of.typ == "bytes":
		return defaultDecimal(b, given, col)
	case col.Kind == change.String:
		if isText {
			return b.SpanString(change.String, text), nil
		}
		return change.Value{}, fmt.Errorf("must be a text in quotes")
	case of.typ == "float" || of.typ == "double":
		if x, err := number.Float64(); err == nil && of.typ == "double" {
			return change.Float64Value(x), nil
		} else if err == nil && float64(float32(x)) == x {
			return change.Float32Value(float32(x)), nil
		}
		return change.Value{}, fmt.Errorf("must be a number that a %s holds", of.typ)
	case of.typ != "int" && of.typ != "long":
		return change.Value{}, fmt.Errorf("cannot be had: of a field that is %s there is none", col.Type)
	}
	whole, err := number.Int64()
	fits := err == nil && (of.typ == "long" || whole == int64(int32(whole)))
	switch col.Kind {
	case change.Int:
		if fits {
			return change.IntValue(whole), nil
		}
		return change.Value{}, fmt.Errorf("must be a whole number that an Avro %s holds", of.typ)
	case change.Date:
		if fits {
			return change.DateValue(whole), nil
		}
		return change.Value{}, fmt.Errorf("must be the days since 1970-01-01, a whole number")
	case change.Timestamp, change.TimestampTZ:
		if strings.HasSuffix(of.logical, "-micros") && fits {
			v := change.TimestampTZValue(whole)
			if col.Kind == change.Timestamp {
				v = change.TimestampValue(whole)
			}
			return v, nil
		} else if strings.HasSuffix(of.logical, "-micros") {
			return change.Value{}, fmt.Errorf("must be the microseconds since 1970-01-01, a whole number")
		}
	}
	return change.Value{}, fmt.Errorf("cannot be had: of a field that is %s there is none", col.Type)
}

// defaultDecimal reads the octets of the unscaled number, each a character.
func defaultDecimal(b *change.Batch, given any, col *change.Column) (change.Value, error) {
	text := fmt.Sprint(given)
	if _, octets := given.(string); written.MatchString(text) || !octets {
		return change.Value{}, fmt.Errorf("must be Avro's octets of the unscaled number%s", octetsOf(text, int(col.Scale)))
	}
	var octets []byte
	for _, r := range text {
		if r > 0xFF {
			return change.Value{}, fmt.Errorf(`must be octets, \u0000 to \u00ff each`)
		}
		octets = append(octets, byte(r))
	}
	if len(octets) == 0 {
		return change.Value{}, fmt.Errorf("must be Avro's octets of the unscaled number%s", octetsOf("0", 0))
	}
	v := b.DecimalBytes(octets, col.Scale)
	limit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(col.Precision)), nil)
	if b.Unscaled(new(big.Int), v).CmpAbs(limit) >= 0 {
		return change.Value{}, fmt.Errorf("is %s, which %s cannot hold", b.AppendText(nil, v), col.Type)
	}
	return v, nil
}

// octetsOf says how a number is written as octets, if it is one of that scale.
func octetsOf(text string, scale int) string {
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		return ""
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(scale)), nil)))
	if !r.IsInt() || !r.Num().IsInt64() {
		return fmt.Sprintf(", which has %d digits after the point", scale)
	}
	return fmt.Sprintf("; of %s they are %s", text, jsonOctets(appendUnscaled(nil, r.Num().Int64())[1:]))
}

// jsonOctets are octets as Avro has them in JSON.
func jsonOctets(p []byte) string {
	out := `"`
	for _, c := range p {
		out += fmt.Sprintf(`\u%04x`, c)
	}
	return out + `"`
}
