// Text: a field's value as it is compared, and shown.

package rules

import (
	"fmt"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// Text is the text of a field as its topic holds it, booleans in words and
// numbers without zeros at their end; nil: null.
func Text(b *change.Batch, col *change.Column, v change.Value) *string {
	if v.IsNull() {
		return nil
	}
	text := string(b.AppendText(nil, v))
	switch {
	case v.Kind() == change.Bool:
		text = fmt.Sprint(v.Bool())
	case col.Kind == change.Decimal && v.Form() == change.Finite && strings.Contains(text, "."):
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	return &text
}
