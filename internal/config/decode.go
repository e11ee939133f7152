// decode.go: from the YAML's syntax tree into Go structs, strictly, with every
// mistake's line and column. It collects mistakes instead of ending at the first.

package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
	"github.com/xrash/smetrics"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

type decoder struct {
	file    string
	anchors map[string]ast.Node
	nodes   map[string]ast.Node // what stood at a path, for checks that come later
	env     func(string) (string, bool)
	static  bool // references of secrets are checked in form only
	errs    []error
}

func (d *decoder) fail(c problem.Code, n ast.Node, path, format string, args ...any) *problem.Error {
	e := c.New(format, args...).At("%s", d.at(n, path))
	d.errs = append(d.errs, e)
	return e
}

func (d *decoder) at(n ast.Node, path string) string {
	where := d.file
	if n != nil && n.GetToken() != nil {
		p := n.GetToken().Position
		where = fmt.Sprintf("%s:%d:%d", d.file, p.Line, p.Column)
	}
	if path != "" {
		where += ": " + path
	}
	return where
}

// plain strips what does not change the meaning: anchors, tags, aliases. It
// also makes a text again of what the parser wrongly took apart.
func (d *decoder) plain(n ast.Node) ast.Node {
	for range 100 { // an alias of an alias of …
		if s := wholeText(n); s != nil {
			return s
		}
		switch x := n.(type) {
		case *ast.AnchorNode:
			n = x.Value
		case *ast.TagNode:
			n = x.Value
		case *ast.AliasNode:
			t := d.anchors[x.Value.GetToken().Value]
			if t == nil {
				return x
			}
			n = t
		default:
			return n
		}
	}
	return n
}

// wholeText gives the text that an unquoted host:port is: in a list within
// braces, {brokers: [kafka:9092]}, the parser sees a pair there, but a colon
// makes a pair only before a blank (YAML 1.2.2, section 7.3.3). nil when n is
// something else.
func wholeText(n ast.Node) *ast.StringNode {
	m, ok := n.(*ast.MappingNode)
	if !ok || m.IsFlowStyle || len(m.Values) != 1 {
		return nil
	}
	key, colon, value := m.Values[0].Key.GetToken(), m.Values[0].Start, m.Values[0].Value
	if value == nil {
		return nil
	}
	rest := value.GetToken()
	if s := wholeText(value); s != nil { // http://kafka:9092 is two pairs
		rest = s.Token
	}
	if key.Type != token.StringType || colon == nil || rest == nil {
		return nil
	}
	switch rest.Type {
	case token.StringType, token.IntegerType, token.FloatType, token.BoolType, token.NullType:
	default:
		return nil
	}
	k, c, v := key.Position, colon.Position, rest.Position
	if k.Line != c.Line || c.Line != v.Line || k.Column+utf8.RuneCountInString(key.Value) != c.Column || c.Column+1 != v.Column {
		return nil
	}
	t := *key
	t.Value += ":" + rest.Value
	t.Origin = t.Value
	return ast.String(&t)
}

// kindOf names a node as a person would.
func kindOf(n ast.Node) string {
	switch x := n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.StringNode, *ast.LiteralNode:
		return "a text"
	case *ast.IntegerNode:
		return "the number " + x.GetToken().Value
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + x.GetToken().Value
	case *ast.BoolNode:
		return x.GetToken().Value
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.AliasNode:
		return "an unknown alias"
	}
	return "something else"
}

// text is the content of a text node.
func text(n ast.Node) (string, bool) {
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	}
	return "", false
}

// entries lists the pairs of a mapping in their order.
func entries(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch x := n.(type) {
	case *ast.MappingNode:
		return x.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{x}, true
	}
	return nil, false
}

func keyOf(e *ast.MappingValueNode) string { return e.Key.GetToken().Value }

var (
	secretType   = reflect.TypeFor[secret.Value]()
	dsnType      = reflect.TypeFor[secret.DSN]()
	urlType      = reflect.TypeFor[secret.URL]()
	durationType = reflect.TypeFor[time.Duration]()
	timeType     = reflect.TypeFor[time.Time]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	bytesType    = reflect.TypeFor[yaml.BytesUnmarshaler]()
	scalarType   = reflect.TypeFor[Scalar]()

	scalarPointer = reflect.TypeFor[*Scalar]()
	funcType      = reflect.TypeFor[yaml.InterfaceUnmarshaler]()
)

// value decodes n into v, which is settable. What is null leaves the default.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	n = d.plain(n)
	d.nodes[path] = n
	if v.Type() == scalarType {
		d.scalar(n, v, path)
		return
	}
	if v.Type() == scalarPointer { // nil: nothing is written, not even null
		v.Set(reflect.New(scalarType))
		d.scalar(n, v.Elem(), path)
		return
	}
	if _, null := n.(*ast.NullNode); n == nil || null {
		return
	}
	if _, alias := n.(*ast.AliasNode); alias {
		d.fail(ErrKey, n, path, "the alias *%s names no anchor", n.(*ast.AliasNode).Value.GetToken().Value)
		return
	}
	if !d.special(n, v, path) {
		d.plainKind(n, v, path)
	}
}

