package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
)

// typeCase is a type with values that are hard to carry.
type typeCase struct {
	typ    string
	kind   change.Kind
	values []string // SQL expressions
}

var typeCases = []typeCase{
	{"bool", change.Bool, []string{"true", "false"}},
	{"int2", change.Int, []string{"0", "-32768", "32767"}},
	{"int4", change.Int, []string{"-2147483648", "2147483647"}},
	{"int8", change.Int, []string{"-9223372036854775808", "9223372036854775807"}},
	{"oid", change.Int, []string{"0", "4294967295"}},
	{"float4", change.Float32, []string{"0", "'-0'", "1.1", "1e-45", "3.4028235e38", "'NaN'", "'Infinity'", "'-Infinity'", "16777216", "1e6", "123456", "0.0001", "0.00001"}},
	{"float8", change.Float64, []string{"0", "'-0'", "0.1", "5e-324", "1.7976931348623157e308", "'NaN'", "'Infinity'", "'-Infinity'", "1e15", "123456789012345", "1e-5"}},
	{"numeric", change.Decimal, []string{"0", "0.00", "1", "-1.50", "'NaN'", "'Infinity'", "'-Infinity'", "123456789012345678901234567890.123456789", "-0.000000000000000000000000000001", "10000", "1e30", "0.0001", "1e-5", "9999.9999", "99999999.99999999", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "100000000.0000", "1000000000000000000"}},
	{"numeric(12,4)", change.Decimal, []string{"0", "12345678.9012", "-0.0001", "65.5"}},
	{"numeric(5,-2)", change.Decimal, []string{"1234567", "-100", "0"}},
	{"numeric(3,5)", change.Decimal, []string{"0.00123"}},
	{"text", change.String, []string{"''", "'žluťoučký 🐎'", `E'a\tb\nc\\d"e'`}},
	{"varchar(20)", change.String, []string{"'abc'", "''"}},
	{"char(5)", change.String, []string{"'ab'", "''"}},
	{"name", change.String, []string{"'pg_class'"}},
	{`"char"`, change.String, []string{"'x'", "''", `'\201'`}},
	{"bytea", change.Bytes, []string{`'\x'`, `'\x00ff10'`}},
	{"uuid", change.UUID, []string{"'00000000-0000-0000-0000-000000000000'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"}},
	{"date", change.Date, []string{"'2024-02-29'", "'infinity'", "'-infinity'", "'0001-01-01'", "'0044-03-15 BC'", "'4713-01-01 BC'", "'5874897-12-31'", "'12345-01-02'"}},
	{"time", change.Time, []string{"'00:00'", "'24:00'", "'23:59:59.999999'", "'04:05:06.7'"}},
	{"time(3)", change.Time, []string{"'04:05:06.789'"}},
	{"timetz", change.TimeTZ, []string{"'12:00+00'", "'12:00:01.5-03:30'", "'23:59:59+15:59:59'", "'24:00-12'"}},
	{"timestamp", change.Timestamp, []string{"'1999-12-31 23:59:59.999999'", "'infinity'", "'-infinity'", "'4713-01-01 00:00:00 BC'", "'1969-12-31 23:59:59.999999'", "'294246-12-31'", "'294276-12-31 23:59:59.999999'"}},
	{"timestamptz", change.TimestampTZ, []string{"'2024-03-01 10:00:00+02'", "'infinity'", "'-infinity'", "'0044-03-15 12:00:00.000001+00 BC'", "'2000-01-01 00:00:00.1+00'"}},
	{"timestamptz(0)", change.TimestampTZ, []string{"'2024-03-01 10:00:00.6+02'"}},
	{"interval", change.Interval, []string{"'0'", "'1 year 2 mons -3 days 04:05:06.7'", "'-1 year -2 mons +3 days -04:05:06.000001'", "'178000000 years'", "'100000 hours'", "'-1 mon'", "'-00:00:01'", "'14 mons'", "'1 day -00:00:00.5'"}},
	{"json", change.JSON, []string{`'{"a":  1, "a": [1.0, null]}'`, "'null'"}},
	{"jsonb", change.JSON, []string{`'{"b": 1.00, "a": "x\"y"}'`, "'[]'"}},
	{"mood", change.Enum, []string{"'sad'", "'so so'"}},
	{"money_d", change.Decimal, []string{"12.34", "0"}},
	{"int4[]", change.Array, []string{"'{}'", "'{1,NULL,-3}'", "'{{1,2},{3,4}}'", "'[0:1]={5,6}'", "'[-1:0][2:3]={{1,2},{3,4}}'"}},
	{"text[]", change.Array, []string{`'{"a b","",NULL,"NULL","c\"d","e\\f","g,h","{i}",plain}'`, "'{{a,b},{c,NULL}}'"}},
	{"numeric(6,2)[]", change.Array, []string{"'{1.50,-2,NULL}'"}},
	{"date[]", change.Array, []string{"'{2024-01-01,infinity}'"}},
	{"timestamptz[]", change.Array, []string{"'{2024-01-01 00:00:00+00,infinity}'"}},
	{"mood[]", change.Array, []string{"'{sad,\"so so\",NULL}'"}},
	{"money_d[]", change.Array, []string{"'{12.30,0}'"}},
	{"bytea[]", change.Array, []string{`ARRAY['\x00ff'::bytea, NULL, '\x']`}},
	{"jsonb[]", change.Array, []string{`ARRAY['{"a": "b c"}'::jsonb]`}},
	{"bool[]", change.Array, []string{"'{t,f,NULL}'"}},
	{"interval[]", change.Array, []string{"'{1 day 02:00:00,NULL}'"}},
	{"uuid[]", change.Array, []string{"'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"}},
}

