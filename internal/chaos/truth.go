// Package chaos holds the crash tests: the real binary on real Postgres,
// Kafka and Redis, killed and cut off while a firm works, and a checker that
// compares every row and every version with an independent truth, a second
// slot that is decoded by the server's own test_decoding.
package chaos

import (
	"fmt"
	"strings"
)

// Version is one change of one row: what the truth says it was, or what a
// topic holds of it. Columns are texts as Postgres prints them; a null is absent.
type Version struct {
	Table string // "public.time_entry"
	Op    byte   // 'c', 'u', 'd'
	Old   map[string]string
	New   map[string]string
}

// ParseTestDecoding reads one row of pg_logical_slot_get_changes with the
// plugin test_decoding; ok is false for BEGIN and COMMIT.
//
// The form, from the plugin's source:
//
//	table public.t: UPDATE: old-key: id[bigint]:1 new-tuple: id[bigint]:1 note[text]:'it''s'
func ParseTestDecoding(line string) (v Version, ok bool, err error) {
	rest, found := strings.CutPrefix(line, "table ")
	if !found {
		return v, false, nil
	}
	table, rest, found := strings.Cut(rest, ": ")
	if !found {
		return v, false, fmt.Errorf("reading test_decoding: no table in %q", line)
	}
	v.Table = table
	op, rest, found := strings.Cut(rest, ":")
	if !found {
		return v, false, fmt.Errorf("reading test_decoding: no operation in %q", line)
	}
	rest = strings.TrimPrefix(rest, " ")
	switch op {
	case "INSERT":
		v.Op = 'c'
		v.New, rest, err = parseTuple(rest)
	case "UPDATE":
		v.Op = 'u'
		if r, has := strings.CutPrefix(rest, "old-key: "); has {
			if v.Old, rest, err = parseTuple(r); err != nil {
				return v, false, err
			}
			rest = strings.TrimPrefix(rest, "new-tuple: ")
		}
		v.New, rest, err = parseTuple(rest)
		// An out-of-line value that did not change stands in the old row only.
		for name, text := range v.New {
			if text == unchangedToast {
				if old, has := v.Old[name]; has {
					v.New[name] = old
				} else {
					delete(v.New, name)
				}
			}
		}
	case "DELETE":
		v.Op = 'd'
		v.Old, rest, err = parseTuple(rest)
	default:
		return v, false, fmt.Errorf("reading test_decoding: operation %q", op)
	}
	if err == nil && strings.TrimSpace(rest) != "" {
		err = fmt.Errorf("reading test_decoding: %q is left of %q", rest, line)
	}
	return v, err == nil, err
}

// unchangedToast is what the plugin prints for an out-of-line value that the
// change did not touch; a text of these words would stand in quotes.
const unchangedToast = "unchanged-toast-datum"

// parseTuple reads "name[type]:value …" up to the end or "new-tuple: ".
func parseTuple(s string) (map[string]string, string, error) {
	row := map[string]string{}
	for s != "" && !strings.HasPrefix(s, "new-tuple: ") {
		at := strings.Index(s, "]:")
		open := strings.IndexByte(s, '[')
		if at < 0 || open < 0 || open > at {
			return nil, s, fmt.Errorf("reading test_decoding: no column at %q", s)
		}
		// An array type's own brackets end in "[]": the type ends at the last ']' before ':'.
		name := strings.Trim(s[:open], `"`)
		s = s[at+2:]
		if strings.HasPrefix(s, "'") {
			var b strings.Builder
			i := 1
			for {
				if i >= len(s) {
					return nil, s, fmt.Errorf("reading test_decoding: open quote in column %s", name)
				}
				if s[i] == '\'' {
					if i+1 < len(s) && s[i+1] == '\'' {
						b.WriteByte('\'')
						i += 2
						continue
					}
					break
				}
				b.WriteByte(s[i])
				i++
			}
			row[name] = b.String()
			s = strings.TrimPrefix(s[i+1:], " ")
			continue
		}
		value, rest, _ := strings.Cut(s, " ")
		s = rest
		switch value {
		case "null":
		case "true":
			row[name] = "t"
		case "false":
			row[name] = "f"
		default:
			row[name] = value
		}
	}
	return row, s, nil
}