// special decodes what has a form of its own, and says whether v is of that sort.
func (d *decoder) special(n ast.Node, v reflect.Value, path string) bool {
	t := v.Type()
	switch {
	case t == secretType || t == dsnType || t == urlType:
		d.secret(n, v, path)
	case t == durationType:
		d.duration(n, v, path)
	case t == timeType:
		d.date(n, v, path)
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		d.value(n, v.Elem(), path)
	case reflect.PointerTo(t).Implements(bytesType), reflect.PointerTo(t).Implements(funcType):
		if err := yaml.NodeToValue(n, v.Addr().Interface(), yaml.Strict()); err != nil {
			d.fail(ErrValue, n, path, "%s", firstLine(err))
		}
	case reflect.PointerTo(t).Implements(textType):
		s, ok := text(n)
		if !ok {
			d.fail(ErrType, n, path, "want a text, got %s", kindOf(n))
		} else if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			d.fail(ErrValue, n, path, "%s", firstLine(err))
		}
	default:
		return false
	}
	return true
}

// scalar keeps what is written and of which kind it is.
func (d *decoder) scalar(n ast.Node, v reflect.Value, path string) {
	s := Scalar{}
	switch x := n.(type) {
	case nil, *ast.NullNode:
	case *ast.StringNode, *ast.LiteralNode:
		s.Kind = TextScalar
		s.Text, _ = text(n)
	case *ast.IntegerNode, *ast.FloatNode:
		s.Kind, s.Text = NumberScalar, strings.ReplaceAll(x.GetToken().Value, "_", "")
	case *ast.BoolNode:
		s.Kind, s.Text = BoolScalar, fmt.Sprint(x.Value)
	default:
		d.fail(ErrType, n, path, "want a text, a number, true, false or null, got %s", kindOf(n))
		return
	}
	v.Set(reflect.ValueOf(s))
}

