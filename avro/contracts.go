// Contracts: the canonical entities, one Avro schema each.

package avro

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/xrash/smetrics"

	"github.com/tallywire/tallywire/change"
)

// Sensitivity says who may see a field: Public, Internal, Confidential or
// Restricted. A Restricted one never leaves the topics whose contract names
// it, except to a role that may see it (invariant 13).
type Sensitivity string

const (
	Public       Sensitivity = "public"
	Internal     Sensitivity = "internal"
	Confidential Sensitivity = "confidential"
	Restricted   Sensitivity = "restricted"
)

// Field is one field of a Contract, in the order of Table.Columns.
type Field struct {
	Name        string
	Doc         string
	Owner       string
	Sensitivity Sensitivity
	Values      []string // all that the text may be, of a closed list; nil: it is open
	Currency    string   // of an amount: the field that holds its currency; "": none of this record
	References  string   // the topic whose key the field holds; "": none
	Fallback    string   // CommitTime, where the source says nothing; "": none
	Default     *Default // of a field that is never null, where the source says nothing; nil: none
}

// Optional says whether a source may have nothing for the field at index i.
func (c *Contract) Optional(i int) bool {
	return c.Table.Columns[i].Nullable || c.Fields[i].HasOwn()
}

// HasOwn says whether the contract itself has a value where a source has none.
func (f *Field) HasOwn() bool { return f.Fallback != "" || f.Default != nil }

// CommitTime as a Fallback is when the change was committed at its source.
const CommitTime = "commit_time"

// fieldName is what Avro allows (specification, "Names").
var fieldName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Contract is what a canonical topic holds.
type Contract struct {
	Topic  string // "ps.time_entry"
	Name   string // the entity: "time_entry"
	Doc    string
	Owner  string
	Schema string // the Avro schema, as it is registered for the topic's values
	File   string // where it was read; "": it is of the pack, as it is
	Table  *change.Table
	Fields []Field
}

// Field finds a field by name.
func (c *Contract) Field(name string) (Field, bool) {
	if i := c.Table.Column(name); i >= 0 {
		return c.Fields[i], true
	}
	return Field{}, false
}