// textCases have no decoder: their exact text is carried.
var textCases = []typeCase{
	{"inet", change.Text, []string{"'10.0.0.1/8'", "'::1'"}},
	{"int4range", change.Text, []string{"'[1,5)'", "'empty'"}},
	{"point", change.Text, []string{"'(1.5,-2)'"}},
	{"bit(3)", change.Text, []string{"'101'"}},
	{"tsvector", change.Text, []string{"'a:1 b:2'"}},
	{"xml", change.Text, []string{"'<a>b</a>'"}},
	{"money", change.Text, []string{"12.5"}},
	{"inet[]", change.Text, []string{"'{10.0.0.1,NULL}'"}},
	{"int2vector", change.Text, []string{"'1 2 3'"}},
	{"pair", change.Text, []string{`'(1,"a b")'`, "'(,)'"}},
	{"regclass", change.Text, []string{"'pg_class'", "'public.types'"}},
}

const typesDDL = `CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE DOMAIN money_d AS numeric(14,2) NOT NULL CHECK (VALUE >= 0);
CREATE TYPE pair AS (a int, b text);`

// typesTable makes a table with a column per case and a row per value.
func typesTable(d *db, cases []typeCase) (inserts []string) {
	rows := 0
	cols := []string{"id int PRIMARY KEY"}
	for i, c := range cases {
		cols = append(cols, fmt.Sprintf("c%d %s", i, c.typ))
		rows = max(rows, len(c.values))
	}
	d.sql("CREATE TABLE types(%s); ALTER TABLE types REPLICA IDENTITY FULL", strings.Join(cols, ", "))
	for r := range rows {
		vals := []string{fmt.Sprint(r)}
		for _, c := range cases {
			switch {
			case r < len(c.values):
				vals = append(vals, "("+c.values[r]+")::"+c.typ)
			case c.typ == "money_d":
				vals = append(vals, "1")
			default:
				vals = append(vals, "NULL")
			}
		}
		inserts = append(inserts, "INSERT INTO types VALUES ("+strings.Join(vals, ", ")+")")
	}
	return inserts
}

// asPsql is the table as Postgres prints it, by id.
func asPsql(d *db, cases []typeCase) map[string]string {
	d.t.Helper()
	cfg, err := pgx.ParseConfig(d.pg.DSN(d.name))
	if err != nil {
		d.t.Fatal(err)
	}
	for k, v := range sessionParams {
		cfg.RuntimeParams[k] = v
	}
	q, err := pgx.ConnectConfig(d.t.Context(), cfg)
	if err != nil {
		d.t.Fatal(err)
	}
	defer q.Close(d.t.Context())
	cols := []string{"id"}
	for i := range cases {
		cols = append(cols, fmt.Sprintf("c%d", i))
	}
	rows, err := q.Query(d.t.Context(), "SELECT "+strings.Join(cols, ", ")+" FROM public.types", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		d.t.Fatal(err)
	}
	defer rows.Close()
	m := map[string]string{}
	for rows.Next() {
		raw := rows.RawValues()
		s := []string{"id=" + string(raw[0])}
		for i := range cases {
			v := "<null>"
			if raw[i+1] != nil {
				v = string(raw[i+1])
			}
			s = append(s, fmt.Sprintf("c%d=%s", i, v))
		}
		m[string(raw[0])] = strings.Join(s, "|")
	}
	if err := rows.Err(); err != nil {
		d.t.Fatal(err)
	}
	return m
}