// plainKind decodes by Go's kind of v.
func (d *decoder) plainKind(n ast.Node, v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.String:
		d.text(n, v, path)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fail(ErrType, n, path, "want true or false, got %s", kindOf(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.integer(n, v, path)
	case reflect.Float32, reflect.Float64:
		d.number(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Interface:
		if err := yaml.NodeToValue(n, v.Addr().Interface()); err != nil {
			d.fail(ErrValue, n, path, "%s", firstLine(err))
		}
	default:
		panic(fmt.Sprintf("BUG: a configuration struct has a field of type %s at %s", v.Type(), path))
	}
}

func (d *decoder) duration(n ast.Node, v reflect.Value, path string) {
	s, ok := text(n)
	if !ok {
		d.fail(ErrType, n, path, "want a duration such as 30s, got %s", kindOf(n))
		return
	}
	x, err := time.ParseDuration(s)
	if err != nil {
		d.fail(ErrValue, n, path, "want a duration such as 500ms, 30s or 2h, got %q", s)
		return
	}
	v.SetInt(int64(x))
}

func (d *decoder) date(n ast.Node, v reflect.Value, path string) {
	s, _ := text(n)
	x, err := time.Parse(time.DateOnly, s)
	if err == nil {
		v.Set(reflect.ValueOf(x))
		return
	}
	if _, err := time.Parse(time.RFC3339, s); err == nil {
		// Which day it is depends on where one looks from.
		d.fail(ErrValue, n, path, "want a date, got the moment %s", s).WithRemedy("Write the day alone, such as %s.", s[:len(time.DateOnly)])
		return
	}
	d.fail(ErrType, n, path, "want a date such as 2026-03-31, got %s", kindOf(n))
}

func (d *decoder) text(n ast.Node, v reflect.Value, path string) {
	s, ok := text(n)
	if !ok {
		e := d.fail(ErrType, n, path, "want a text, got %s", kindOf(n))
		switch n.(type) {
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
			e.WithRemedy("Put it in quotes if it is meant as a text.")
		}
		return
	}
	v.SetString(s)
}

func (d *decoder) number(n ast.Node, v reflect.Value, path string) {
	switch x := n.(type) {
	case *ast.FloatNode:
		v.SetFloat(x.Value)
	case *ast.IntegerNode:
		var f float64
		if _, err := fmt.Sscan(strings.ReplaceAll(x.GetToken().Value, "_", ""), &f); err != nil {
			d.fail(ErrType, n, path, "want a number, got %s", kindOf(n))
			return
		}
		v.SetFloat(f)
	default:
		d.fail(ErrType, n, path, "want a number, got %s", kindOf(n))
	}
}

func (d *decoder) list(n ast.Node, v reflect.Value, path string) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(ErrType, n, path, "want a list, got %s", kindOf(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(s.Values), len(s.Values))
	for i, e := range s.Values {
		d.value(e, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

func (d *decoder) integer(n ast.Node, v reflect.Value, path string) {
	x, ok := n.(*ast.IntegerNode)
	if !ok {
		d.fail(ErrType, n, path, "want a whole number, got %s", kindOf(n))
		return
	}
	var (
		num  int64
		big  bool
		text = x.GetToken().Value
	)
	switch i := x.Value.(type) {
	case int64:
		num = i
	case uint64:
		num, big = int64(i), i > math.MaxInt64
	default:
		big = true
	}
	if v.CanInt() {
		if big || v.OverflowInt(num) {
			d.fail(ErrValue, n, path, "%s is too large", text)
			return
		}
		v.SetInt(num)
		return
	}
	if big || num < 0 || v.OverflowUint(uint64(num)) {
		d.fail(ErrValue, n, path, "%s is out of range", text)
		return
	}
	v.SetUint(uint64(num))
}

// secret never quotes what it finds: it could be the secret itself.
func (d *decoder) secret(n ast.Node, v reflect.Value, path string) {
	s, ok := text(n)
	if !ok && v.Type() == urlType {
		d.fail(ErrType, n, path, "want a text, got %s", kindOf(n))
		return
	}
	if !ok {
		d.fail(ErrSecret, n, path, "want env:NAME or file:PATH, got another type")
		return
	}
	var (
		x   any
		err error
	)
	switch {
	case v.Type() == dsnType && d.static:
		x, err = secret.ReferenceDSN(s)
	case v.Type() == dsnType:
		x, err = secret.ResolveDSN(s, d.env)
	case v.Type() == urlType && d.static:
		x, err = secret.ReferenceURL(s)
	case v.Type() == urlType:
		x, err = secret.ResolveURL(s, d.env)
	case d.static:
		x, err = secret.Reference(s)
	default:
		x, err = secret.Resolve(s, d.env)
	}
	if err != nil {
		d.fail(ErrSecret, n, path, "%s", err)
		return
	}
	v.Set(reflect.ValueOf(x))
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	es, ok := entries(n)
	if !ok {
		d.fail(ErrType, n, path, "want a mapping, got %s", kindOf(n))
		return
	}
	t := v.Type()
	out := reflect.MakeMapWithSize(t, len(es))
	for _, e := range es {
		k := keyOf(e)
		key := reflect.ValueOf(k).Convert(t.Key())
		if out.MapIndex(key).IsValid() {
			d.fail(ErrKey, e.Key, path, "%q stands here twice", k)
			continue
		}
		elem := reflect.New(t.Elem()).Elem()
		d.value(e.Value, elem, join(path, k))
		out.SetMapIndex(key, elem)
	}
	v.Set(out)
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	es, ok := entries(n)
	if !ok {
		d.fail(ErrType, n, path, "want a mapping, got %s", kindOf(n))
		return
	}
	fields := fieldsOf(v)
	seen := map[string]bool{}
	for _, e := range es {
		k := keyOf(e)
		if seen[k] {
			d.fail(ErrKey, e.Key, path, "%q stands here twice", k)
			continue
		}
		seen[k] = true
		f, ok := fields[k]
		if !ok {
			d.unknown(e.Key, path, k, fields)
			continue
		}
		d.value(e.Value, f, join(path, k))
	}
}

func (d *decoder) unknown(n ast.Node, path, key string, fields map[string]reflect.Value) {
	names := make([]string, 0, len(fields))
	for k := range fields {
		names = append(names, k)
	}
	in := ""
	if path != "" {
		in = " in " + path
	}
	e := ErrKey.New("unknown key %q%s", key, in).At("%s", d.at(n, ""))
	if near := Nearest(key, names); near != "" {
		e.Text += fmt.Sprintf("; did you mean %q?", near)
		e = e.WithRemedy("Write %q, or remove the key.", near)
	} else {
		sort.Strings(names)
		e = e.WithRemedy("Remove it, or use one of: %s.", strings.Join(names, ", "))
	}
	d.errs = append(d.errs, e)
}

// Nearest is the name that was probably meant, or "".
func Nearest(wrong string, names []string) string {
	sort.Strings(names)
	best, score := "", 0.0
	for _, n := range names {
		s := smetrics.JaroWinkler(strings.ToLower(wrong), strings.ToLower(n), 0.7, 4)
		if s > score {
			best, score = n, s
		}
	}
	if score < 0.8 {
		return ""
	}
	return best
}

// fieldsOf lists the settable fields of a struct by their key; inline structs
// are part of it.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, inline := keyName(f)
		switch {
		case inline:
			for k, x := range fieldsOf(v.Field(i)) {
				out[k] = x
			}
		case name != "":
			out[name] = v.Field(i)
		}
	}
	return out
}

// keyName is the key of a field: its yaml tag, or its name in lower case.
func keyName(f reflect.StructField) (name string, inline bool) {
	tag, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if tag == "-" || !f.IsExported() && !f.Anonymous {
		return "", false
	}
	if strings.Contains(opts, "inline") || f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct {
		return "", true
	}
	if tag != "" {
		return tag, false
	}
	return strings.ToLower(f.Name), false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}
