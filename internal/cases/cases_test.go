package cases

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/rules"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// put writes files into a directory of its own, and gives that.
func put(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		f := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const lineRules = `
sources: {psa: {type: postgres, dsn: env:TW_TEST_NOT_SET_AT_ALL}}
codes: [codes]
transforms:
  canonical:
    type: map
    topics:
      - from: psa.public.line
        to: ps.time_entry
        where: '!row.gone'
        fields:
          time_entry_id: "line-{id}"
          resource_id: user_id
          project_id: project
          task_number: "=none"
          work_date: spent_on
          hours: 'round(decimal(row.hours), 2, "half_even")'
          billable: true
          status: 'code("status", row.status)'
          bill_rate: null
          created_at: 'moment(row.made, "Europe/Berlin")'
          updated_at: 'moment(row.made, "Europe/Berlin")'
`

const lineHead = `# Lines of the PSA.
transform: canonical
topic: psa.public.line
key: [id] # its primary key
columns: {id: bigint, user_id: bigint, project: text, hours: double precision, spent_on: date, status: integer, made: timestamp without time zone, gone: boolean, note: text}
defaults: {user_id: 7, project: P-1, hours: 1.35, spent_on: 2026-03-31, status: 2, made: 2026-03-31 23:00:00, gone: false}
cases:
`

const lineCodes = "code,value\n1,draft\n2,approved\n"

// lineFiles are one file of cases beside those rules.
func lineFiles(t *testing.T, cases string) (dir string) {
	t.Helper()
	return put(t, map[string]string{"tallywire.yml": lineRules, "codes/status.csv": lineCodes, "mappings/line.test.yml": lineHead + cases})
}

// tested runs the cases of a file over rules, and with update writes what came out.
func tested(t *testing.T, config, file string, update bool) (ds []Difference, w []Written, err error) {
	t.Helper()
	book, err := rules.Read(config)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Load(file, book)
	if err != nil {
		return nil, nil, err
	}
	outs, err := f.Run(t.Context(), nil)
	if err != nil {
		return nil, nil, book.Place(err)
	}
	if ds = f.Compare(outs); update && len(ds) > 0 {
		w, err = f.Update(t.Context(), book, outs, ds)
		return nil, w, err
	}
	return ds, nil, nil
}

// lineCases runs cases over those rules.
func lineCases(t *testing.T, cases string, update bool) (dir string, ds []Difference, w []Written, err error) {
	t.Helper()
	dir = lineFiles(t, cases)
	ds, w, err = tested(t, dir+"/tallywire.yml", dir+"/mappings/line.test.yml", update)
	return dir, ds, w, err
}

// text is a difference on one line.
func (d *Difference) text() string {
	shown := func(s *string) string {
		if s == nil {
			return "null"
		}
		return *s
	}
	if d.Field == "" {
		return d.What
	}
	return d.What + ": " + d.Field + " " + shown(d.Want) + " > " + shown(d.Got)
}

const goodCases = `  - name: a float of hours is rounded once
    rows:
      - row: {id: 17, hours: 0.335000001}
    records:
      - {topic: ps.time_entry, key: line-17, op: upsert, fields: {time_entry_id: line-17, hours: "0.34", billable: true, created_at: 2026-03-31T21:00:00Z, note: null}}
  - name: an unknown status is parked
    rows: [{row: {id: 18, status: 9}}, {row: {id: 19}}]
    records: [{key: line-19}]
    rejected: [{error: TW-MAP-EXPR, contains: does not have it}]
  - name: what is gone is deleted
    rows: [{op: update, row: {id: 17, gone: true}, old: {gone: false}}, {op: delete, old: {id: 17}}]
    records: [{key: line-17, op: delete}, {key: line-17, op: delete}]
  - name: a large note that was not sent
    rows: [{op: update, row: {id: 17}, unsent: [note]}]
    rejected: [{error: TW-MAP-UNCHANGED, contains: column note}]
  - name: more hours than the contract holds
    rows: [{row: {id: 17, hours: 12345}}]
    rejected: [{error: TW-AVRO-DECIMAL-OVERFLOW}]
  - name: a table that keeps no time of its changes
    rows: [{row: {id: 17, made: null}}, {committed: 2026-02-03T04:05:06Z, row: {id: 17, made: null}}]
    records: [{key: line-17, fields: {created_at: null, updated_at: 2026-01-01T00:00:00Z}}, {key: line-17, fields: {updated_at: 2026-02-03T04:05:06Z}}]
  - name: a key that moves, its old row known by the key alone
    rows: [{op: update, row: {id: 20}, old: {id: 17, user_id: 8}}]
    records: [{key: line-17, op: delete}, {key: line-20}]
`

// Lost if this fails: a rule that changed what it makes passes its test.
func TestCases(t *testing.T) {
	if _, ds, _, err := lineCases(t, goodCases, false); len(ds) > 0 || err != nil { // Remedy: TW-CASE-FORM, TW-MAP-TRANSFORM
		t.Fatal(ds, err)
	}
	for _, c := range []struct{ name, from, to, said string }{
		{"value", `hours: "0.34"`, "hours: 0.33", "hours 0.33 > 0.34"},
		{"null", "note: null", "note: x", "note x > null"},
		{"key", "key: line-17, op: upsert", "key: line-18, op: upsert", "key line-18 > line-17"},
		{"op", "key: line-17, op: upsert", "key: line-17, op: delete", "op delete > upsert"},
		{"moment", "21:00:00Z", "22:00:00Z", "created_at 2026-03-31 22:00:00+00 > 2026-03-31 21:00:00+00"},
		{"a record too few", "[{key: line-19}]", "[]", "a record came that is not expected: ps.time_entry line-19"},
		{"a record too many", "[{key: line-19}]", "[{key: line-18}, {key: line-19}]", "record 1 did not come: ps.time_entry line-18"},
		{"code", "TW-MAP-EXPR", "TW-MAP-NULL", "error TW-MAP-NULL > TW-MAP-EXPR"},
		{"message", "does not have it", "is too old", "contains is too old > "},
		{"not rejected", "status: 9", "status: 1", "no row was rejected with TW-MAP-EXPR"},
		{"rejected", "row: {id: 17, hours: 0.335000001}", "row: {id: 17, hours: NaN}", "row 1 was rejected: TW-MAP-EXPR"},
		{"nothing said", "    records: [{key: line-19}]\n    rejected: [{error: TW-MAP-EXPR, contains: does not have it}]\n", "", "it does not say what must come out; out came ps.time_entry line-19; row 1 was rejected with TW-MAP-EXPR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(goodCases, c.from) {
				t.Fatal("the cases do not have " + c.from)
			}
			dir, ds, _, err := lineCases(t, strings.Replace(goodCases, c.from, c.to, 1), false)
			said := ""
			for i := range ds {
				said += ds[i].text() + "\n"
				if ds[i].File != dir+"/mappings/line.test.yml" || ds[i].Line < 8 {
					t.Errorf("it is at %s:%d", ds[i].File, ds[i].Line)
				}
			}
			if err != nil || !strings.Contains(said, c.said) {
				t.Errorf("%v, want %q in\n%s", err, c.said, said)
			}
		})
	}
	// All of them at once.
	_, ds, _, err := lineCases(t, strings.NewReplacer("0.34\"", "1\"", "TW-MAP-EXPR", "TW-MAP-NULL", "note: null", "note: x").Replace(goodCases), false)
	if err != nil || len(ds) != 3 || ds[2].Line != 13 {
		t.Error(ds, err)
	}
}

