// Types: the kinds of values that CEL does not have.

package expr

import (
	"fmt"
	"reflect"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// The types beside CEL's own bool, int, double, string and bytes.
var (
	decimalType  = types.NewOpaqueType("decimal")
	dateType     = types.NewOpaqueType("date")
	momentType   = types.NewOpaqueType("moment")   // with a zone: one point of time
	datetimeType = types.NewOpaqueType("datetime") // what a clock without a zone shows
	intervalType = types.NewOpaqueType("interval") // months, days and microseconds, kept apart
)

type (
	date     int64 // days since 1970-01-01, or infinite as in change
	moment   int64 // microseconds since 1970-01-01 00:00 UTC, or infinite
	datetime int64 // microseconds since 1970-01-01 00:00 on that clock, or infinite
	interval struct {
		months, days int32
		us           int64
	}
)

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

func (d date) ConvertToNative(t reflect.Type) (any, error) { return noNative(d, t) }
func (d date) ConvertToType(t ref.Type) ref.Val            { return convert(d, t) }
func (d date) Type() ref.Type                              { return dateType }
func (d date) Value() any                                  { return d }
func (d date) Equal(o ref.Val) ref.Val                     { return types.Bool(ref.Val(d) == o) }

func (m moment) ConvertToNative(t reflect.Type) (any, error) { return noNative(m, t) }
func (m moment) ConvertToType(t ref.Type) ref.Val            { return convert(m, t) }
func (m moment) Type() ref.Type                              { return momentType }
func (m moment) Value() any                                  { return m }
func (m moment) Equal(o ref.Val) ref.Val                     { return types.Bool(ref.Val(m) == o) }

func (c datetime) ConvertToNative(t reflect.Type) (any, error) { return noNative(c, t) }
func (c datetime) ConvertToType(t ref.Type) ref.Val            { return convert(c, t) }
func (c datetime) Type() ref.Type                              { return datetimeType }
func (c datetime) Value() any                                  { return c }
func (c datetime) Equal(o ref.Val) ref.Val                     { return types.Bool(ref.Val(c) == o) }

func (i interval) ConvertToNative(t reflect.Type) (any, error) { return noNative(i, t) }
func (i interval) ConvertToType(t ref.Type) ref.Val            { return convert(i, t) }
func (i interval) Type() ref.Type                              { return intervalType }
func (i interval) Value() any                                  { return i }
func (i interval) Equal(o ref.Val) ref.Val                     { return types.Bool(ref.Val(i) == o) }

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
