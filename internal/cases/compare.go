// Compare: what came out beside what a case says.

package cases

import (
	"fmt"
	"strings"
)

// Difference is one thing that is not as a case says.
type Difference struct {
	File   string  `json:"file"`
	Line   int     `json:"line"`
	Case   string  `json:"case"`
	What   string  `json:"what"`            // about which record or row, in words
	Field  string  `json:"field,omitempty"` // "": about the whole
	Want   *string `json:"want"`            // with Field; null is null
	Got    *string `json:"got"`
	Number int     `json:"-"` // of the case in its file
}

// Compare tells what differs, of all cases.
func (c *File) Compare(outs []Outcome) (ds []Difference) {
	for i := range outs {
		k := &c.form.Cases[i]
		add := func(d Difference) {
			d.File, d.Line, d.Case, d.Number = c.file, c.doc.Line(fmt.Sprintf("cases[%d]", i)), k.Name, i
			ds = append(ds, d)
		}
		if k.Records == nil && k.Rejected == nil {
			add(Difference{What: fmt.Sprintf("it does not say what must come out; %s", outs[i].summary())})
			continue
		}
		c.compareRecords(k, &outs[i], add)
		compareRejected(k, &outs[i], add)
	}
	return ds
}

// summary says in short what came out.
func (o *Outcome) summary() string {
	var all []string
	for i := range o.records {
		all = append(all, o.records[i].String())
	}
	for _, r := range o.rejected {
		all = append(all, fmt.Sprintf("row %d was rejected with %s", r.row+1, r.code))
	}
	if len(all) == 0 {
		return "nothing came out"
	}
	return "out came " + strings.Join(all, "; ")
}

func (c *File) compareRecords(k *mappingCase, o *Outcome, add func(Difference)) {
	var want []caseRecord
	if k.Records != nil {
		want = *k.Records
	}
	for _, p := range pairs(want, o.records) {
		switch {
		case p.got < 0:
			add(Difference{What: fmt.Sprintf("record %d did not come: %s", p.want+1, want[p.want].String())})
		case p.want < 0:
			add(Difference{What: "a record came that is not expected: " + o.records[p.got].String()})
		default:
			what := fmt.Sprintf("record %d, %s", p.want+1, o.records[p.got].String())
			for _, d := range c.differing(&want[p.want], &o.records[p.got]) {
				d.What = what
				add(d)
			}
		}
	}
}

func (r *caseRecord) String() string {
	if r.Key.Text == "" {
		return strings.TrimSpace(r.Topic + map[string]string{"delete": ", deleted"}[r.Op])
	}
	return r.Topic + " " + r.Key.Text + map[string]string{"delete": ", deleted"}[r.Op]
}

// differing are the fields of a record that are not as they must be.
func (c *File) differing(w *caseRecord, g *outRecord) (ds []Difference) {
	for _, x := range []struct{ name, want, got string }{{"topic", w.Topic, g.topic}, {"key", w.Key.Text, g.key}, {"op", w.Op, g.op}} {
		if x.want != x.got && (x.name != "key" || x.want != "") {
			ds = append(ds, Difference{Field: x.name, Want: &x.want, Got: &x.got})
		}
	}
	if w.Topic != g.topic {
		return ds
	}
	for i := range g.fields {
		f := &g.fields[i]
		written, named := w.Fields[f.col.Name]
		if !named {
			continue
		}
		want, err := fieldText(f.col, written)
		if err != nil {
			panic("BUG: a field that was checked cannot be read: " + err.Error())
		}
		got := f.text
		if !f.known {
			none := "(not known of a delete)"
			got = &none
		}
		if (want == nil) != (got == nil) || want != nil && *want != *got {
			ds = append(ds, Difference{Field: f.col.Name, Want: want, Got: got})
		}
	}
	return ds
}

// pair is an expected record and what came for it; -1: none.
type pair struct{ want, got int }

// pairs lines up what is expected with what came: one by one when they are as
// many, else by the longest run of those that are of one topic, op and key.
func pairs(want []caseRecord, got []outRecord) (out []pair) {
	if len(want) == len(got) {
		for i := range want {
			out = append(out, pair{i, i})
		}
		return out
	}
	same := func(i, j int) bool {
		return want[i].Topic == got[j].topic && want[i].Op == got[j].op && (want[i].Key.Text == "" || want[i].Key.Text == got[j].key)
	}
	longest := make([][]int, len(want)+1) // of what follows i and j
	for i := range longest {
		longest[i] = make([]int, len(got)+1)
	}
	for i := len(want) - 1; i >= 0; i-- {
		for j := len(got) - 1; j >= 0; j-- {
			longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			if same(i, j) {
				longest[i][j] = max(longest[i][j], longest[i+1][j+1]+1)
			}
		}
	}
	i, j := 0, 0
	for i < len(want) || j < len(got) {
		switch {
		case i < len(want) && j < len(got) && same(i, j) && longest[i][j] == longest[i+1][j+1]+1:
			out = append(out, pair{i, j})
			i, j = i+1, j+1
		case j == len(got) || i < len(want) && longest[i+1][j] >= longest[i][j+1]:
			out = append(out, pair{i, -1})
			i++
		default:
			out = append(out, pair{-1, j})
			j++
		}
	}
	return out
}

func compareRejected(k *mappingCase, o *Outcome, add func(Difference)) {
	var want []caseRejection
	if k.Rejected != nil {
		want = *k.Rejected
	}
	for i := range max(len(want), len(o.rejected)) {
		switch {
		case i >= len(o.rejected):
			add(Difference{What: fmt.Sprintf("no row was rejected with %s", want[i].Error)})
		case i >= len(want):
			r := o.rejected[i]
			add(Difference{What: fmt.Sprintf("row %d was rejected: %s: %s", r.row+1, r.code, r.text)})
		default:
			r, what := o.rejected[i], fmt.Sprintf("rejection %d, of row %d", i+1, o.rejected[i].row+1)
			if want[i].Error != r.code {
				add(Difference{What: what, Field: "error", Want: &want[i].Error, Got: &r.code})
			}
			if !strings.Contains(r.text, want[i].Contains) {
				add(Difference{What: what, Field: "contains", Want: &want[i].Contains, Got: &r.text})
			}
		}
	}
}