// sameTypes loads and streams the cases and compares both with Postgres's text.
func sameTypes(t *testing.T, pg *embedded.Postgres, cases []typeCase, binary bool) {
	t.Helper()
	d := newDB(t, pg)
	d.sql(typesDDL)
	inserts := typesTable(d, cases)
	for _, i := range inserts {
		d.sql("%s", i)
	}
	o := newOutlet()
	s := d.source()
	s.form = &binary
	r := start(t, s, o)
	n := len(inserts)
	o.until(t, "the load", func() bool { p := o.last(t); return p.LSN != 0 && p.State == "" })
	o.untilCount(t, n)
	d.sql("UPDATE types SET id = id")
	o.untilCount(t, 2*n)
	d.sql("DELETE FROM types")
	o.untilCount(t, 3*n)
	for _, i := range inserts {
		d.sql("%s", i)
	}
	o.untilCount(t, 4*n)
	r.stop()
	want := asPsql(d, cases)
	recs := o.records()
	diff := func(what, got, want string) {
		g, w := strings.Split(got, "|"), strings.Split(want, "|")
		for i := range w {
			if i >= len(g) || g[i] != w[i] {
				t.Errorf("%s: %s is %s, Postgres prints %s", what, cases[max(i-1, 0)].typ, g[min(i, len(g)-1)], w[i])
			}
		}
	}
	for i, rec := range recs {
		switch w := want[rec.key]; {
		case i < n:
			diff("load", rec.new, w)
		case i < 2*n:
			diff("update, old", rec.old, w)
			diff("update, new", rec.new, w)
		case i < 3*n:
			diff("delete", rec.old, w)
		default:
			diff("insert", rec.new, w)
		}
		if rec.new == "" {
			continue
		}
		for j, k := range strings.Split(rec.kinds, "|")[1:] {
			if k != "null" && k != cases[j].kind.String() && !(k == "text" && strings.Contains(rec.new, "294276")) {
				t.Errorf("%s comes as %s, want %s", cases[j].typ, k, cases[j].kind)
			}
		}
	}
}

// Lost if these fail: a value differs between load and stream, between binary
// and text, or from what the database shows.
func TestTypesBinary(t *testing.T) { sameTypes(t, shared(t), typeCases, true) }

func TestTypesText(t *testing.T) {
	sameTypes(t, shared(t), append(append([]typeCase(nil), typeCases...), textCases...), false)
}

// Lost if this fails: the contract derived from a table is wrong.
func TestColumnFacts(t *testing.T) {
	d := newDB(t, shared(t))
	d.sql(typesDDL + `CREATE TABLE facts(b int, a bigint NOT NULL, n numeric(12,4) NOT NULL, d money_d, m mood, arr numeric(6,2)[], ts timestamptz(3), i inet, gone int, PRIMARY KEY(a, b));
		ALTER TABLE facts DROP COLUMN gone; CREATE TABLE uniq(x int, y text NOT NULL); CREATE UNIQUE INDEX u ON uniq(y) INCLUDE (x); ALTER TABLE uniq REPLICA IDENTITY USING INDEX u`)
	var got []*change.Table
	o := newOutlet()
	o.onSend = nil
	tables := map[string]*change.Table{}
	tap := &tapOutlet{outlet: o, see: func(c *change.Change) { tables[c.Table.Name] = c.Table }}
	d.sql(`INSERT INTO facts VALUES (1, 2, 3, 4); INSERT INTO uniq VALUES (1, 'k')`)
	r := startTap(t, d.source(), tap)
	o.untilCount(t, 2)
	r.stop()
	f := tables["facts"]
	got = append(got, f)
	if f.Database != d.name || f.Connector == nil || f.Connector.Name != "postgresql" || f.Connector.Version == "" {
		t.Errorf("facts is of database %q by connector %+v, want %q by postgresql", f.Database, f.Connector, d.name)
	}
	if fmt.Sprint(f.Key) != "[1 0]" {
		t.Errorf("key of facts is %v, want [1 0]: the order of the primary key", f.Key)
	}
	if u := tables["uniq"]; fmt.Sprint(u.Key) != "[1]" {
		t.Errorf("key of uniq is %v, want [1]: without included columns", u.Key)
	}
	want := []string{
		"b integer int null=false prec=-1 scale=-1", "a bigint int null=false prec=-1 scale=-1", "n numeric(12,4) decimal null=false prec=12 scale=4",
		"d money_d decimal null=true prec=14 scale=2", "m mood enum null=true prec=-1 scale=-1", "arr numeric(6,2)[] array null=true prec=-1 scale=-1",
		"ts timestamp(3) with time zone timestamptz null=true prec=3 scale=-1", "i inet text null=true prec=-1 scale=-1",
	}
	for i, c := range got[0].Columns {
		typ := strings.ReplaceAll(c.Type, "public.", "")
		if g := fmt.Sprintf("%s %s %s null=%v prec=%d scale=%d", c.Name, typ, c.Kind, c.Nullable, c.Precision, c.Scale); g != want[i] {
			t.Errorf("column %d: %s, want %s", i, g, want[i])
		}
	}
	if e := f.Columns[5].Elem; e.Kind != change.Decimal || e.Scale != 2 {
		t.Errorf("element of arr: %+v", e)
	}
	if fmt.Sprint(f.Columns[4].Labels) != "[sad so so]" {
		t.Errorf("labels of m: %v", f.Columns[4].Labels)
	}
}
