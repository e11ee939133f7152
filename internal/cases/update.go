// Update: what came out written into a file of cases. Lines are replaced where they
// stand, so that comments and the form of the rest stay.

package cases

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/rules"
)

// edit replaces octets of one line (to > from), or lines from line to end-1.
type edit struct {
	line, end int // lines, from 1; end 0: a piece of one line
	from, to  int
	text      []string
}

// Written is what an update changed.
type Written struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Case string `json:"case"`
	What string `json:"what"`
}

// Update writes the outcome of the cases that differ into the file, and says
// what it wrote. What it writes is read again first: a file that would not be as
// expected is left alone.
func (c *File) Update(ctx context.Context, r *rules.Book, outs []Outcome, ds []Difference) ([]Written, error) {
	var edits []edit
	var said []Written
	done := map[int]bool{}
	for _, d := range ds {
		if done[d.Number] {
			continue
		}
		done[d.Number] = true
		es, what := c.edits(d.Number, &outs[d.Number])
		if es == nil {
			return nil, errCase.New("the case %q is written within braces; it cannot be updated there", d.Case).
				At("%s", c.doc.At(fmt.Sprintf("cases[%d]", d.Number))).WithRemedy("Write it with each key on a line of its own: - name: …, below it rows: and records:.")
		}
		edits = append(edits, es...)
		said = append(said, Written{c.file, d.Line, d.Case, what})
	}
	text := []byte(applyEdits(string(c.text), edits))
	again, err := read(c.file, text, r)
	if err != nil {
		return nil, fmt.Errorf("BUG: what --update would write cannot be read: %w", err)
	}
	outs, err = again.Run(ctx, c.open)
	if err != nil {
		return nil, err
	}
	if left := again.Compare(outs); len(left) > 0 {
		return nil, fmt.Errorf("BUG: what --update would write to %s is not what came out: %s, %s", c.file, left[0].What, left[0].Field)
	}
	if err := config.Replace(c.file, text); err != nil {
		return nil, fmt.Errorf("writing %s: %w", c.file, err)
	}
	return said, nil
}

// edits are those of one case, and what they are about in words; nil: it is not
// written as a block.
func (c *File) edits(i int, o *Outcome) (es []edit, what string) {
	k, path := &c.form.Cases[i], fmt.Sprintf("cases[%d]", i)
	keys, ok := c.doc.Keys(path)
	if !ok {
		return nil, ""
	}
	var about []string
	var want []caseRecord
	if k.Records != nil {
		want = *k.Records
	}
	differs := false
	c.compareRecords(k, o, func(Difference) { differs = true })
	if differs || k.Records == nil && (k.Rejected == nil || len(o.records) > 0) {
		small, values, ok := c.single(path, want, o)
		if !ok {
			small, values = c.list(keys, "records", c.recordLines(keys[0].Column, want, o)), counted(len(o.records), "record")
		}
		es, about = append(es, small...), append(about, values)
	}
	differs = false
	compareRejected(k, o, func(Difference) { differs = true })
	if differs {
		lines := []string{strings.Repeat(" ", keys[0].Column-1) + "rejected:"}
		for j, r := range o.rejected {
			if k.Rejected != nil && j < len(*k.Rejected) && strings.Contains(r.text, (*k.Rejected)[j].Contains) {
				r.text = (*k.Rejected)[j].Contains // the piece that was chosen, where it still is there
			}
			lines = append(lines, strings.Repeat(" ", keys[0].Column+1)+fmt.Sprintf("- {error: %s, contains: %s}", r.code, quoted(r.text)))
		}
		if len(o.rejected) == 0 {
			lines[0] += " []"
		}
		es, about = append(es, c.list(keys, "rejected", lines)...), append(about, counted(len(o.rejected), "rejection"))
	}
	return es, strings.Join(about, ", ")
}

// single replaces single values, where the records are those that are expected;
// ok is false where they are not, or a value cannot be replaced where it stands.
func (c *File) single(path string, want []caseRecord, o *Outcome) (es []edit, what string, ok bool) {
	if len(want) != len(o.records) || len(want) == 0 {
		return nil, "", false
	}
	var names []string
	for j := range want {
		for _, d := range c.differing(&want[j], &o.records[j]) {
			at := fmt.Sprintf("%s.records[%d].%s", path, j, d.Field)
			switch d.Field {
			case "topic":
				return nil, "", false
			case "key", "op":
			default:
				at = fmt.Sprintf("%s.records[%d].fields.%s", path, j, d.Field)
			}
			line, from, to, ok := c.doc.Span(at)
			if f := o.records[j].field(d.Field); !ok || f != nil && !f.known {
				return nil, "", false
			}
			value := "null"
			if d.Got != nil {
				value = quoted(*d.Got)
			}
			es = append(es, edit{line: line, from: from, to: to, text: []string{value}})
			names = append(names, d.Field)
		}
	}
	slices.Sort(names)
	return es, strings.Join(slices.Compact(names), ", "), true
}