// parseContract reads one contract and tells all that it lacks.
func parseContract(text string) (*Contract, error) {
	n, err := parseSchema(text)
	if err != nil {
		return nil, err
	}
	if n.typ != "record" {
		return nil, fmt.Errorf("a contract must be a record")
	}
	c := &Contract{Topic: n.str("topic"), Doc: n.str("doc"), Owner: n.str("owner"), Schema: text}
	if c.Topic == "" || c.Doc == "" || c.Owner == "" {
		return nil, fmt.Errorf("record %s needs topic, doc and owner", n.name)
	}
	c.Name = entity(c.Topic)
	t := &change.Table{Name: c.Name, Topic: c.Topic, OldFull: true}
	var bad []error
	names := map[string]bool{}
	for i := range n.fields {
		f, col, err := parseField(&n.fields[i])
		if name := n.fields[i].name; names[name] || !fieldName.MatchString(name) {
			err = errors.Join(err, fmt.Errorf("the name stands twice, or is no name in Avro"))
		}
		names[n.fields[i].name] = true
		if err != nil {
			bad = append(bad, fmt.Errorf("field %s: %w", n.fields[i].name, err))
		}
		t.Columns = append(t.Columns, col)
		c.Fields = append(c.Fields, f)
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	c.Table = t.Index()
	for _, f := range c.Fields {
		if i := t.Column(f.Currency); f.Currency != "" && (i < 0 || t.Columns[i].Kind != change.String) {
			bad = append(bad, fmt.Errorf("field %s: currency %s is no field of the record that is a string", f.Name, f.Currency))
		}
	}
	if t.Key = keyOf(n, t); len(t.Key) == 0 {
		bad = append(bad, fmt.Errorf("record %s needs a key: the names of its fields", n.name))
	}
	for _, k := range t.Key {
		if t.Columns[k].Nullable || t.Columns[k].Kind != change.String {
			bad = append(bad, fmt.Errorf("field %s: of the key, it must be a string that is never null", t.Columns[k].Name))
		}
		if c.Fields[k].Default != nil {
			bad = append(bad, fmt.Errorf("field %s: of the key, it has no default: rows without one would be one record", t.Columns[k].Name))
		}
	}
	return c, errors.Join(bad...)
}

// attributes of a field are Avro's (specification, "Complex Types"), and ours.
var attributes = []string{"name", "type", "doc", "default", "order", "aliases", "owner", "sensitivity", "values", "currency", "references", "fallback"}

// parseField reads a field and its attributes.
func parseField(n *field) (f Field, col change.Column, err error) {
	if col, _, err = columnOf(n); err != nil {
		return f, col, err
	}
	str := func(prop string) string {
		s, _ := n.props[prop].(string)
		return s
	}
	f = Field{
		Name: n.name, Doc: str("doc"), Owner: str("owner"), Sensitivity: Sensitivity(str("sensitivity")),
		Currency: str("currency"), References: str("references"), Fallback: str("fallback"),
	}
	var bad []error
	for _, name := range slices.Sorted(maps.Keys(n.props)) {
		if slices.Contains(attributes, name) {
			continue
		}
		for _, a := range attributes { // others may be a firm's own
			if strings.HasPrefix(a, name) || smetrics.JaroWinkler(name, a, 0.7, 4) > 0.85 {
				bad = append(bad, fmt.Errorf("there is no attribute %q; did you mean %q?", name, a))
				break
			}
		}
	}
	switch f.Sensitivity {
	case Public, Internal, Confidential, Restricted:
	default:
		bad = append(bad, fmt.Errorf("sensitivity must be public, internal, confidential or restricted"))
	}
	if f.Doc == "" || f.Owner == "" {
		bad = append(bad, fmt.Errorf("it needs doc and owner"))
	}
	if f.Currency != "" && col.Kind != change.Decimal {
		bad = append(bad, fmt.Errorf("it has a currency and is no decimal"))
	}
	if f.References != "" && col.Kind != change.String {
		bad = append(bad, fmt.Errorf("it references %s and is no string", f.References))
	}
	if f.Fallback != "" && (f.Fallback != CommitTime || col.Kind != change.TimestampTZ) {
		bad = append(bad, fmt.Errorf("fallback is %s, of a field that is a moment (timestamp-micros)", CommitTime))
	}
	if f.Values, err = closedList(n, col.Kind); err != nil {
		bad = append(bad, err)
	}
	if f.Default, err = readDefault(n, &col, f.Values); err != nil {
		bad = append(bad, err)
	}
	if f.Default != nil && f.Fallback != "" {
		bad = append(bad, fmt.Errorf("it has a default and falls back to %s: one of the two must go", f.Fallback))
	}
	return f, col, errors.Join(bad...)
}

// closedList reads the attribute "values" of a field.
func closedList(f *field, kind change.Kind) (values []string, err error) {
	list, is := f.props["values"]
	if !is {
		return nil, nil
	}
	all, _ := list.([]any)
	for _, v := range all {
		s, _ := v.(string)
		if s == "" || slices.Contains(values, s) {
			return nil, fmt.Errorf("values must be different texts")
		}
		values = append(values, s)
	}
	if len(values) == 0 || kind != change.String {
		return nil, fmt.Errorf("values must be a list, of a field that is a string")
	}
	return values, nil
}

// keyOf reads the attribute "key" of a record: the indexes of its columns.
func keyOf(n *node, t *change.Table) []int {
	names, _ := n.props["key"].([]any)
	var key []int
	for _, v := range names {
		name, _ := v.(string)
		i := t.Column(name)
		if i < 0 {
			return nil
		}
		key = append(key, i)
	}
	return key
}

// entity is the last part of a topic's name.
func entity(topic string) string {
	for i := len(topic) - 1; i >= 0; i-- {
		if topic[i] == '.' {
			return topic[i+1:]
		}
	}
	return topic
}
