// Document: a file beside the configuration, read under the same rules, and where
// in it a thing is written.

package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/tallywire/tallywire/internal/problem"
)

// Document is what was read.
type Document struct {
	dec   *decoder
	lines []string
}

// ReadDocument fills into, a pointer to a struct, from a text; file is the name
// that messages use. On mistakes the error joins all of them, each a
// *problem.Error; the Document is nil only when the text is not YAML.
func ReadDocument(file string, text []byte, into any) (*Document, error) {
	f, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, syntaxError(file, err)
	}
	none := func(string) (string, bool) { return "", false }
	d := &decoder{file: file, env: none, static: true, anchors: map[string]ast.Node{}, nodes: map[string]ast.Node{}}
	for _, doc := range f.Docs {
		ast.Walk(anchorFinder(d.anchors), doc)
	}
	if len(f.Docs) > 1 && f.Docs[1].Body != nil {
		d.fail(ErrSyntax, f.Docs[1].Body, "", "a second YAML document starts here")
	}
	if len(f.Docs) > 0 && f.Docs[0].Body != nil {
		if _, comment := f.Docs[0].Body.(*ast.CommentGroupNode); !comment {
			d.value(f.Docs[0].Body, reflect.ValueOf(into).Elem(), "")
		}
	}
	for _, err := range d.errs {
		if e := problem.Of(err); e.Fix == "" {
			_ = e.WithRemedy("Correct it where the message says.") // what the codes say of it is about the configuration
		}
	}
	return &Document{dec: d, lines: strings.Split(string(text), "\n")}, errors.Join(d.errs...)
}

// At is file, line, column and path, or those of the nearest path above it that
// is written.
func (d *Document) At(path string) string {
	line, column := d.position(path)
	if line == 0 {
		return d.dec.file + ": " + path
	}
	return fmt.Sprintf("%s:%d:%d: %s", d.dec.file, line, column, path)
}

// Line is where what stands at path begins, counted from 1; 0: it is not written.
func (d *Document) Line(path string) int {
	line, _ := d.position(path)
	return line
}

func (d *Document) position(path string) (line, column int) {
	for {
		if n := d.dec.nodes[path]; n != nil {
			if es, ok := entries(n); ok && len(es) > 0 {
				n = es[0].Key
			}
			if tk := n.GetToken(); tk != nil {
				return tk.Position.Line, tk.Position.Column
			}
		}
		at := strings.LastIndexAny(path, ".[")
		if at < 0 {
			return 0, 0
		}
		path = path[:at]
	}
}

// Key is a key of a mapping as it is written: line and column from 1.
type Key struct {
	Name         string
	Line, Column int
}

// Keys are those of the mapping at path, in their order; ok is false when it is
// not written as a block, each key on a line of its own.
func (d *Document) Keys(path string) (keys []Key, ok bool) {
	n := d.dec.nodes[path]
	if m, is := n.(*ast.MappingNode); is && m.IsFlowStyle {
		return nil, false
	}
	es, ok := entries(n)
	if !ok {
		return nil, false
	}
	for _, e := range es {
		p := e.Key.GetToken().Position
		if len(keys) > 0 && keys[len(keys)-1].Line == p.Line {
			return nil, false
		}
		keys = append(keys, Key{keyOf(e), p.Line, p.Column})
	}
	return keys, true
}

// Span is where the scalar at path is written: its line from 1, and its octets
// within it. ok is false when it is none, or is no plain piece of one line.
func (d *Document) Span(path string) (line, from, to int, ok bool) {
	n := d.dec.nodes[path]
	if n == nil || n.GetToken() == nil || n.GetToken().Position.Line > len(d.lines) {
		return 0, 0, 0, false
	}
	switch n.(type) {
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
	default:
		return 0, 0, 0, false
	}
	tk := n.GetToken()
	line = tk.Position.Line
	text := d.lines[line-1]
	runes := []rune(text)
	if tk.Position.Column < 1 || tk.Position.Column > len(runes) {
		return 0, 0, 0, false
	}
	from = len(string(runes[:tk.Position.Column-1]))
	rest := text[from:]
	switch tk.Type {
	case token.DoubleQuoteType, token.SingleQuoteType:
		quote := rest[0]
		for i := 1; i < len(rest); i++ {
			switch {
			case rest[i] == '\\' && quote == '"':
				i++
			case rest[i] == quote && quote == '\'' && i+1 < len(rest) && rest[i+1] == quote:
				i++
			case rest[i] == quote:
				return line, from, from + i + 1, true
			}
		}
		return 0, 0, 0, false
	}
	if tk.Value == "" || !strings.HasPrefix(rest, tk.Value) {
		return 0, 0, 0, false
	}
	return line, from, from + len(tk.Value), true
}
