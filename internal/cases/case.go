// Package cases tests the rules of a mapping by cases in files: rows in, records
// out. case.go is the form of a file, and how it is read.
package cases

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/rules"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
	"github.com/tallywire/tallywire/transforms/mapping"
)

var (
	errCase = problem.Define("TW-CASE-FORM", problem.Halt,
		"A case of a mapping names what is not there, or holds a value that is none of its type.",
		"Correct it where the message says; tallywire mapping test --help shows the form.")
	errNoCase = problem.Define("TW-CASE-NONE", problem.Halt,
		"No file of cases was found.",
		"Write one beside the configuration, in mappings/, or name a file or a directory.")
)

// caseFile is what a user writes: cases of one raw topic.
type caseFile struct {
	Transform string                   `yaml:"transform"`
	Topic     string                   `yaml:"topic"`
	Columns   map[string]string        `yaml:"columns"`
	Key       []string                 `yaml:"key"`
	Identity  string                   `yaml:"replica_identity"`
	Defaults  map[string]config.Scalar `yaml:"defaults"`
	Tables    map[string]caseTable     `yaml:"tables"` // by topic, those of rows that are looked up
	Cases     []mappingCase            `yaml:"cases"`
}

// caseTable is a table whose rows stand in cases.
type caseTable struct {
	Columns  map[string]string        `yaml:"columns"`
	Key      []string                 `yaml:"key"`
	Identity string                   `yaml:"replica_identity"`
	Defaults map[string]config.Scalar `yaml:"defaults"`
}

// tableOf is a table as its rows are read.
type tableOf struct {
	form  caseTable
	path  string // before the keys of form
	table *change.Table
	types []pgoutput.Named // of its columns
}

type mappingCase struct {
	Name     string           `yaml:"name"`
	Rows     []caseRow        `yaml:"rows"`
	Records  *[]caseRecord    `yaml:"records"`
	Rejected *[]caseRejection `yaml:"rejected"`
}

// caseRow is one change of the source's table.
type caseRow struct {
	Topic  string                   `yaml:"topic"` // one of tables; "": that of the file
	Op     string                   `yaml:"op"`
	Row    map[string]config.Scalar `yaml:"row"`
	Old    map[string]config.Scalar `yaml:"old"`
	Unsent []string                 `yaml:"unsent"`
	// Committed is when, at the source; it fills a contract's updated_at where the
	// table keeps none.
	Committed config.Scalar `yaml:"committed"`
}

// caseRecord is what must come out; what is left out is not compared.
type caseRecord struct {
	Topic  string                   `yaml:"topic"`
	Key    config.Scalar            `yaml:"key"`
	Op     string                   `yaml:"op"`
	Fields map[string]config.Scalar `yaml:"fields"`
}

type caseRejection struct {
	Error    string `yaml:"error"`
	Contains string `yaml:"contains"`
}

// Minimal is a whole file, for who has none; it fits examples/demo/tallywire.yml.
const Minimal = `transform: canonical
topic: psa.public.invoice_line
key: [id]
columns: {id: bigint, invoice_id: bigint, project_id: bigint, quantity: "numeric(12,2)", unit_price: "numeric(12,4)", amount: "numeric(14,2)"}
cases:
  - name: ids become text
    rows:
      - row: {id: 17, invoice_id: 3, project_id: 5, quantity: 2, unit_price: 60.50, amount: 121}
    records:
      - {topic: ps.invoice_line, key: 17, fields: {invoice_id: 3, amount: 121}}
`

// committed is when a change was, of which a case says nothing.
var committed = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

var caseOps = map[string]change.Op{"create": change.Create, "update": change.Update, "delete": change.Delete, "read": change.Read}

// File is a file of cases that was read and fits the configuration.
type File struct {
	file  string
	text  []byte
	doc   *config.Document
	form  caseFile
	stage *mapping.Stage
	all   avro.Catalogue
	of    map[string]*tableOf // by topic
	open  func(context.Context) (*redis.Client, error)
	bad   []error
}

