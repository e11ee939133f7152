// The library: which functions and operators there are, and for which types.
// Arithmetic and comparisons give null where an operand is null, as SQL does.

package expr

import (
	"fmt"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/decls"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
)

// The types of arguments and results, all of which may be null.
var (
	boolN   = types.NewNullableType(types.BoolType)
	intN    = types.NewNullableType(types.IntType)
	doubleN = types.NewNullableType(types.DoubleType)
	stringN = types.NewNullableType(types.StringType)
	bytesN  = types.NewNullableType(types.BytesType)
)

// scalars are all types that a field may have.
var scalars = []*types.Type{boolN, intN, doubleN, stringN, bytesN, decimalType, dateType, momentType, datetimeType, intervalType}

var someList = types.NewListType(types.NewTypeParamType("A"))

// sig is one signature of a function.
type sig struct {
	out  *types.Type
	args []*types.Type
}

func to(out *types.Type, args ...*types.Type) sig { return sig{out: out, args: args} }

// function declares one with its signatures, all of which impl serves.
func function(name string, impl func(args ...ref.Val) ref.Val, sigs ...sig) cel.EnvOption {
	opts := []cel.FunctionOpt{decls.DisableTypeGuards(true)}
	for i, s := range sigs {
		var bind cel.OverloadOpt
		switch len(s.args) {
		case 1:
			bind = cel.UnaryBinding(func(a ref.Val) ref.Val { return impl(a) })
		case 2:
			bind = cel.BinaryBinding(func(a, b ref.Val) ref.Val { return impl(a, b) })
		default:
			bind = cel.FunctionBinding(impl)
		}
		given := []cel.OverloadOpt{bind}
		if name == "coalesce" { // what comes after the first that is not null may have no value
			given = append(given, decls.OverloadIsNonStrict())
		}
		opts = append(opts, cel.Overload(fmt.Sprintf("tallywire_%s_%d", name, i), s.args, s.out, given...))
	}
	return cel.Function(name, opts...)
}

// strict is impl, of arguments none of which is null.
func strict(impl func(args ...ref.Val) ref.Val) func(args ...ref.Val) ref.Val {
	return func(args ...ref.Val) ref.Val {
		for _, a := range args {
			if isNull(a) {
				return types.NullValue
			}
		}
		return impl(args...)
	}
}

// wrong is the result for a value whose type was not known before.
func wrong(name string, args ...ref.Val) ref.Val {
	types := ""
	for i, a := range args {
		if i > 0 {
			types += ", "
		}
		types += a.Type().TypeName()
	}
	return fail(nil, "%s does not go with (%s)", name, types)
}

// numbers are the signatures of an operator of two numbers that stays exact.
func numbers(more ...sig) []sig {
	return append([]sig{
		to(intN, intN, intN), to(doubleN, doubleN, doubleN),
		to(decimalType, decimalType, decimalType), to(decimalType, decimalType, intN), to(decimalType, intN, decimalType),
	}, more...)
}

// ordered are the signatures of a comparison.
func ordered() []sig {
	out := []sig{to(boolN, decimalType, intN), to(boolN, intN, decimalType)}
	for _, t := range []*types.Type{intN, doubleN, stringN, decimalType, dateType, momentType, datetimeType} {
		out = append(out, to(boolN, t, t))
	}
	return out
}

// stdlib is what is left of CEL's own functions; the others have another meaning
// here, or none: / of whole numbers cuts off, dates have no zone.
func stdlib() cel.EnvOption {
	include := &env.LibrarySubset{}
	for _, name := range []string{
		operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.NotStrictlyFalse, operators.Index, operators.Modulo,
		"size", "contains", "startsWith", "endsWith", "matches",
	} {
		include.IncludeFunctions = append(include.IncludeFunctions, env.NewFunction(name))
	}
	return cel.StdLib(cel.StdLibSubset(include))
}

// equality has our own names of CEL's operators: CEL's planner takes those, and
// of an int and a decimal says that they differ.
var equality = map[string]string{operators.Equals: "@equal", operators.NotEquals: "@differ", operators.In: "@among"}