// If this failed, a mistake in a case would have to be looked for, or would be
// taken for a case that is as expected.
func TestCasesWithMistakes(t *testing.T) {
	for _, c := range []struct{ name, from, to, said string }{
		{"no YAML", "rows: [{row: {id: 18", "rows: [{row: [id: 18", "TW-CONFIG-SYNTAX"},
		{"key of the file", "defaults: ", "default: ", `line.test.yml:6:1: unknown key "default"; did you mean "defaults"?`},
		{"key of a case", "rejected: [", "rejectd: [", `line.test.yml:16:5: unknown key "rejectd" in cases[1]; did you mean "rejected"?`},
		{"transform", "transform: canonical", "transform: canonicl", `line.test.yml:2:12: transform: tallywire.yml has no transform "canonicl" of type map; did you mean "canonical"?`},
		{"topic", "topic: psa.public.line", "topic: psa.public.lines", `line.test.yml:3:8: topic: the transform reads no topic "psa.public.lines"; did you mean "psa.public.line"?`},
		{"key column", "key: [id]", "key: [idd]", `line.test.yml:4:7: key[0]: there is no column "idd"; did you mean "id"?`},
		{"type", "hours: double precision", "hours: double precison", `line.test.yml:5:62: columns.hours: column hours: "double precison" is no type that is built in; did you mean "double precision"?`},
		{"comma of a type", "hours: double precision", "hours: numeric(12,2)", `"numeric(12" is no type that is built in`},
		{"moment", "committed: 2026-02-03T04:05:06Z", "committed: 2026-02-03", `.rows[1].committed: "2026-02-03" is no moment`},
		{"column", "id: 18, status: 9", "id: 18, staus: 9", `: there is no column "staus"; did you mean "status"?`},
		{"value", "id: 18, status: 9", "id: 18, status: open", `line.test.yml:14:35: cases[1].rows[0].row.status: column status: "open" is no integer`},
		{"default", "spent_on: 2026-03-31", "spent_on: yesterday", `defaults.spent_on: column spent_on: "yesterday" is no date, such as 2026-03-31`},
		{"op", "op: update, row: {id: 17}", "op: updated, row: {id: 17}", `a row has no op "updated"; did you mean "update"?`},
		{"table of a row", "op: update, row: {id: 17}", "topic: psa.public.lines, row: {id: 17}", `there is no table of topic "psa.public.lines"; did you mean "psa.public.line"?`},
		{"another table", "defaults: ", "tables: {psa.public.other: {key: [id], columns: {id: bigint}}}\ndefaults: ", `tables.psa.public.other: the transform reads no topic "psa.public.other"`},
		{"unsent", "unsent: [note]", "unsent: [notes]", `there is no column "notes"; did you mean "note"?`},
		{"field", "billable: true, created", "bilable: true, created", `line.test.yml:12:115: cases[0].records[0].fields.bilable: the contract of ps.time_entry has no field "bilable"; did you mean "billable"?`},
		{"value of a field", `hours: "0.34"`, "hours: much", `field hours of ps.time_entry: "much" is no numeric(10,6)`},
		{"topic of a record", "topic: ps.time_entry", "topic: ps.time_entri", `no rule makes records of "ps.time_entri" from this topic; did you mean "ps.time_entry"?`},
		{"code", "TW-MAP-EXPR", "TW-MAP-EXPRS", `there is no code "TW-MAP-EXPRS"; did you mean "TW-MAP-EXPR"?`},
		{"default of no column", "project: text, hours", "projct: text, hours", `line.test.yml:6:33: defaults.project: there is no column "project"; did you mean "projct"?`},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := lineHead + goodCases
			if !strings.Contains(all, c.from) {
				t.Fatal("the cases do not have " + c.from)
			}
			dir := put(t, map[string]string{"tallywire.yml": lineRules, "codes/status.csv": lineCodes, "mappings/line.test.yml": strings.Replace(all, c.from, c.to, 1)})
			t.Chdir(dir)
			_, _, err := tested(t, "tallywire.yml", "mappings/line.test.yml", false)
			said := ""
			for _, e := range problem.Reports(err) {
				said += e.Code + " " + e.Where + ": " + e.What + "\n"
			}
			if !strings.Contains(said, c.said) {
				t.Errorf("want %q in\n%s", c.said, said)
			}
		})
	}
	// A rule that names what the table does not have is told at the rule.
	dir := put(t, map[string]string{"tallywire.yml": strings.Replace(lineRules, "row.hours", "row.houres", 1), "codes/status.csv": lineCodes, "mappings/line.test.yml": lineHead + goodCases})
	_, _, err := tested(t, dir+"/tallywire.yml", dir+"/mappings/line.test.yml", false)
	if rs := problem.Reports(err); len(rs) != 1 || rs[0].Code != "TW-MAP-COLUMN" || !strings.Contains(rs[0].Where, "tallywire.yml:17:") {
		t.Errorf("%+v", rs)
	}
}