// read reads a file. The error joins all that is wrong with it.
func read(file string, text []byte, r *rules.Book) (*File, error) {
	c := &File{file: file, text: text, all: r.Contracts, of: map[string]*tableOf{}}
	var err error
	if c.doc, err = config.ReadDocument(file, text, &c.form); err != nil {
		return nil, err
	}
	if c.stage, err = r.Stage(c.form.Transform, func(s *mapping.Stage) bool { return slices.Contains(s.From(), c.form.Topic) }); err != nil {
		if e := problem.Of(err); e != nil && problem.Has(err, rules.ErrTransform) {
			err = e.At("%s", c.doc.At("transform"))
		}
		return nil, err
	}
	f := &c.form
	c.checkTable(f.Topic, &tableOf{form: caseTable{f.Columns, f.Key, f.Identity, f.Defaults}}, "topic")
	for _, topic := range slices.Sorted(maps.Keys(f.Tables)) {
		c.checkTable(topic, &tableOf{form: f.Tables[topic], path: "tables." + topic + "."}, "tables."+topic)
	}
	if len(c.bad) == 0 {
		for i := range c.form.Cases {
			c.checkCase(i)
		}
	}
	return c, errors.Join(c.bad...)
}

func (c *File) fail(path, format string, args ...any) { _ = c.mistake(path, format, args...) }

// mistake is fail, of what gets a remedy of its own.
func (c *File) mistake(path, format string, args ...any) *problem.Error {
	e := errCase.New(format, args...).At("%s", c.doc.At(path))
	c.bad = append(c.bad, e)
	return e
}

// unknown is a mistake in a name.
func (c *File) unknown(path, what, name string, names []string) {
	e := c.mistake(path, "%s", fmt.Sprintf(what, name))
	if near := config.Nearest(name, slices.Clone(names)); near != "" {
		e.Text += fmt.Sprintf("; did you mean %q?", near)
	}
	if len(names) > 0 {
		slices.Sort(names)
		_ = e.WithRemedy("Use one of: %s.", strings.Join(names, ", "))
	}
}

// checkTable makes the table of a topic's rows, which is named at path.
func (c *File) checkTable(topic string, of *tableOf, path string) {
	f := &of.form
	c.of[topic] = of
	if !slices.Contains(c.stage.From(), topic) {
		c.unknown(path, "the transform reads no topic %q", topic, c.stage.From())
	}
	if f.Identity == "" {
		f.Identity = "default"
	}
	if f.Identity != "default" && f.Identity != "full" {
		c.fail(of.path+"replica_identity", "%q is neither default nor full", f.Identity)
	}
	parts := strings.SplitN(topic, ".", 3)
	t := &change.Table{Source: parts[0], Topic: topic, Name: topic, OldFull: f.Identity == "full"}
	if len(parts) == 3 {
		t.Schema, t.Name = parts[1], parts[2]
	}
	if len(f.Columns) == 0 {
		_ = c.mistake(of.path+"columns", "no columns are named").WithRemedy("Name those of the table with their types: columns: {id: bigint, name: text}.")
	}
	for _, name := range slices.Sorted(maps.Keys(f.Columns)) {
		n, ok := pgoutput.NamedType(f.Columns[name])
		if !ok {
			e := c.mistake(of.path+"columns."+name, "column %s: %q is no type that is built in", name, f.Columns[name])
			base, _, _ := strings.Cut(f.Columns[name], "(")
			if near := config.Nearest(base, pgoutput.TypeNames()); near != "" {
				e.Text += fmt.Sprintf("; did you mean %q?", near)
			}
			if strings.HasSuffix(name, ")") && f.Columns[name] == "" {
				_ = e.WithRemedy("A type with a comma is written in quotes: {amount: \"numeric(12,2)\"}.")
				continue
			}
			_ = e.WithRemedy("Write the type as psql shows it (\\d TABLE). One of your own or of an extension, an enum say, is written as text.")
			continue
		}
		col := n.Column
		col.Name, col.Nullable = name, !slices.Contains(f.Key, name)
		t.Columns = append(t.Columns, col)
		of.types = append(of.types, n)
	}
	of.table = t.Index()
	if len(c.bad) == 0 {
		b := change.Get()
		c.values(b, of, f.Defaults, of.path+"defaults")
		b.Release()
	}
	if len(f.Key) == 0 {
		_ = c.mistake(of.path+"key", "the table's key is missing").WithRemedy("Name its columns: key: [id].")
	}
	for i, k := range f.Key {
		if at := t.Column(k); at >= 0 {
			t.Key = append(t.Key, at)
		} else if f.Columns[k] == "" {
			c.unknown(fmt.Sprintf("%skey[%d]", of.path, i), "there is no column %q", k, of.columns())
		}
	}
}

