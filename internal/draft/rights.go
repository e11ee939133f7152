// Rights: what the login may not read, and what it needs so that more can be
// drafted.

package draft

import (
	"fmt"
	"slices"
	"strings"
)

// Grants are the statements without which the login may not read some of the
// tables, each once.
func Grants(tables []*Table) []string {
	var out []string
	for _, t := range tables {
		for _, g := range t.Grants {
			if !slices.Contains(out, g) {
				out = append(out, g)
			}
		}
	}
	return out
}

// Refused is how many of the tables may not be read.
func Refused(tables []*Table) int {
	n := 0
	for _, t := range tables {
		if len(t.Grants) > 0 {
			n++
		}
	}
	return n
}

// Grants are those for the tables that look like contracts; where there is neither
// a rule nor such a table, those for all.
func (d *Draft) Grants() []string {
	var like []*Table
	for _, m := range d.Missing {
		if m.Like != nil {
			like = append(like, m.Like)
		}
	}
	out := Grants(like)
	if len(out) == 0 && len(d.Rules) == 0 {
		out = Grants(d.Tables)
	}
	return out
}

// Nothing says why no rule was drafted, and what to do; "": some were.
func (d *Draft) Nothing() (why, remedy string) {
	const again = ", then draft again with --force."
	refused, likes := Refused(d.Tables), slices.ContainsFunc(d.Missing, func(m Missing) bool { return m.Like != nil })
	switch {
	case len(d.Rules) > 0:
		return "", ""
	case refused > 0:
		return fmt.Sprintf("the login may not read %d of the %d tables, and of the others no rule can be made", refused, len(d.Tables)), strings.Join(d.Grants(), "; ") + again
	case likes:
		return "the tables that look like what the contracts hold are left out", "Do what is said of them" + again
	}
	return "no table looks like what the built-in contracts hold", "tallywire contracts list shows those; docs/model.md says how to write a rule, and a contract of your own."
}
