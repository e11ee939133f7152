// Table: what the rows of a change look like, and which topic they belong to.

package change

import "strings"

// Column describes one field of a Table.
type Column struct {
	Name      string
	Type      string  // the source's own name, e.g. "numeric(12,4)", "timestamp with time zone"
	TypeID    uint32  // the source's own number for it; 0: it has none
	Kind      Kind    // how its values come, when they are neither Null nor Unchanged
	Elem      *Column // Array: the element
	Precision int16   // Decimal: digits in all; Time and Timestamp kinds: fractional digits; -1 unconstrained
	Scale     int16   // Decimal: digits after the point; -1 unconstrained
	Width     int8    // Int: bytes at the source, 2, 4 or 8
	Nullable  bool
	Labels    []string // Enum: labels in their order
}

// Table is immutable once changes refer to it. A change of shape makes a new
// *Table, and the order of changes tells where one ends and the next begins.
// Two Tables of the same shape may be different pointers.
type Table struct {
	Source    string     // the name of the source; "" for a canonical entity
	Connector *Connector // what the source is; nil for a canonical entity; read from a topic, without its Version
	Database  string
	Schema    string
	Name      string
	Topic     string // the Kafka topic that its changes belong to
	Columns   []Column
	Key       []int  // indexes of the key's columns, in key order
	OldFull   bool   // Old rows are complete (REPLICA IDENTITY FULL)
	Partial   bool   // columns of it are left out at the source, which then sends no whole old rows
	ID        uint32 // the source's own number for it; 0: it has none
	byName    map[string]int
}

// Index finishes a Table under construction; call it once before use.
func (t *Table) Index() *Table {
	t.byName = make(map[string]int, len(t.Columns))
	for i := range t.Columns {
		t.byName[t.Columns[i].Name] = i
	}
	return t
}

// SQLName is schema.name as SQL takes it: in quotes where it is no plain word.
func (t *Table) SQLName() string {
	quote := func(s string) string {
		for i, r := range s {
			if r != '_' && (r < 'a' || r > 'z') && (i == 0 || r < '0' || r > '9') {
				return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
			}
		}
		return s
	}
	return quote(t.Schema) + "." + quote(t.Name)
}

// Column gives the index of a column, or -1.
func (t *Table) Column(name string) int {
	if i, ok := t.byName[name]; ok {
		return i
	}
	return -1
}

// ColumnBytes is Column of a name that lies in octets.
func (t *Table) ColumnBytes(name []byte) int {
	if i, ok := t.byName[string(name)]; ok {
		return i
	}
	return -1
}

// Connector is what a kind of source says of itself in the source block of its
// envelopes; one for all its Tables, immutable.
type Connector struct {
	// Name is Debezium's for the kind, where it has one ("postgresql"), since
	// readers tell by it what the block holds. Letters, digits, underscores.
	Name    string
	Version string
	// Fields are those that the block has beyond what every connector has
	// (version, connector, name, ts_ms, snapshot, db, sequence, ts_us, ts_ns,
	// schema, table), nullable longs in their order.
	Fields []SourceField
}

// SourceField is a connector's own field of the source block.
type SourceField struct {
	Name string
	Of   SourceValue
}

// SourceValue is what a SourceField tells of a change.
type SourceValue uint8

// What a source block may tell; what a change does not have is null.
const (
	SourceNothing SourceValue = iota // always null, for readers that expect the field
	SourceXID                        // Change.XID
	SourceLSN                        // Change.Pos.LSN
)

// Topic is one Kafka topic as it exists: a topic that was deleted and created
// again under the same name has another ID, and its offsets mean other records.
type Topic struct {
	Name       string
	ID         [16]byte
	Partitions int32
}

// Coord is where a record lies in Kafka.
type Coord struct {
	Topic     *Topic
	Partition int32
	Offset    int64
}

// Range is a run of offsets that a batch covers, records that were dropped on
// the way (duplicates, rejects, control records) included.
type Range struct {
	Topic     *Topic
	Partition int32
	From, To  int64 // first offset, and the offset after the last
}