const untidyCases = `  # Rounding.
  - name: a float of hours is rounded once # not twice
    rows:
      - row: {id: 17, hours: 0.335000001} # 20 minutes

    # What comes out.
    records:
      - topic: ps.time_entry
        fields: {hours: "0.3", note: 'it''s', work_date: 2026-04-01} # two digits

  - name: two
    rows: [{row: {id: 18}}, {row: {id: 19, status: 9}}]
    records:
      # the first
      - {key: line-20, fields: {hours: 1.35}}
      - {key: line-21}
    # after it
  - name: nothing said yet
    rows:
      - row: {id: 22}
      - {op: delete, row: {id: 22}}
# the end
`

// Lost if this fails: an update throws away what people wrote, or writes a file
// that is not as expected, and the next one changes it again.
func TestUpdateWritesWhatCameOut(t *testing.T) {
	dir, _, w, err := lineCases(t, untidyCases, true)
	file := dir + "/mappings/line.test.yml"
	if err != nil || len(w) != 3 || w[0] != (Written{file, 9, "a float of hours is rounded once", "hours, note, work_date"}) || w[2].What != "2 records" {
		t.Fatal(w, err)
	}
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"# Lines of the PSA.", "key: [id] # its primary key", "  # Rounding.", "  - name: a float of hours is rounded once # not twice", "      - row: {id: 17, hours: 0.335000001} # 20 minutes\n",
		"    # What comes out.\n    records:\n      - topic: ps.time_entry\n        fields: {hours: 0.34, note: null, work_date: 2026-03-31} # two digits\n",
		"    records:\n      # the first\n      - topic: ps.time_entry\n        key: line-18\n",
		"    rejected:\n      - {error: TW-MAP-EXPR, contains: \"", "    # after it\n  - name: nothing said yet\n", "        key: line-22\n        op: delete\n# the end\n",
	} {
		if !strings.Contains(string(first), line) {
			t.Errorf("it does not have\n%s\nbut is\n%s", line, first)
		}
	}
	// The file is exchanged, not written over: another name of it has what it had.
	kept := filepath.Join(dir, "kept")
	if err := os.WriteFile(file, []byte(lineHead+untidyCases), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, kept); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tested(t, dir+"/tallywire.yml", file, true); err != nil {
		t.Fatal(err)
	}
	if whole, err := os.ReadFile(kept); err != nil || string(whole) != lineHead+untidyCases {
		t.Errorf("it is written in place (%v)", err)
	}
	ds, w, err := tested(t, dir+"/tallywire.yml", file, true)
	if err != nil || len(ds)+len(w) > 0 {
		t.Error("updated twice:", ds, w, err)
	}
	again, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(again) != string(first) {
		t.Errorf("the second time it is\n%s", again)
	}
	// What is written within braces is left alone, and said.
	dir, _, _, bad := lineCases(t, "  - {name: x, rows: [{row: {id: 1}}], records: []}\n", true)
	braces, err := os.ReadFile(dir + "/mappings/line.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	if !problem.Has(bad, errCase) || !strings.HasSuffix(string(braces), "records: []}\n") {
		t.Errorf("%v\n%s", bad, braces)
	}
}

