// List: an expression whose value is a list, and the elements that others then
// read as `item`.

package expr

import (
	"fmt"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/traits"
)

// MaxItems bounds the lists that one row may have.
const MaxItems = 10_000

// List makes a program whose value is a list, or null.
func List(text string, s Scope) (*Program, []Mistake) {
	elem := types.DynType
	p, bad := newCompiler(s).compile(text, func(out *types.Type) string {
		switch out.Kind() {
		case types.DynKind, types.NullTypeKind:
			return ""
		case types.ListKind:
			if of := out.Parameters(); len(of) == 1 && of[0].Kind() != types.TypeParamKind {
				elem = of[0]
			}
			return ""
		}
		return fmt.Sprintf("each is a list, this is a %s", typeName(out))
	})
	if p != nil {
		p.elem = elem
	}
	return p, bad
}

// Items evaluates a list and says how many elements it has; of null, and of what
// is made of one column that is null, none. Take
// then says which of them is `item`, for all programs that run on r. An error is
// a *Failure.
func (p *Program) Items(r *Row) (int, error) {
	clear(r.items)
	r.items, r.index = r.items[:0], 0
	v, err := p.eval(r)
	if err != nil && len(p.Columns) == 1 && r.Of[p.Columns[0]].IsNull() {
		return 0, nil // CEL's own functions and fields have nothing for a null: what is made of it is null
	}
	if err != nil || isNull(v) {
		return 0, err
	}
	l, is := v.(traits.Lister)
	if !is {
		return 0, &Failure{What: "each is a list, this is a " + typeName(v.Type().(*types.Type))}
	}
	n, _ := l.Size().(types.Int)
	if n > MaxItems {
		return 0, &Failure{What: fmt.Sprintf("the list has %d elements, more than %d", n, MaxItems)}
	}
	for i := range n {
		r.items = append(r.items, l.Get(i))
	}
	return int(n), nil
}

// Take makes element i of the last list `item`.
func (r *Row) Take(i int) { r.index = i }
