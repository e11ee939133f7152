// Types: the kinds of values that CEL does not have.

package expr

import (
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// The types beside CEL's own bool, int, double, string and bytes.
var (
	decimalType  = types.NewOpaqueType("decimal")
	dateType     = types.NewOpaqueType("date")
	momentType   = types.NewOpaqueType("moment")   // with a zone: one point of time
	datetimeType = types.NewOpaqueType("datetime") // what a clock without a zone shows
	intervalType = types.NewOpaqueType("interval") // months, days and microseconds, kept apart
)

// A date is the days since 1970-01-01, a moment the microseconds since 1970-01-01
// 00:00 UTC, a datetime those since 00:00 on that clock; infinite as in change.
type (
	date     = count[dateKind]
	moment   = count[momentKind]
	datetime = count[datetimeKind]
)

type (
	dateKind     struct{}
	momentKind   struct{}
	datetimeKind struct{}
)

func (dateKind) is() *types.Type     { return dateType }
func (momentKind) is() *types.Type   { return momentType }
func (datetimeKind) is() *types.Type { return datetimeType }

// count is a number of days or microseconds, of a type of its own.
type count[K interface{ is() *types.Type }] int64

func (c count[K]) Type() ref.Type {
	var k K
	return k.is()
}
func (c count[K]) ConvertToNative(t reflect.Type) (any, error) { return noNative(c, t) }
func (c count[K]) ConvertToType(t ref.Type) ref.Val            { return convert(c, t) }
func (c count[K]) Value() any                                  { return c }
func (c count[K]) Equal(o ref.Val) ref.Val                     { return types.Bool(ref.Val(c) == o) }

type interval struct {
	months, days int32
	us           int64
}

// Failure is why an expression has no value for a row. The values that it met
// are kept apart: not everybody may see them.
type Failure struct {
	What, Value string
}

func (f *Failure) Error() string {
	if f.Value == "" {
		return f.What
	}
	return f.What + ": " + f.Value
}

func fail(value any, format string, args ...any) ref.Val {
	f := &Failure{What: fmt.Sprintf(format, args...)}
	switch v := value.(type) {
	case nil:
	case ref.Val:
		f.Value = text(v)
	default:
		f.Value = fmt.Sprint(v)
	}
	return types.WrapErr(f)
}

func noNative(v ref.Val, t reflect.Type) (any, error) {
	return nil, fmt.Errorf("a %s is no %s", v.Type().TypeName(), t)
}

// convert answers type(x), and nothing else.
func convert(v ref.Val, to ref.Type) ref.Val {
	if to == types.TypeType {
		return v.Type().(ref.Val)
	}
	return fail(nil, "a %s is no %s", v.Type().TypeName(), to.TypeName())
}

func (d *Decimal) ConvertToNative(t reflect.Type) (any, error) { return noNative(d, t) }
func (d *Decimal) ConvertToType(t ref.Type) ref.Val            { return convert(d, t) }
func (d *Decimal) Type() ref.Type                              { return decimalType }
func (d *Decimal) Value() any                                  { return d }
func (d *Decimal) Equal(o ref.Val) ref.Val {
	e := toDecimal(o)
	return types.Bool(e != nil && d.cmp(e) == 0)
}

func (i interval) ConvertToNative(t reflect.Type) (any, error) { return noNative(i, t) }
func (i interval) ConvertToType(t ref.Type) ref.Val            { return convert(i, t) }
func (i interval) Type() ref.Type                              { return intervalType }
func (i interval) Value() any                                  { return i }
func (i interval) Equal(o ref.Val) ref.Val                     { return types.Bool(ref.Val(i) == o) }

// equal says whether two values are the same, numbers by what they count.
func equal(a, b ref.Val) bool {
	if n, m := toDecimal(a), toDecimal(b); n != nil && m != nil {
		return n.cmp(m) == 0
	}
	return a.Equal(b) == types.True
}

// among says whether a list has a value, or a map a key.
func among(args ...ref.Val) ref.Val {
	switch all := args[1].(type) {
	case traits.Lister:
		for it := all.Iterator(); it.HasNext() == types.True; {
			if equal(args[0], it.Next()) {
				return types.True
			}
		}
		return types.False
	case traits.Container:
		return all.Contains(args[0])
	}
	return wrong("in", args...)
}

// toDecimal is the number of a decimal or an int; nil of anything else.
func toDecimal(v ref.Val) *Decimal {
	switch v := v.(type) {
	case *Decimal:
		return v
	case types.Int:
		return decimalOf(int64(v))
	}
	return nil
}

func isNull(v ref.Val) bool { return v == types.NullValue }
