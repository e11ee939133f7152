// Contracts: the canonical entities, one Avro schema each.

package avro

import (
	"embed"
	"fmt"
	"path"
	"sync"

	"github.com/tallywire/tallywire/change"
)

//go:embed contracts/*.avsc
var contractFiles embed.FS

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
}

// Contract is what a canonical topic holds.
type Contract struct {
	Topic  string // "ps.time_entry"
	Name   string // the entity: "time_entry"
	Doc    string
	Owner  string
	Schema string // the Avro schema, as it is registered for the topic's values
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

var contracts = sync.OnceValues(readContracts)

// Contracts gives the contracts by topic. They are immutable and shared: do not
// change the map or what it holds.
func Contracts() (map[string]*Contract, error) { return contracts() }

func readContracts() (map[string]*Contract, error) {
	files, err := contractFiles.ReadDir("contracts")
	if err != nil {
		return nil, fmt.Errorf("listing the contracts: %w", err)
	}
	out := map[string]*Contract{}
	for _, f := range files {
		name := path.Join("contracts", f.Name())
		text, err := contractFiles.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		c, err := parseContract(string(text))
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if want := c.Name + ".avsc"; f.Name() != want {
			return nil, fmt.Errorf("reading %s: topic %s belongs into %s", name, c.Topic, want)
		}
		out[c.Topic] = c
	}
	return out, nil
}

// parseContract reads one contract and checks what a contract must have.
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
	for _, f := range n.fields {
		col, _, err := columnOf(&f)
		if err != nil {
			return nil, fmt.Errorf("field %s: %w", f.name, err)
		}
		doc, _ := f.props["doc"].(string)
		owner, _ := f.props["owner"].(string)
		s, _ := f.props["sensitivity"].(string)
		switch Sensitivity(s) {
		case Public, Internal, Confidential, Restricted:
		default:
			return nil, fmt.Errorf("field %s: sensitivity must be public, internal, confidential or restricted", f.name)
		}
		if doc == "" || owner == "" {
			return nil, fmt.Errorf("field %s needs doc and owner", f.name)
		}
		t.Columns = append(t.Columns, col)
		c.Fields = append(c.Fields, Field{f.name, doc, owner, Sensitivity(s)})
	}
	c.Table = t.Index()
	if t.Key = keyOf(n, t); len(t.Key) == 0 {
		return nil, fmt.Errorf("record %s needs a key: the names of its fields", n.name)
	}
	for _, k := range t.Key {
		if t.Columns[k].Nullable || t.Columns[k].Kind != change.String {
			return nil, fmt.Errorf("key field %s must be a string that is never null", t.Columns[k].Name)
		}
	}
	return c, nil
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
