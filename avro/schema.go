// Schema: an Avro schema parsed into a tree that encoder and decoder compile.

package avro

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Limits on schemas, which come from outside.
const (
	maxSchemaText  = 1 << 20 // octets
	maxSchemaDepth = 32
)

// node is one type of a schema.
type node struct {
	typ       string // null boolean int long float double bytes string record enum fixed array map union
	name      string // record, enum, fixed: the full name
	fields    []field
	symbols   []string // enum
	size      int      // fixed
	items     *node    // array, map
	branches  []*node  // union
	logical   string
	precision int
	scale     int
	props     map[string]any // the JSON object, if it was one
}

type field struct {
	name  string
	typ   *node
	props map[string]any
}

func (n *node) str(prop string) string {
	s, _ := n.props[prop].(string)
	return s
}

// field finds a field of a record by name, or nil.
func (n *node) field(name string) *field {
	for i := range n.fields {
		if n.fields[i].name == name {
			return &n.fields[i]
		}
	}
	return nil
}

// optional takes a union of null and one type apart: null is the index of the
// null branch, -1 for a type that is no union.
func (n *node) optional() (of *node, null int, err error) {
	if n.typ != "union" {
		return n, -1, nil
	}
	if len(n.branches) == 2 {
		if n.branches[0].typ == "null" {
			return n.branches[1], 0, nil
		}
		if n.branches[1].typ == "null" {
			return n.branches[0], 1, nil
		}
	}
	return nil, 0, fmt.Errorf("a union other than of null and one type")
}

type schemaParser struct {
	names map[string]*node
}

// parseSchema reads the JSON text of a schema.
func parseSchema(text string) (*node, error) {
	if len(text) > maxSchemaText {
		return nil, fmt.Errorf("a schema of %d octets is larger than %d", len(text), maxSchemaText)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("parsing a schema: %w", err)
	}
	p := schemaParser{names: map[string]*node{}}
	return p.parse(v, "", 0)
}

func (p *schemaParser) parse(v any, space string, depth int) (*node, error) {
	if depth > maxSchemaDepth {
		return nil, fmt.Errorf("a schema nested deeper than %d", maxSchemaDepth)
	}
	switch v := v.(type) {
	case string:
		return p.named(v, space)
	case []any:
		n := &node{typ: "union"}
		for _, b := range v {
			m, err := p.parse(b, space, depth+1)
			if err != nil {
				return nil, err
			}
			if m.typ == "union" {
				return nil, fmt.Errorf("a union within a union")
			}
			n.branches = append(n.branches, m)
		}
		return n, nil
	case map[string]any:
		return p.object(v, space, depth)
	}
	return nil, fmt.Errorf("a schema must be a JSON string, array or object")
}

func (p *schemaParser) named(name, space string) (*node, error) {
	switch name {
	case "null", "boolean", "int", "long", "float", "double", "bytes", "string":
		return &node{typ: name}, nil
	}
	if n := p.names[fullName(name, space)]; n != nil {
		return n, nil
	}
	if n := p.names[name]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("unknown type %q", name)
}

func fullName(name, space string) string {
	if space == "" || strings.Contains(name, ".") {
		return name
	}
	return space + "." + name
}

func (p *schemaParser) object(v map[string]any, space string, depth int) (*node, error) {
	typ, ok := v["type"].(string)
	if !ok { // {"type": {...}} or {"type": [...]}
		n, err := p.parse(v["type"], space, depth+1)
		if err != nil {
			return nil, err
		}
		return n, nil
	}
	n := &node{typ: typ, props: v}
	n.logical, _ = v["logicalType"].(string)
	n.precision, n.scale = number(v["precision"], 0), number(v["scale"], 0)
	switch typ {
	case "null", "boolean", "int", "long", "float", "double", "bytes", "string":
		return n, nil
	case "array", "map":
		of := v["items"]
		if typ == "map" {
			of = v["values"]
		}
		var err error
		n.items, err = p.parse(of, space, depth+1)
		return n, err
	case "record", "error", "enum", "fixed":
	default:
		return p.named(typ, space)
	}
	name, _ := v["name"].(string)
	if name == "" {
		return nil, fmt.Errorf("a %s without a name", typ)
	}
	if s, ok := v["namespace"].(string); ok && !strings.Contains(name, ".") {
		space = s
	}
	n.name = fullName(name, space)
	if i := strings.LastIndexByte(n.name, '.'); i >= 0 {
		space = n.name[:i]
	}
	if p.names[n.name] != nil {
		return nil, fmt.Errorf("type %s is defined twice", n.name)
	}
	p.names[n.name] = n
	switch typ {
	case "fixed":
		if n.size = number(v["size"], -1); n.size < 0 {
			return nil, fmt.Errorf("fixed %s has no size", n.name)
		}
		return n, nil
	case "enum":
		list, _ := v["symbols"].([]any)
		for _, s := range list {
			text, ok := s.(string)
			if !ok {
				return nil, fmt.Errorf("enum %s has a symbol that is no string", n.name)
			}
			n.symbols = append(n.symbols, text)
		}
		return n, nil
	}
	n.typ = "record"
	list, ok := v["fields"].([]any)
	if !ok {
		return nil, fmt.Errorf("record %s has no fields", n.name)
	}
	for _, f := range list {
		props, _ := f.(map[string]any)
		fname, _ := props["name"].(string)
		if fname == "" {
			return nil, fmt.Errorf("record %s has a field without a name", n.name)
		}
		t, err := p.parse(props["type"], space, depth+1)
		if err != nil {
			return nil, fmt.Errorf("field %s of %s: %w", fname, n.name, err)
		}
		n.fields = append(n.fields, field{name: fname, typ: t, props: props})
	}
	return n, nil
}

func number(v any, or int) int {
	if n, ok := v.(json.Number); ok {
		if i, err := n.Int64(); err == nil && i >= 0 && i <= 1<<20 {
			return int(i)
		}
	}
	return or
}