// same declares equality, for operands of one type, and the choice c ? a : b,
// which is the planner's, and whose branches may be null.
func same() []cel.EnvOption {
	var equals, choice, member []sig
	var choices []cel.FunctionOpt
	anything := types.NewTypeParamType("A")
	someMap := types.NewMapType(types.StringType, anything)
	for _, t := range append(append([]*types.Type{}, scalars...), someList, someMap) {
		equals = append(equals, to(types.BoolType, t, t))
		choice = append(choice, to(t, types.BoolType, t, t))
	}
	equals = append(equals, to(types.BoolType, decimalType, intN), to(types.BoolType, intN, decimalType))
	for _, s := range equals {
		if elem := s.args[1]; elem.Kind() != types.ListKind && elem.Kind() != types.MapKind {
			member = append(member, to(types.BoolType, s.args[0], types.NewListType(elem)))
		}
	}
	member = append(member, to(types.BoolType, stringN, someMap))
	for i, s := range choice {
		choices = append(choices, cel.Overload(fmt.Sprintf("tallywire_choice_%d", i), s.args, s.out))
	}
	return []cel.EnvOption{
		cel.Function(operators.Conditional, choices...),
		function(equality[operators.Equals], func(args ...ref.Val) ref.Val { return types.Bool(equal(args[0], args[1])) }, equals...),
		function(equality[operators.NotEquals], func(args ...ref.Val) ref.Val { return types.Bool(!equal(args[0], args[1])) }, equals...),
		function(equality[operators.In], among, member...),
	}
}

func library() []cel.EnvOption {
	compare := func(name string, holds func(int) bool) cel.EnvOption {
		return function(name, strict(func(args ...ref.Val) ref.Val {
			n, err := order(args[0], args[1])
			if err != nil {
				return err
			}
			return types.Bool(holds(n))
		}), ordered()...)
	}
	anyScalar := func(out *types.Type) (sigs []sig) {
		for _, t := range scalars {
			sigs = append(sigs, to(out, t))
		}
		return sigs
	}
	var first []sig
	for _, t := range scalars {
		first = append(first, to(t, t, t), to(t, t, t, t))
	}
	div := []sig{}
	for _, a := range []*types.Type{decimalType, intN} {
		for _, b := range []*types.Type{decimalType, intN} {
			div = append(div, to(decimalType, a, b, intN, stringN))
		}
	}
	opts := []cel.EnvOption{
		stdlib(), ext.Strings(),
		function(operators.Add, strict(add), numbers(to(stringN, stringN, stringN), to(dateType, dateType, intN), to(intervalType, intervalType, intervalType),
			to(someList, someList, someList))...),
		function(operators.Subtract, strict(subtract), numbers(to(dateType, dateType, intN), to(intN, dateType, dateType),
			to(intervalType, momentType, momentType), to(intervalType, datetimeType, datetimeType), to(intervalType, intervalType, intervalType))...),
		function(operators.Multiply, strict(multiply), numbers()...),
		function(operators.Divide, strict(divide), to(doubleN, doubleN, doubleN)),
		function(operators.Negate, strict(negate), to(intN, intN), to(doubleN, doubleN), to(decimalType, decimalType)),
		compare(operators.Less, func(n int) bool { return n < 0 }),
		compare(operators.LessEquals, func(n int) bool { return n <= 0 }),
		compare(operators.Greater, func(n int) bool { return n > 0 }),
		compare(operators.GreaterEquals, func(n int) bool { return n >= 0 }),

		function("coalesce", coalesce, first...),
		function("string", strict(func(args ...ref.Val) ref.Val { return types.String(text(args[0])) }), anyScalar(stringN)...),
		function("int", strict(toInt), to(intN, intN), to(intN, doubleN), to(intN, decimalType), to(intN, stringN)),
		function("double", strict(toDouble), to(doubleN, intN), to(doubleN, doubleN), to(doubleN, stringN), to(doubleN, decimalType)),
		function("decimal", strict(asDecimal), to(decimalType, decimalType), to(decimalType, intN), to(decimalType, doubleN), to(decimalType, stringN)),
		function("round", strict(round), to(decimalType, decimalType, intN, stringN), to(decimalType, intN, intN, stringN)),
		function("div", strict(div4), div...),
		function("abs", strict(absolute), to(intN, intN), to(doubleN, doubleN), to(decimalType, decimalType)),

		function("date", strict(asDate), to(dateType, stringN), to(dateType, intN, intN, intN)),
		function("moment", strict(asMoment), to(momentType, stringN), to(momentType, datetimeType, stringN), to(momentType, dateType, stringN)),
		function("datetime", strict(asDatetime), to(datetimeType, stringN), to(datetimeType, momentType, stringN)),
		function("day", strict(day), to(dateType, datetimeType), to(dateType, momentType, stringN)),
		function("year", strict(func(args ...ref.Val) ref.Val { return datePart(args[0], "year") }), to(intN, dateType)),
		function("month", strict(func(args ...ref.Val) ref.Val { return datePart(args[0], "month") }), to(intN, dateType)),
		function("hours", strict(hours), to(decimalType, intervalType, intN, stringN)),

		function("after", strict(after), to(stringN, stringN, stringN)),
		function("normalise", strict(normalise), to(stringN, stringN)),
		function("json", strict(fromJSON), to(types.DynType, stringN)),
	}
	return append(opts, same()...)
}