func (t *tableOf) columns() []string { return slices.Sorted(maps.Keys(t.form.Columns)) }

// checkCase looks at all that one case names.
func (c *File) checkCase(i int) {
	k, path := &c.form.Cases[i], fmt.Sprintf("cases[%d]", i)
	if k.Name == "" {
		_ = c.mistake(path, "a case has no name").WithRemedy("Say in its name what it shows: name: an unknown status is parked.")
	}
	if len(k.Rows) == 0 {
		c.fail(path, "the case %q has no rows", k.Name)
	}
	b := change.Get()
	defer b.Release()
	for j := range k.Rows {
		c.row(b, &k.Rows[j], fmt.Sprintf("%s.rows[%d]", path, j))
	}
	if k.Records != nil {
		for j := range *k.Records {
			c.checkRecord(&(*k.Records)[j], fmt.Sprintf("%s.records[%d]", path, j))
		}
	}
	if k.Rejected == nil {
		return
	}
	for j, r := range *k.Rejected {
		var codes []string
		for _, code := range problem.All() {
			codes = append(codes, code.ID)
		}
		if !slices.Contains(codes, r.Error) {
			e := c.mistake(fmt.Sprintf("%s.rejected[%d].error", path, j), "there is no code %q", r.Error)
			if near := config.Nearest(r.Error, codes); near != "" {
				e.Text += fmt.Sprintf("; did you mean %q?", near)
			}
			_ = e.WithRemedy("docs/errors.md lists them; those of a mapping begin with TW-MAP.")
		}
	}
}

func (c *File) checkRecord(r *caseRecord, path string) {
	fills := c.stage.Fills(c.form.Topic)
	if r.Topic == "" && len(fills) == 1 {
		r.Topic = fills[0]
	}
	if !slices.Contains(fills, r.Topic) {
		if r.Topic == "" {
			_ = c.mistake(path, "rows of %s become records of several topics: a record names its own", c.form.Topic).WithRemedy("Use one of: %s.", strings.Join(fills, ", "))
			return
		}
		c.unknown(path+".topic", "no rule makes records of %q from this topic", r.Topic, fills)
		return
	}
	switch r.Op {
	case "":
		r.Op = "upsert"
	case "upsert", "delete":
	default:
		c.unknown(path+".op", "a record has no op %q", r.Op, []string{"upsert", "delete"})
	}
	t := c.all[r.Topic].Table
	for _, name := range slices.Sorted(maps.Keys(r.Fields)) {
		at := t.Column(name)
		if at < 0 {
			c.unknown(path+".fields."+name, "the contract of "+r.Topic+" has no field %q", name, names(t))
			continue
		}
		if _, err := fieldText(&t.Columns[at], r.Fields[name]); err != nil {
			c.fail(path+".fields."+name, "field %s of %s: %w", name, r.Topic, err)
		}
	}
}

func names(t *change.Table) []string {
	out := make([]string, len(t.Columns))
	for i := range t.Columns {
		out[i] = t.Columns[i].Name
	}
	return out
}