// A row that becomes several records is tested as any other.
func TestCasesOfEach(t *testing.T) {
	dir := put(t, map[string]string{"tallywire.yml": `
sources: {erp: {type: postgres, dsn: env:TW_TEST_NOT_SET_AT_ALL}}
transforms:
  canonical:
    type: map
    topics:
      - from: erp.public.bill
        to: ps.invoice_line
        each: json(row.payload).lines
        key: '"erp-" + string(row.id) + "-" + string(item.no)'
        where: item.amount != 0
        fields: {invoice_id: "erp-{id}", project_id: item.project, quantity: decimal(item.quantity), unit_price: decimal(item.price), amount: decimal(item.amount)}
`, "mappings/bill.test.yml": `transform: canonical
topic: erp.public.bill
key: [id]
replica_identity: full
columns: {id: bigint, payload: jsonb}
defaults: {payload: '{"lines": [{"no": 1, "project": "P", "quantity": 2, "price": 60.50, "amount": 121}, {"no": 2, "project": "Q", "quantity": 1, "price": 8, "amount": 8}]}'}
cases:
  - name: a line per element
    rows: [{row: {id: 7}}]
    records:
      - {key: erp-7-1, fields: {invoice_id: erp-7, project_id: P, unit_price: "60.5", amount: 121}}
      - {key: erp-7-2, fields: {project_id: Q, amount: 8}}
  - name: a line that was taken out is deleted, and so is one that is nothing now
    rows:
      - op: update
        row: {id: 7, payload: '{"lines": [{"no": 3, "project": "P", "quantity": 2, "price": 1, "amount": 2}, {"no": 2, "amount": 0}]}'}
        old: {payload: '{"lines": [{"no": 1}, {"no": 2}]}'}
    records: [{key: erp-7-2, op: delete}, {key: erp-7-1, op: delete}, {key: erp-7-3, fields: {amount: 2}}]
  - name: a line that is no line parks the invoice
    rows: [{row: {id: 7, payload: '{"lines": [{"no": 1, "project": "P", "quantity": 2, "price": 60.50, "amount": 121}, {"no": 1, "amount": 5}]}'}}, {op: delete, row: {id: 8}}]
    records: [{key: erp-8-1, op: delete}, {key: erp-8-2, op: delete}]
    rejected: [{error: TW-MAP-EXPR, contains: "index 1 of the list: field project_id of ps.invoice_line: no such key"}]
`})
	if ds, _, err := tested(t, dir+"/tallywire.yml", dir+"/mappings/bill.test.yml", false); len(ds) > 0 || err != nil {
		t.Error(ds, err)
	}
}
