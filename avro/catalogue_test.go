package avro

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

const (
	engagement = `{"type": "record", "name": "Partner", "namespace": "firm", "doc": "Who answers for it.", "topic": "firm.partner", "key": ["partner_id"], "owner": "sales", "fields": [
  {"name": "partner_id", "type": "string", "doc": "Id.", "owner": "sales", "sensitivity": "internal"},
  {"name": "since", "type": ["null", {"type": "int", "logicalType": "date"}], "default": null, "doc": "First day.", "owner": "sales", "sensitivity": "internal"}]}`
	moreOfProject = `{"extends": "ps.project", "fields": [
  {"name": "partner_id", "type": ["null", "string"], "default": null, "doc": "Who answers for it.", "owner": "sales", "sensitivity": "internal", "references": "firm.partner"}]}`
)

func contractDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A firm's entity, and a field that it adds, need no other program. If this
// failed, what is not theirs would change with them.
func TestCatalogueOfAFirm(t *testing.T) {
	dir := contractDir(t, map[string]string{"a.avsc": moreOfProject, "partner.avsc": engagement})
	all, err := LoadCatalogue(dir)
	if err != nil {
		t.Fatal(err)
	}
	pack, err := Pack()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(pack)+1 || pack["firm.partner"] != nil {
		t.Fatalf("%v", all.Topics())
	}
	for topic, c := range pack {
		if topic != "ps.project" && all[topic] != c {
			t.Errorf("%s is another", topic)
		}
	}
	was, is := pack["ps.project"], all["ps.project"]
	n := len(was.Fields)
	if len(is.Fields) != n+1 || is.Fields[n].References != "firm.partner" || !is.Table.Columns[n].Nullable || is.Table.Columns[n].Kind != change.String || len(was.Fields) != n {
		t.Errorf("%+v", is.Fields)
	}
	again, err := LoadCatalogue(dir)
	if err != nil || again["ps.project"].Schema != is.Schema {
		t.Errorf("its schema is not the same each time: %v", err)
	}
	if err := compatible(was.Schema, is.Schema); err != nil {
		t.Error(err)
	}
}

// compatible: a reader of the new schema takes what was written with the old one
// when it has each of its fields, and a default for each other.
func compatible(old, now string) error {
	o, err := parseSchema(old)
	if err != nil {
		return err
	}
	n, err := parseSchema(now)
	if err != nil {
		return err
	}
	for i, f := range n.fields {
		if i < len(o.fields) {
			if o.fields[i].name != f.name {
				return ErrContract.New("field %d is %s, was %s", i, f.name, o.fields[i].name)
			}
			continue
		}
		if v, is := f.props["default"]; !is || v != nil {
			return ErrContract.New("field %s has no default", f.name)
		}
	}
	return nil
}

// All that is wrong is told at once, with file and field.
func TestCatalogueMistakes(t *testing.T) {
	field := func(more string) string {
		return `{"extends": "ps.project", "fields": [{"name": "x", "doc": "X.", "owner": "sales", "sensitivity": "internal"` + more + `}]}`
	}
	for name, c := range map[string]struct {
		text string
		says []string
	}{
		"syntax":     {"{\n  \"type\": \"record\",,\n}", []string{":2:21", "invalid character"}},
		"no record":  {`{"type": "string"}`, []string{"must be a record"}},
		"taken":      {strings.ReplaceAll(engagement, "firm.partner", "ps.project"), []string{"ps.project has a contract", `{"extends": "ps.project"`}},
		"topic":      {strings.ReplaceAll(engagement, "firm.partner", "partner"), []string{`topic "partner"`, "ps.project"}},
		"nobody":     {`{"extends": "ps.projekt", "fields": []}`, []string{`extends "ps.projekt"`, "ps.project"}},
		"nothing":    {`{"extends": "ps.project", "fields": []}`, []string{"adds no fields"}},
		"unknown":    {`{"extends": "ps.project", "field": []}`, []string{`unknown field "field"`}},
		"there":      {strings.Replace(field(`, "type": ["null", "string"], "default": null`), `"x"`, `"name"`, 1), []string{"field name: ps.project has it already"}},
		"never null": {field(`, "type": "string"`), []string{"field x: what is added may be null"}},
		"default":    {field(`, "type": ["null", "string"]`), []string{"field x: what is added may be null"}},
		"not null":   {field(`, "type": "string", "default": null`), []string{"field x: its default is null, and it is never null"}},
		"type":       {field(`, "type": ["null", "strin"], "default": null`), []string{"field x", `unknown type "strin"`}},
		"references": {field(`, "type": ["null", "string"], "default": null, "references": "ps.partner"`), []string{"field x of ps.project references ps.partner"}},
		"another":    {field(`, "type": "string", "default": "x"`), []string{"field x: what is added may be null"}},
		"currency":   {field(`, "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}], "default": null, "currency": "money"`), []string{"field x: currency money"}},
		"fallback":   {field(`, "type": ["null", "string"], "default": null, "fallback": "commit_time"`), []string{"field x: fallback is commit_time, of a field that is a moment"}},
		"values":     {field(`, "type": ["null", "string"], "default": null, "values": ["a", "a"]`), []string{"field x: values must be different"}},
		"attribute":  {field(`, "type": ["null", "string"], "default": null, "value": ["a", "b"], "pii": true`), []string{`field x: there is no attribute "value"; did you mean "values"?`}},
		"short":      {field(`, "type": ["null", "string"], "default": null, "ref": "ps.party"`), []string{`field x: there is no attribute "ref"; did you mean "references"?`}},
		"several": {
			strings.NewReplacer(`"sensitivity": "internal"}`, `"sensitivity": "secret"}`, `"key": ["partner_id"]`, `"key": ["partner"]`).Replace(engagement),
			[]string{"field partner_id: sensitivity", "field since: sensitivity"},
		},
		"key": {strings.Replace(engagement, `"key": ["partner_id"]`, `"key": ["partner"]`, 1), []string{"needs a key"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := contractDir(t, map[string]string{"bad.avsc": c.text, "good.avsc": strings.ReplaceAll(engagement, "firm.partner", "firm.other")})
			all, err := LoadCatalogue(dir)
			if !problem.Has(err, ErrContract) {
				t.Fatalf("got %v", err)
			}
			text := problem.Format(err)
			for _, s := range append(c.says, filepath.Join(dir, "bad.avsc")) {
				if name != "references" && !strings.Contains(text, s) || name == "references" && !strings.Contains(text, c.says[0]) {
					t.Errorf("it does not say %q:\n%s", s, text)
				}
			}
			if all["firm.other"] == nil || all["ps.project"] == nil {
				t.Error("what is good is not there")
			}
		})
	}
	for _, dir := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir()} {
		if _, err := LoadCatalogue(dir); !problem.Has(err, ErrContract) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	good := contractDir(t, map[string]string{"good.avsc": engagement, "more.avsc": moreOfProject})
	if _, err := LoadCatalogue(good); err != nil { // Remedy: TW-CONTRACT
		t.Error(err)
	}
}