// list replaces what stands at a key of a case, or puts it after its last key.
// Comments that have lines of their own in what is replaced come first in it.
func (c *File) list(keys []config.Key, name string, lines []string) []edit {
	text := strings.Split(string(c.text), "\n")
	for _, k := range keys {
		if k.Name != name {
			continue
		}
		end := endOf(text, k.Line, k.Column)
		lines = slices.Clone(lines)
		head := text[k.Line-1][:indexOfColumn(text[k.Line-1], k.Column)]
		lines[0] = head + strings.TrimLeft(lines[0], " ")
		var comments []string
		for _, l := range text[k.Line : end-1] {
			if strings.HasPrefix(strings.TrimSpace(l), "#") {
				comments = append(comments, l)
			}
		}
		return []edit{{line: k.Line, end: end, text: slices.Concat(lines[:1], comments, lines[1:])}}
	}
	last := keys[len(keys)-1]
	end := endOf(text, last.Line, last.Column)
	return []edit{{line: end, end: end, text: lines}}
}

func indexOfColumn(line string, column int) int {
	return len(string([]rune(line)[:column-1]))
}

// endOf is the line after what belongs to the key at a line and column, blank
// lines and comments after it left out.
func endOf(text []string, line, column int) int {
	end := line + 1
	for at := line; at < len(text); at++ { // text[at] is line at+1
		trimmed := strings.TrimLeft(text[at], " ")
		indent := len(text[at]) - len(trimmed)
		if trimmed = strings.TrimSpace(trimmed); trimmed == "" || trimmed[0] == '#' {
			continue
		}
		item := indent == column-1 && (trimmed == "-" || strings.HasPrefix(trimmed, "- "))
		if indent < column && !item {
			break
		}
		end = at + 2
	}
	return end
}

// recordLines write the records of an outcome: those that were expected with the
// fields that they name, others with all.
func (c *File) recordLines(column int, want []caseRecord, o *Outcome) []string {
	at := strings.Repeat(" ", column-1)
	if len(o.records) == 0 {
		return []string{at + "records: []"}
	}
	lines := []string{at + "records:"}
	for _, p := range pairs(want, o.records) {
		if p.got < 0 {
			continue
		}
		g := &o.records[p.got]
		lines = append(lines, at+"  - topic: "+g.topic, at+"    key: "+quoted(g.key))
		if g.op != "upsert" {
			lines = append(lines, at+"    op: "+g.op)
			continue
		}
		fields := names(c.all[g.topic].Table)
		if p.want >= 0 && want[p.want].Topic == g.topic {
			fields = fieldsNamed(&want[p.want], g)
		}
		if len(fields) > 0 {
			lines = append(lines, at+"    fields:")
		}
		for _, name := range fields {
			value := "null"
			if f := g.field(name); f.text != nil {
				value = quoted(*f.text)
				if f.col.Kind == change.Bool {
					value = *f.text
				}
			}
			lines = append(lines, at+"      "+name+": "+value)
		}
	}
	return lines
}

// fieldsNamed are the fields that a record of a case names, in the contract's order.
func fieldsNamed(w *caseRecord, g *outRecord) (out []string) {
	for i := range g.fields {
		if _, named := w.Fields[g.fields[i].col.Name]; named {
			out = append(out, g.fields[i].col.Name)
		}
	}
	return slices.Clip(out)
}

// counted is "1 record" or "2 records".
func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// applyEdits works from the end, so that lines keep their numbers.
func applyEdits(text string, es []edit) string {
	slices.SortStableFunc(es, func(a, b edit) int {
		if a.line != b.line {
			return b.line - a.line
		}
		return b.from - a.from
	})
	lines := strings.Split(text, "\n")
	for _, e := range es {
		if e.end == 0 {
			l := lines[e.line-1]
			lines[e.line-1] = l[:e.from] + e.text[0] + l[e.to:]
			continue
		}
		lines = slices.Concat(lines[:e.line-1], e.text, lines[e.end-1:])
	}
	return strings.Join(lines, "\n")
}

// plainScalar: what YAML reads back as the same text, within braces too.
var plainScalar = regexp.MustCompile(`^(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|[0-9]{4}-[0-9]{2}-[0-9]{2}|[A-Za-z][A-Za-z0-9_./-]*)$`)

// quoted is a text as a YAML scalar.
func quoted(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
	default:
		if plainScalar.MatchString(s) {
			return s
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic("BUG: a text has no JSON: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}
