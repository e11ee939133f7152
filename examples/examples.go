// Package examples is configurations of whole firms, each in a folder of its own: of
// the demo's (demo), of Redmine's own database (redmine) and of Tryton's (tryton).
package examples

import (
	_ "embed"
	"strings"
)

//go:embed demo/tallywire.yml
var demo string

// Transforms are those of the demo's firm: the lines below that word in its
// configuration.
func Transforms() string { return below("\ntransforms:\n", "\nsinks:\n") }

// Costed is the transform that gives the firm's time its cost, of the canonical topics:
// what stands below its name there.
func Costed() string { return below("\n  costed:\n", "\nsinks:\n") }

func below(head, end string) string {
	_, rest, is := strings.Cut(demo, head)
	text, _, ends := strings.Cut(rest, end)
	if !is || !ends {
		panic("BUG: examples/demo/tallywire.yml has no" + head)
	}
	return text
}