// row appends one change as Postgres would send it.
func (c *File) row(b *change.Batch, r *caseRow, path string) {
	topic := r.Topic
	if topic == "" {
		topic = c.form.Topic
	}
	of := c.of[topic]
	if of == nil {
		c.unknown(path+".topic", "there is no table of topic %q", topic, slices.Collect(maps.Keys(c.of)))
		return
	}
	op, ok := caseOps[r.Op]
	switch {
	case r.Op == "":
		op = change.Create
	case !ok:
		c.unknown(path+".op", "a row has no op %q", r.Op, slices.Sorted(maps.Keys(caseOps)))
		return
	}
	row := r.Row
	switch {
	case op == change.Delete && r.Row == nil:
		row = r.Old
	case op == change.Delete && r.Old != nil:
		c.fail(path+".old", "a delete has the row that is gone, in row or in old")
	case op != change.Update && r.Old != nil:
		c.fail(path+".old", "a row that is %s has no old one", map[change.Op]string{change.Create: "created", change.Read: "read"}[op])
	}
	if row == nil {
		_ = c.mistake(path, "a row is missing").WithRemedy("Write its columns: row: {id: 17}.")
	}
	now, old := c.withDefaults(b, of, row, path+".row"), c.values(b, of, r.Old, path+".old")
	if op != change.Update && len(r.Unsent) > 0 {
		c.fail(path+".unsent", "only an update leaves columns out")
	}
	unsent := map[int]bool{}
	for i, name := range r.Unsent {
		at := of.table.Column(name)
		if at < 0 {
			c.unknown(fmt.Sprintf("%s.unsent[%d]", path, i), "there is no column %q", name, of.columns())
			continue
		}
		unsent[at] = true
	}
	d := b.Append(of.table, op)
	d.Time = committed
	if r.Committed.Text != "" {
		at, err := time.Parse(time.RFC3339, r.Committed.Text)
		if err != nil {
			_ = c.mistake(path+".committed", "%q is no moment", r.Committed.Text).WithRemedy("Write it with its zone: committed: 2026-01-31T12:00:00Z.")
		}
		d.Time = at.UnixMicro()
	}
	switch op {
	case change.Delete:
		d.Old = now
		if !of.table.OldFull {
			of.keyOnly(d.Old)
		}
	case change.Update:
		d.New = now
		moved := false
		for i := range old {
			_, differs := r.Old[of.table.Columns[i].Name]
			if !differs {
				old[i] = now[i]
			}
			moved = moved || differs && slices.Contains(of.table.Key, i)
		}
		switch {
		case of.table.OldFull:
			d.Old = old
		case moved:
			d.Old = old
			of.keyOnly(d.Old)
		}
	default:
		d.New = now
	}
	for at := range unsent {
		if d.New != nil {
			d.New = slices.Clone(d.New) // the old row may hold the same values
			d.New[at] = change.UnchangedValue()
		}
	}
}

// keyOnly leaves of an old row what REPLICA IDENTITY DEFAULT sends.
func (t *tableOf) keyOnly(row []change.Value) {
	for i := range row {
		if !slices.Contains(t.table.Key, i) {
			row[i] = change.UnchangedValue()
		}
	}
}

// withDefaults are the values of a row; what is not written is that of defaults.
func (c *File) withDefaults(b *change.Batch, of *tableOf, row map[string]config.Scalar, path string) []change.Value {
	out := c.values(b, of, row, path)
	for at, v := range c.values(b, of, of.form.Defaults, of.path+"defaults") {
		if _, written := row[of.table.Columns[at].Name]; !written {
			out[at] = v
		}
	}
	return out
}

// values are those of a row; what is not written is null.
func (c *File) values(b *change.Batch, of *tableOf, row map[string]config.Scalar, path string) []change.Value {
	out := b.Row(len(of.table.Columns))
	for _, name := range slices.Sorted(maps.Keys(row)) {
		at := of.table.Column(name)
		if at < 0 {
			c.unknown(path+"."+name, "there is no column %q", name, of.columns())
			continue
		}
		if row[name].Kind == config.NullScalar {
			continue
		}
		v, err := of.types[at].Value(b, row[name].Text)
		if err != nil {
			c.fail(path+"."+name, "column %s: %w", name, err)
			continue
		}
		out[at] = v
	}
	return out
}

// fieldText is the canonical text of what is written for a field of a contract;
// nil: null.
func fieldText(col *change.Column, written config.Scalar) (*string, error) {
	if written.Kind == config.NullScalar {
		return nil, nil
	}
	n, ok := pgoutput.NamedType(col.Type)
	if !ok {
		return &written.Text, nil
	}
	b := change.Get()
	defer b.Release()
	v, err := n.Value(b, written.Text)
	if err != nil {
		return nil, err
	}
	text := rules.Text(b, col, v)
	return text, nil
}

// load reads a file for read.
func Load(file string, r *rules.Book) (*File, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, errNoCase.New("reading cases: %w", err)
	}
	return read(file, text, r)
}
