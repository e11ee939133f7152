// Envelope: the schemas of a raw topic, as Debezium names and shapes them.

package avro

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// commonSource are the fields of the source block that every connector has.
var commonSource = []string{"version", "connector", "name", "ts_ms", "snapshot", "db", "sequence", "ts_us", "ts_ns", "schema", "table"}

// sourceSchema is that of the source block, with the fields in the order that
// Debezium gives them.
func sourceSchema(c *change.Connector) string {
	space := "io.debezium.connector." + c.Name
	var own strings.Builder
	for _, f := range c.Fields {
		own.WriteString(`,{"name":"` + f.Name + `","type":["null","long"],"default":null}`)
	}
	return `{"type":"record","name":"Source","namespace":"` + space + `","fields":[` +
		`{"name":"version","type":"string"},` +
		`{"name":"connector","type":"string"},` +
		`{"name":"name","type":"string"},` +
		`{"name":"ts_ms","type":"long"},` +
		`{"name":"snapshot","type":[{"type":"string","connect.version":1,"connect.parameters":{"allowed":"first,first_in_data_collection,last_in_data_collection,true,last,false,incremental"},"connect.default":"false","connect.name":"io.debezium.data.Enum"},"null"],"default":"false"},` +
		`{"name":"db","type":"string"},` +
		`{"name":"sequence","type":["null","string"],"default":null},` +
		`{"name":"ts_us","type":["null","long"],"default":null},` +
		`{"name":"ts_ns","type":["null","long"],"default":null},` +
		`{"name":"schema","type":"string"},` +
		`{"name":"table","type":"string"}` + own.String() +
		`],"connect.version":1,"connect.name":"` + space + `.Source"}`
}

const transactionSchema = `{"type":"record","name":"block","namespace":"event","fields":[` +
	`{"name":"id","type":"string"},` +
	`{"name":"total_order","type":"long"},` +
	`{"name":"data_collection_order","type":"long"}` +
	`],"connect.version":1,"connect.name":"event.block"}`

// tableAttr is what a record must tell of its table beyond its fields.
type tableAttr struct {
	Source   string `json:"source"`
	Database string `json:"database,omitempty"`
	Schema   string `json:"schema"`
	Name     string `json:"name"`
	OldFull  bool   `json:"old_full"`
}

// EnvelopeSchemas gives the Avro schemas of the raw topic of a source's table;
// key is "" for a table without one. Errors are TW-AVRO-TABLE.
func EnvelopeSchemas(t *change.Table) (key, value string, err error) {
	if t.Connector == nil {
		return "", "", ErrTable.New("table %s.%s of source %q does not say what its source is (change.Table.Connector)", t.Schema, t.Name, t.Source).
			WithRemedy("This is a bug of the source; the source sets it.")
	}
	space := namespace(t.Topic)
	fields := make([]string, len(t.Columns))
	seen := map[string]string{}
	isKey := map[int]bool{}
	for _, k := range t.Key {
		isKey[k] = true
	}
	for i := range t.Columns {
		c := &t.Columns[i]
		name := legal(c.Name)
		if other, dup := seen[name]; dup {
			return "", "", ErrTable.New("table %s.%s: columns %q and %q have the same Avro name %q", t.Schema, t.Name, other, c.Name, name).
				WithRemedy("Rename one of the columns, or leave it out of the publication's column list.")
		}
		seen[name] = c.Name
		typ, kind, err := avroType(c)
		if err != nil {
			return "", "", ErrTable.New("table %s.%s, column %q: %w", t.Schema, t.Name, c.Name, err)
		}
		var f strings.Builder
		f.WriteString(`{"name":"` + name + `","type":`)
		if isKey[i] {
			f.WriteString(typ)
		} else {
			f.WriteString(`["null",` + typ + `],"default":null`)
		}
		f.WriteString(`,"` + attrType + `":` + quote(c.Type))
		if kind != "" {
			f.WriteString(`,"` + attrKind + `":"` + kind + `"`)
		}
		if name != c.Name {
			f.WriteString(`,"` + attrName + `":` + quote(c.Name))
		}
		if c.Kind == change.Enum {
			labels, err := json.Marshal(c.Labels)
			if err != nil {
				return "", "", fmt.Errorf("writing the labels of column %q: %w", c.Name, err)
			}
			f.WriteString(`,"` + attrLabels + `":` + string(labels))
		}
		f.WriteString(`}`)
		fields[i] = f.String()
	}
	attr, err := json.Marshal(tableAttr{t.Source, t.Database, t.Schema, t.Name, t.OldFull})
	if err != nil {
		return "", "", fmt.Errorf("writing the attributes of table %s: %w", t.Name, err)
	}
	value = `{"type":"record","name":"Envelope","namespace":"` + space + `","fields":[` +
		`{"name":"before","type":["null",{"type":"record","name":"Value","fields":[` + strings.Join(fields, ",") + `],"connect.name":"` + space + `.Value"}],"default":null},` +
		`{"name":"after","type":["null","Value"],"default":null},` +
		`{"name":"source","type":` + sourceSchema(t.Connector) + `},` +
		`{"name":"transaction","type":["null",` + transactionSchema + `],"default":null},` +
		`{"name":"op","type":"string"},` +
		`{"name":"ts_ms","type":["null","long"],"default":null},` +
		`{"name":"ts_us","type":["null","long"],"default":null},` +
		`{"name":"ts_ns","type":["null","long"],"default":null}` +
		`],"connect.version":2,"connect.name":"` + space + `.Envelope","` + attrTable + `":` + string(attr) + `}`
	if len(t.Key) == 0 {
		return "", value, nil
	}
	var keys []string
	for _, k := range t.Key {
		keys = append(keys, fields[k])
	}
	key = `{"type":"record","name":"Key","namespace":"` + space + `","fields":[` + strings.Join(keys, ",") +
		`],"connect.name":"` + space + `.Key"}`
	return key, value, nil
}

// namespace makes a topic's name a legal Avro namespace.
func namespace(topic string) string {
	parts := strings.Split(topic, ".")
	for i := range parts {
		parts[i] = legal(parts[i])
	}
	return strings.Join(parts, ".")
}

// legal replaces what an Avro name must not have by an underscore, as Debezium's
// adjustment mode "avro" does (a leading digit gets one before it).
func legal(name string) string {
	ok := name != ""
	for i := 0; i < len(name) && ok; i++ {
		ok = nameByte(name[i], i)
	}
	if ok {
		return name
	}
	var s strings.Builder
	for i, r := range name {
		switch {
		case r < 0x80 && nameByte(byte(r), i):
			s.WriteByte(byte(r))
		case i == 0 && r >= '0' && r <= '9':
			s.WriteByte('_')
			s.WriteByte(byte(r))
		default:
			s.WriteByte('_')
		}
	}
	if s.Len() == 0 {
		return "_"
	}
	return s.String()
}

func nameByte(c byte, at int) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || at > 0 && c >= '0' && c <= '9'
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string that cannot be JSON: " + err.Error())
	}
	return string(b)
}
