// Way: how the values of a column become those of a field.

package expr

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/tallywire/tallywire/change"
)

// Takes reports whether a field takes the values of a column without an
// expression, and whether it takes them as text.
func Takes(col, field *change.Column) (asText, ok bool) {
	switch {
	case col.Kind == field.Kind:
		return false, true
	case col.Kind == change.Null:
		return field.Kind == change.String, true // it is not known, nor is there a value
	case field.Kind == change.Decimal && col.Kind == change.Int:
		return false, true // the encoder writes it at the contract's scale
	case field.Kind == change.String && col.Kind != change.Bytes && col.Kind != change.Array:
		return true, true
	}
	return false, false
}

// Way is the expression that makes a field of a column that it does not take as
// it is; "": there is none.
func Way(col, field *change.Column) string {
	row := Column(col.Name)
	switch {
	case row == "":
	case field.Kind == change.Decimal && (col.Kind == change.Float64 || col.Kind == change.Float32):
		return fmt.Sprintf(`round(decimal(%s), %d, "half_even")`, row, field.Scale)
	case field.Kind == change.Decimal && col.Kind == change.Interval:
		return fmt.Sprintf(`hours(%s, %d, "half_even")`, row, field.Scale)
	case field.Kind == change.TimestampTZ && (col.Kind == change.Timestamp || col.Kind == change.Date):
		return fmt.Sprintf(`moment(%s, "UTC")`, row)
	case field.Kind == change.Date && col.Kind == change.Timestamp:
		return fmt.Sprintf(`day(%s)`, row)
	case field.Kind == change.Date && col.Kind == change.TimestampTZ:
		return fmt.Sprintf(`day(%s, "UTC")`, row)
	}
	return ""
}

// reserved are words that CEL does not take as a name.
var reserved = strings.Fields("as break const continue else false for function if import in let loop namespace null package return true var void while")

// Plain reports whether a rule takes a text for the name of a column: letters,
// digits and underscores, as such a name mostly is.
func Plain(s string) bool {
	for i, r := range s {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || r != '$' && !unicode.IsDigit(r)) {
			return false
		}
	}
	return true
}

// Column is how an expression names a column; "": it cannot (what stands between
// backticks are letters and digits of ASCII, and _ . - / and blanks).
func Column(name string) string {
	word := name != "" && !slices.Contains(reserved, name)
	for i, r := range name {
		switch digit := r >= '0' && r <= '9'; {
		case r == '_', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', digit && i > 0:
		case digit, strings.ContainsRune(".-/ ", r):
			word = false
		default:
			return ""
		}
	}
	switch {
	case name == "":
		return ""
	case word:
		return "row." + name
	}
	return "row.`" + name + "`"
}
