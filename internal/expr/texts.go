// Texts: conditions that compare two texts, which need no interpreter.

package expr

import (
	"bytes"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/tallywire/tallywire/change"
)

// texts is a == b or a != b, where each is a column or a constant text.
type texts struct {
	a, b side
	not  bool
}

// side of a comparison: a column, or, where that is −1, a text.
type side struct {
	column int
	text   string
}

// texts is what a condition compares; nil: it is another one.
func (c *compiler) texts(root ast.Expr, slots map[string]int) *texts {
	if root.Kind() != ast.CallKind {
		return nil
	}
	call := root.AsCall()
	is := call.FunctionName()
	if is != equality[operators.Equals] && is != equality[operators.NotEquals] {
		return nil
	}
	a, ok := c.side(call.Args()[0], slots)
	b, too := c.side(call.Args()[1], slots)
	if !ok || !too {
		return nil
	}
	return &texts{a, b, is == equality[operators.NotEquals]}
}

func (c *compiler) side(e ast.Expr, slots map[string]int) (side, bool) {
	if e.Kind() == ast.IdentKind { // the checker has made ROOT.COLUMN one name
		i, is := slots[e.AsIdent()]
		return side{column: i}, is
	}
	text, is := literal(e).(types.String)
	return side{-1, string(text)}, is
}

// holds compares; ok is false where one of the two is no text in this row, such as null.
func (t *texts) holds(r *Row) (is, ok bool) {
	a, ok := t.a.of(r)
	b, too := t.b.of(r)
	return bytes.Equal(a, b) != t.not, ok && too
}

func (s *side) of(r *Row) ([]byte, bool) {
	if s.column < 0 {
		return []byte(s.text), true
	}
	switch v := r.Of[s.column]; v.Kind() {
	case change.String, change.JSON, change.Enum, change.Text:
		return r.Batch.Bytes(v), true
	}
	return nil, false
}
