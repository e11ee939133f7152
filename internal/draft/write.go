// Write: the draft as YAML, with what was guessed and why as comments.

package draft

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// plainText is a text that YAML and a rule take for a name.
var plainText = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// reserved are words that YAML, of one version or another, takes for something else.
var reserved = []string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}

// quote is a text as YAML.
func quote(s string) string {
	switch {
	case plainText.MatchString(s) && !slices.Contains(reserved, strings.ToLower(s)):
		return s
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }):
		return strconv.Quote(s)
	case strings.ContainsAny(s, `"\`):
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	return `"` + s + `"`
}

// comment is a text of one line.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// wide is how long a line of comments gets, and beyond which column no comment
// is moved to stand below the others.
const wide, aligned = 96, 64

// wrap breaks a text into lines of at most so many characters, between words.
func wrap(s string, width int) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(comment(s)) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			out, line = append(out, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(out, line)
}

// rows says how many there are, about.
func rows(n int64) string {
	switch {
	case n < 0:
		return "rows not counted"
	case n == 0:
		return "no rows"
	}
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if n == 1 {
		return "about 1 row"
	}
	return "about " + s + " rows"
}

// keyOf names a table's key.
func keyOf(t *Table) string {
	var names []string
	for _, k := range t.Key {
		names = append(names, t.Columns[k].Name)
	}
	if len(names) == 0 {
		return "no key"
	}
	return "key " + strings.Join(names, ", ")
}

// YAML is the configuration; dsn is the reference under which the DSN is found.
func (d *Draft) YAML(dsn string) []byte {
	w := &writer{}
	w.line("# Written by tallywire init from database %q (%s).", comment(d.Name), d.Server)
	w.line("# It is a draft: what is said here is guessed from names, types and foreign keys.")
	w.line("# What could not be guessed stands as \"\"; tallywire check names each, with its line.")
	w.line("# Every key is explained in docs/config.md, expressions in docs/model.md. Kafka,")
	w.line("# registry, Redis and the control database are embedded until they are named.")
	w.line("")
	w.source(d, dsn)
	w.line("")
	w.transforms(d)
	w.line("")
	w.line("# Where it goes. Tables in schema ps of a Postgres of yours:")
	w.line("# sinks:")
	w.line("#   warehouse: {type: warehouse, dsn: env:WAREHOUSE_DSN}")
	return w.Bytes()
}

type writer struct{ bytes.Buffer }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

// comments writes a text as lines of comments, each after the same beginning.
func (w *writer) comments(begin, text string) {
	for _, l := range wrap(text, wide-len(begin)) {
		w.line("%s%s", begin, l)
	}
}

// columns writes lines whose comments stand below each other.
func (w *writer) columns(indent string, lines [][2]string) {
	width := 0
	for _, l := range lines {
		if n := utf8.RuneCountInString(l[0]); l[1] != "" && n <= aligned {
			width = max(width, n)
		}
	}
	for _, l := range lines {
		if l[1] == "" {
			w.line("%s%s", indent, l[0])
			continue
		}
		w.line("%s%s%s # %s", indent, l[0], strings.Repeat(" ", max(0, width-utf8.RuneCountInString(l[0]))), comment(l[1]))
	}
}

func (w *writer) source(d *Draft, dsn string) {
	w.line("sources:")
	w.line("  %s: # topics are %s.<schema>.<table>", quote(d.Source), d.Source)
	for _, p := range d.Problems {
		w.comments("    # ", fmt.Sprintf("To do: %s. %s", strings.TrimSuffix(p.Text, "."), p.WhatToDo()))
	}
	w.line("    type: postgres")
	w.line("    dsn: %s", dsn)
	var taken, secrets [][2]string
	var costs []string
	var left []*Table
	for _, t := range d.Tables {
		if !t.Taken() {
			left = append(left, t)
			continue
		}
		taken = append(taken, [2]string{"- " + quote(t.Full()), about(t)})
		for _, name := range t.Secrets {
			secrets = append(secrets, [2]string{"- " + quote(t.Full()+"."+name), ""})
		}
		for _, name := range d.Costs(t) {
			costs = append(costs, t.Full()+"."+name)
		}
	}
	if len(taken) == 0 { // nothing would mean all
		w.line("    tables: []")
	} else {
		w.line("    tables:")
	}
	w.columns("      ", taken)
	if len(left)+len(d.Others) > 0 {
		w.line("      # Left out:")
		for _, t := range left {
			w.line("      # - %s # %s", comment(quote(t.Full())), about(t))
			why := t.Bound + ". To take it in all the same, write it without the #."
			switch {
			case t.Left != nil:
				why = t.Left.Text + ". " + t.Left.WhatToDo()
			case len(t.Secrets) > 0:
				why = "it has " + list(t.Secrets) + "; " + why
			}
			w.comments("      #     ", why)
		}
		for _, o := range d.Others {
			w.line("      # - %s # %s", comment(quote(o.Name)), o.Why)
			w.comments("      #     ", o.Remedy)
		}
	}
	if len(secrets) > 0 {
		w.line("    # These look like secrets, and do not leave the database:")
		w.line("    without:")
		w.columns("      ", secrets)
	}
	if len(costs) > 0 {
		w.line("    # These look like costs or salaries, and go out: who may read the topic of such a")
		w.line("    # table reads them. See \"Who may read what\" in docs/model.md.")
		for _, name := range costs {
			w.line("    # - %s", comment(quote(name)))
		}
	}
}

// about is what a reader wants to know of a table.
func about(t *Table) string {
	s := rows(t.Rows) + ", " + keyOf(t)
	if t.Partitioned {
		s += ", partitioned"
	}
	if len(t.Without) > 0 {
		s += "; the publication leaves out " + list(t.Without)
	}
	return comment(s)
}

func (w *writer) transforms(d *Draft) {
	if why, remedy := d.Nothing(); why != "" {
		w.comments("# ", "No rule was drafted: "+why+".")
		if grants := d.Grants(); len(grants) > 0 {
			w.line("# To do, and then draft again with --force:")
			for _, g := range grants {
				w.line("#   %s;", comment(g))
			}
		} else {
			w.comments("# ", "To do: "+remedy)
		}
		w.missing(d, "# ")
		return
	}
	w.line("transforms:")
	w.line("  canonical: # raw rows become records of the contracts: tallywire contracts show TOPIC")
	w.line("    type: map")
	w.line("    topics:")
	for i, r := range d.Rules {
		if i > 0 {
			w.line("")
		}
		w.rule(r)
	}
	unused := d.Unused()
	if len(d.Missing)+len(unused) > 0 {
		w.line("")
	}
	w.missing(d, "      # ")
	if len(unused) > 0 {
		w.comments("      # ", "Captured, and in no rule: "+strings.Join(unused, ", ")+".")
	}
	if d.rule("ps.time_entry") != nil && d.rule("ps.cost_rate") != nil {
		w.line("  # Time entries with project, customer and the cost rate in force on the work date:")
		w.line("  # costed:")
		for line := range strings.Lines(costed) {
			w.line("  # %s", strings.TrimRight(line, "\n"))
		}
	}
}

// missing says of each contract without a rule what comes nearest.
func (w *writer) missing(d *Draft, begin string) {
	for _, m := range d.Missing {
		switch {
		case m.Like != nil:
			w.comments(begin, fmt.Sprintf("%s: %s looks like it, and is left out above.", m.Topic, m.Like.Full()))
		case m.Near != nil:
			w.comments(begin, fmt.Sprintf("%s: no table looks like it; %s comes nearest, but %s.", m.Topic, m.Near.Full(), m.Why))
		default:
			w.comments(begin, m.Topic+": no table looks like it.")
		}
	}
}

func (w *writer) rule(r *Rule) {
	w.line("      # %s: %s", r.Contract.Topic, r.Contract.Doc)
	w.comments("      # ", "Guessed from "+strings.Join(r.why, "; ")+".")
	if r.Needs != "" {
		w.comments("      # ", "To do: its key holds a column beyond the table's, which a delete does not come with: "+r.Needs)
	}
	w.line("      - from: %s", quote(r.Table.Topic))
	w.line("        to: %s", r.Contract.Topic)
	if r.Where != "" {
		w.line("        # where: %s # if rows are marked as deleted", quote(r.Where))
	}
	if r.Some != "" {
		w.line("        # where: %s # if %s tells people from others", quote(r.Some), comment(r.mixed))
	}
	w.line("        fields:")
	var lines [][2]string
	for _, f := range r.Fields {
		text, note := quote(f.Text), f.Note
		switch {
		case f.Null:
			text = "null"
		case f.Blank():
			text, note = `""`, "to do: "+note
		}
		lines = append(lines, [2]string{f.Name + ": " + text, note})
	}
	w.columns("          ", lines)
	if len(r.Empty) > 0 {
		w.comments("          # ", "Null, since no column looks like it: "+strings.Join(r.Empty, ", ")+".")
	}
}

// costed is a transform that costs time entries by the contracts alone.
const costed = `  type: map
  topics:
    - from: ps.time_entry
      to: ps.time_entry_costed
      waiting_for: waiting_for
      lookups:
        project: {topic: ps.project, on: project_id}
        customer: {topic: ps.customer, on: project.customer_id}
        cost_rate:
          topic: ps.cost_rate
          on: resource_id
          by: resource_id
          in_force: {from: valid_from, to: valid_to, at: work_date}
          agree: ref.currency == project.currency
      fields:
        project_number: project.number
        customer_id: project.customer_id
        customer_name: customer.name
        legal_entity: project.legal_entity
        currency: project.currency
        cost_rate_id: cost_rate.cost_rate_id
        rate: cost_rate.rate
        cost: row.hours * cost_rate.rate
`
