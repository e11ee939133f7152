// describe.go: the reference of a configuration struct, from the struct: its
// keys, types, defaults (the values that it holds) and doc texts (its tags).

package config

import (
	"encoding"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// Cell makes a text fit for a cell of a Markdown table.
func Cell(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "|", "\\|"), "\n", " ")
}

// Describe writes a Markdown table of the keys of the struct that into points
// to. Struct tags: yaml (the key), doc (what it is, with unit and range),
// example.
func Describe(w io.Writer, into any) {
	fmt.Fprint(w, "| key | type | default | what it is |\n|---|---|---|---|\n")
	describeStruct(w, reflect.ValueOf(into).Elem(), "")
}

func describeStruct(w io.Writer, v reflect.Value, path string) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name, inline := keyName(f)
		if inline {
			describeStruct(w, v.Field(i), path)
			continue
		}
		if name == "" {
			continue
		}
		p := join(path, name)
		doc := Cell(f.Tag.Get("doc"))
		if ex := f.Tag.Get("example"); ex != "" {
			doc += " Example: `" + Cell(ex) + "`."
		}
		fmt.Fprintf(w, "| `%s` | %s | %s | %s |\n", p, typeName(f.Type), defaultText(v.Field(i)), strings.TrimSpace(doc))
		switch ft := f.Type; {
		case isPlainStruct(ft):
			describeStruct(w, v.Field(i), p)
		case ft.Kind() == reflect.Pointer && isPlainStruct(ft.Elem()):
			describeStruct(w, reflect.New(ft.Elem()).Elem(), p)
		case ft.Kind() == reflect.Slice && isPlainStruct(ft.Elem()):
			describeStruct(w, reflect.New(ft.Elem()).Elem(), p+"[]")
		case ft.Kind() == reflect.Map && isPlainStruct(ft.Elem()):
			describeStruct(w, reflect.New(ft.Elem()).Elem(), p+".<name>")
		}
	}
}

func isPlainStruct(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != secretType && t != dsnType && t != urlType && t != timeType && t != scalarType && !reflect.PointerTo(t).Implements(textType)
}

func typeName(t reflect.Type) string {
	switch {
	case t == secretType:
		return "secret"
	case t == dsnType:
		return "DSN"
	case t == urlType:
		return "URL"
	case t == durationType:
		return "duration"
	case t == timeType:
		return "date"
	case t == scalarType:
		return "text, number, true, false or null"
	case t == reflect.TypeFor[Components]():
		return "components by name, each with a `type`"
	case t.Kind() == reflect.Pointer:
		return typeName(t.Elem())
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return "text"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Map:
		return "mapping of " + typeName(t.Elem())
	case reflect.Struct:
		return "mapping"
	case reflect.Interface:
		return "any"
	}
	return "whole number"
}

func defaultText(v reflect.Value) string {
	if v.IsZero() || v.Kind() == reflect.Struct || v.Kind() == reflect.Func || v.Kind() == reflect.Pointer {
		return ""
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return "`" + shortDuration(d) + "`"
	}
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.String || v.Kind() == reflect.Map {
		return ""
	}
	return "`" + Cell(fmt.Sprint(v.Interface())) + "`"
}

// shortDuration prints 2m0s as 2m.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
