// Queries: $filter (eq, joined by and), $top and $skiptoken.

package erp

import (
	"net/url"
	"strconv"
	"strings"
)

type condition struct{ field, value string }

// parseFilter reads "a eq 'x' and b eq 5"; ” in a quoted value is one quote.
func (s *set) parseFilter(q string, custom bool) ([]condition, *apiError) {
	var out []condition
	rest := strings.TrimSpace(q)
	for {
		name, after, ok := strings.Cut(rest, " ")
		after, isEq := strings.CutPrefix(strings.TrimLeft(after, " "), "eq ")
		if !ok || !isEq {
			return nil, bad("BadRequest", "Syntax error in $filter at '%s': this server knows eq and and.", rest)
		}
		f := s.field(name, custom)
		if f == nil && name != "id" {
			return nil, bad("BadRequest", "Could not find a property named '%s' on type 'Microsoft.NAV.%s'.", name, s.entity)
		}
		after = strings.TrimLeft(after, " ")
		var value string
		if strings.HasPrefix(after, "'") {
			i := 1
			for ; i < len(after); i++ {
				if after[i] != '\'' {
					continue
				}
				if i+1 < len(after) && after[i+1] == '\'' {
					i++
					continue
				}
				break
			}
			if i == len(after) {
				return nil, bad("BadRequest", "There is an unterminated string literal in $filter.")
			}
			value, rest = strings.ReplaceAll(after[1:i], "''", "'"), after[i+1:]
		} else {
			value, rest, _ = strings.Cut(after, " ")
			rest = " " + rest
		}
		if f != nil {
			switch f.kind {
			case code:
				value = strings.ToUpper(value)
			case guid:
				value = strings.ToLower(value)
			case decimal:
				d, ok := canonicalDecimal(value)
				if !ok {
					return nil, bad("BadRequest", "'%s' is not a number.", value)
				}
				value = d
			}
		}
		out = append(out, condition{name, value})
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return out, nil
		}
		if rest, ok = strings.CutPrefix(rest, "and "); !ok {
			return nil, bad("BadRequest", "Syntax error in $filter at '%s': this server knows eq and and.", rest)
		}
		rest = strings.TrimSpace(rest)
	}
}

func (r *Record) matches(cs []condition) bool {
	for _, c := range cs {
		if c.field == "id" {
			if r.ID != c.value {
				return false
			}
			continue
		}
		if r.Fields[c.field] != c.value {
			return false
		}
	}
	return true
}

// list answers a query over a set; the ledger's lock is held. next is the
// $skiptoken of the next page, 0 when this is the last.
func (s *set) list(x *index, q url.Values, custom bool, page int) (rs []*Record, next int64, err *apiError) {
	var cs []condition
	if f := q.Get("$filter"); f != "" {
		if cs, err = s.parseFilter(f, custom); err != nil {
			return nil, 0, err
		}
	}
	top := -1
	if t := q.Get("$top"); t != "" {
		n, e := strconv.Atoi(t)
		if e != nil || n < 0 {
			return nil, 0, bad("BadRequest", "Invalid value '%s' for $top.", t)
		}
		top = n
	}
	var after int64
	if t := q.Get("$skiptoken"); t != "" {
		n, e := strconv.ParseInt(t, 10, 64)
		if e != nil {
			return nil, 0, bad("BadRequest", "Invalid $skiptoken.")
		}
		after = n
	}
	from := x.bySet[s.name]
	for _, c := range cs {
		for _, f := range indexed[s.name] {
			if c.field == f {
				from = x.find(s.name, f, c.value)
			}
		}
	}
	for _, r := range from {
		if r.Seq <= after || !r.matches(cs) {
			continue
		}
		if top >= 0 && len(rs) == top {
			return rs, 0, nil
		}
		if len(rs) == page {
			return rs, rs[page-1].Seq, nil
		}
		rs = append(rs, r)
	}
	return rs, 0, nil
}
