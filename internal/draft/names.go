// Names: what is compared when a table or column is compared with what it may
// be called.

package draft

import (
	"strings"
	"unicode"
)

// words takes a name apart, in lower case: timeEntry, TIME_ENTRY and
// "Time Entry" are the same.
func words(name string) []string {
	var out []string
	var word []rune
	end := func() {
		if len(word) > 0 {
			out, word = append(out, string(word)), nil
		}
	}
	lower := false
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			end()
			lower = false
			continue
		case unicode.IsUpper(r) && lower:
			end()
		}
		lower = unicode.IsLower(r) || unicode.IsDigit(r)
		word = append(word, unicode.ToLower(r))
	}
	end()
	return out
}

// singular is the name of a table in lower case with underscores, its last word
// made singular.
func singular(name string) string {
	w := words(name)
	if len(w) == 0 {
		return ""
	}
	last := &w[len(w)-1]
	switch s := *last; {
	case s == "people":
		*last = "person"
	case strings.HasSuffix(s, "ies") && len(s) > 4:
		*last = s[:len(s)-3] + "y"
	case strings.HasSuffix(s, "sses"), strings.HasSuffix(s, "xes"):
		*last = s[:len(s)-2]
	case strings.HasSuffix(s, "s") && !strings.HasSuffix(s, "ss") && !strings.HasSuffix(s, "us") && len(s) > 2:
		*last = s[:len(s)-1]
	}
	return strings.Join(w, "_")
}
