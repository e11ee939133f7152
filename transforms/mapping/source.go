// Source: where the value of one field comes from.

package mapping

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
)

// source is one of: a column, a template of columns, a constant, an expression.
type source struct {
	path       string // where it is written
	named      bool   // it is written; else it is the column of the field's name
	cols       []string
	between    []string      // of a template, literal text: before the first column, between, after the last
	constant   *change.Value // of a kind that lies in no arena
	text       *string       // a constant text
	expression string
	checked    *expr.Program // the expression, without the columns; nil: it has mistakes
}

// readSource reads what is written for field i, at path.
func readSource(e *entry, i int, written config.Scalar, path string, scope expr.Scope) (source, []*problem.Error) {
	src, err := parseSource(written, &e.to.Columns[i], e.optional(i), scope.Roots)
	target := &e.to.Columns[i]
	switch {
	case err != nil:
		return src, []*problem.Error{ErrConfig.New("%w", err)}
	case len(src.between) > 0 && target.Kind != change.String:
		return src, []*problem.Error{ErrConfig.New("a template makes text, field %s of %s is %s", target.Name, e.to.Topic, target.Type)}
	case src.text != nil:
		if p := e.closed(i, *src.text); p != nil {
			return src, []*problem.Error{ErrConfig.New("%s", p.Text)}
		}
	case src.expression != "":
		p, mistakes := expr.Compile(src.expression, scope, target)
		src.checked = p
		return src, e.expression(i, p, told(ErrConfig, path, mistakes))
	}
	return src, nil
}

// expression tells what is wrong with that of field i as far as that is known
// without the columns.
func (e *entry) expression(i int, p *expr.Program, mistakes []error) (bad []*problem.Error) {
	for _, err := range mistakes {
		bad = append(bad, problem.Of(err))
	}
	if p == nil || p.List == nil {
		return bad
	}
	// What a list gives must be in the closed list of the field: better told
	// now than with the first row.
	for _, code := range p.List.Codes() {
		value, _ := p.List.Value(code)
		if no := e.closed(i, value); no != nil {
			bad = append(bad, ErrConfig.New("code %q of %s: %s", code, p.List.File, no.Text))
		}
	}
	return bad
}

// parseSource tells the forms apart: after an equals sign a constant, with
// columns in braces a template, a plain name is a column, the rest an expression.
func parseSource(written config.Scalar, target *change.Column, optional bool, roots []string) (source, error) {
	s := written.Text
	switch {
	case written.Kind == config.NullScalar:
		if !optional {
			return source{}, fmt.Errorf("field %s is never null", target.Name)
		}
		v := change.NullValue()
		return source{constant: &v}, nil
	case written.Kind != config.TextScalar:
		return constant(s, target)
	case strings.HasPrefix(s, "="):
		return constant(s[1:], target)
	case s == "":
		return source{}, fmt.Errorf("a column, a template, a constant or an expression is missing")
	case expr.Plain(s):
		return source{cols: []string{s}}, nil
	}
	if root, name, dotted := strings.Cut(s, "."); dotted && expr.Plain(name) && slices.Contains(roots, root) {
		return source{cols: []string{s}}, nil
	}
	if src, ok := template(s); ok {
		return src, nil
	}
	return source{expression: s}, nil
}

// template reads "{a}/{b}"; ok is false of what is none.
func template(s string) (src source, ok bool) {
	rest := s
	for {
		lit, more, found := strings.Cut(rest, "{")
		if strings.Contains(lit, "}") {
			return src, false
		}
		src.between = append(src.between, lit)
		if !found {
			return src, len(src.cols) > 0
		}
		col, more, found := strings.Cut(more, "}")
		if !found || col == "" || strings.ContainsAny(col, "{:\"'") { // a map or a text of an expression
			return src, false
		}
		src.cols = append(src.cols, col)
		rest = more
	}
}

// constant reads s as a value of the field's kind.
func constant(s string, target *change.Column) (source, error) {
	if target.Kind == change.String {
		return source{text: &s}, nil
	}
	b := change.Get()
	defer b.Release()
	p, bad := expr.Compile(literal(s, target), expr.Scope{}, target)
	if len(bad) == 0 {
		v, err := p.Value(&expr.Row{Batch: b}, target)
		if _, small := v.Small(); err == nil && (v.Kind() != change.Decimal || small) && v.Kind() != change.Bytes && v.Kind() != change.Interval {
			return source{constant: &v}, nil
		}
	}
	return source{}, fmt.Errorf("%q is no %s, which field %s is", s, target.Type, target.Name)
}

// literal is the expression of a constant.
func literal(s string, target *change.Column) string {
	switch target.Kind {
	case change.Decimal:
		return fmt.Sprintf("decimal(%q)", s)
	case change.Float32, change.Float64:
		return fmt.Sprintf("double(%q)", s)
	case change.Date:
		return fmt.Sprintf("date(%q)", s)
	case change.TimestampTZ:
		return fmt.Sprintf("moment(%q)", s)
	case change.Timestamp:
		return fmt.Sprintf("datetime(%q)", s)
	}
	return s // true, false, a whole number
}
