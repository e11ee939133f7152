// A slot of test_decoding as a witness: what the server itself says it
// committed, in the order of the commits.

package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Witness takes what a slot of test_decoding has, records it, and says how many
// changes that were. Take it again and again; what was taken does not come
// again.
func (h *History) Witness(ctx context.Context, pool *pgxpool.Pool, slot string) (int, error) {
	rows, err := pool.Query(ctx, `select data from pg_logical_slot_get_changes($1, null, null, 'include-xids', 'off')`, slot)
	if err != nil {
		return 0, fmt.Errorf("reading slot %q: %w", slot, err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, fmt.Errorf("reading slot %q: %w", slot, err)
	}
	var all []Change
	for _, line := range lines {
		cs, err := ParseTestDecoding(line)
		if err != nil {
			return 0, err
		}
		all = append(all, cs...)
	}
	h.Commit(all...)
	return len(all), nil
}

// BaseOf reads what the tables of the history hold now, as what was there
// before it begins: nobody may be writing to them.
func (h *History) BaseOf(ctx context.Context, pool *pgxpool.Pool) error {
	for _, name := range h.Tables() {
		rows, err := ReadTable(ctx, pool, "select * from "+name)
		if err != nil {
			return err
		}
		h.Base(name, rows)
	}
	return nil
}

// Queryer is a connection, a pool or a transaction of pgx.
type Queryer interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ReadTable gives the rows of a query as texts.
func ReadTable(ctx context.Context, q Queryer, sql string, args ...any) ([]Row, error) {
	// The simple protocol gives texts, as Postgres prints them.
	rows, err := q.Query(ctx, sql, append([]any{pgx.QueryExecModeSimpleProtocol}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", sql, err)
	}
	defer rows.Close()
	var out []Row
	for rows.Next() {
		r := Row{}
		for i, v := range rows.RawValues() {
			name := rows.FieldDescriptions()[i].Name
			if r[name] = Null; v != nil {
				r[name] = string(v)
			}
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", sql, err)
	}
	return out, nil
}

// unchangedToast is what the plugin prints for an out-of-line value that the
// change did not touch; a text of these words would stand in quotes.
const unchangedToast = "unchanged-toast-datum"

var errTestDecoding = errors.New("this is no line of test_decoding")

// ParseTestDecoding reads one line of the plugin test_decoding: a change of a
// row, a truncate of one or several tables; nothing for BEGIN and COMMIT.
//
// The form, from the plugin's source:
//
//	table public.t: UPDATE: old-key: id[bigint]:1 new-tuple: id[bigint]:1 note[text]:'it''s'
//	table public.a, public.b: TRUNCATE: restart_seqs cascade
//
// And what no plugin can tell, in the words of who did it (Said).
func ParseTestDecoding(line string) ([]Change, error) {
	if _, said, is := strings.Cut(line, " prefix: "+saidPrefix+", sz: "); is && strings.HasPrefix(line, "message: transactional: 1 ") {
		_, content, _ := strings.Cut(said, " content:")
		return parseSaid(content)
	}
	rest, found := strings.CutPrefix(line, "table ")
	if !found {
		return nil, nil
	}
	table, rest, found := strings.Cut(rest, ": ")
	if !found {
		return nil, fmt.Errorf("%w: no table in %q", errTestDecoding, line)
	}
	op, rest, found := strings.Cut(rest, ":")
	if !found {
		return nil, fmt.Errorf("%w: no operation in %q", errTestDecoding, line)
	}
	rest = strings.TrimPrefix(rest, " ")
	c := Change{Table: table}
	var err error
	switch op {
	case "INSERT":
		c.Op = 'c'
		c.New, rest, err = parseTuple(rest)
	case "UPDATE":
		c.Op = 'u'
		if r, has := strings.CutPrefix(rest, "old-key: "); has {
			if c.Old, rest, err = parseTuple(r); err != nil {
				return nil, err
			}
			rest = strings.TrimPrefix(rest, "new-tuple: ")
		}
		c.New, rest, err = parseTuple(rest)
	case "DELETE":
		c.Op = 'd'
		c.Old, rest, err = parseTuple(rest)
	case "TRUNCATE":
		var cs []Change
		for _, name := range strings.Split(table, ", ") {
			cs = append(cs, Change{Table: name, Op: 't'})
		}
		return cs, nil
	default:
		return nil, fmt.Errorf("%w: operation %q", errTestDecoding, op)
	}
	if err == nil && strings.TrimSpace(rest) != "" {
		err = fmt.Errorf("%w: %q is left of %q", errTestDecoding, rest, line)
	}
	if err != nil {
		return nil, err
	}
	return []Change{c}, nil
}

// saidPrefix is that of messages in the log that are for the history.
const saidPrefix = "history"

// Said is what a transaction does to a table without a change that says so. Its text
// as JSON is for pg_logical_emit_message(true, 'history', …) in that transaction, which
// has the table locked: so it stands in the log where it took place.
type Said struct {
	Table  string            `json:"table"`
	Gone   []Row             `json:"gone,omitempty"`   // keys
	Filled map[string]string `json:"filled,omitempty"` // every row has these values too
}

func parseSaid(content string) ([]Change, error) {
	var s Said
	if err := json.Unmarshal([]byte(content), &s); err != nil {
		return nil, fmt.Errorf("%w: a message of the history: %w", errTestDecoding, err)
	}
	var out []Change
	for _, k := range s.Gone {
		out = append(out, Change{Table: s.Table, Op: Unsaid, Old: k})
	}
	if len(s.Filled) > 0 {
		out = append(out, Change{Table: s.Table, Op: Filled, New: s.Filled})
	}
	return out, nil
}

// parseTuple reads "name[type]:value …" up to the end or "new-tuple: ". A value
// that was not resent is left out.
func parseTuple(s string) (Row, string, error) {
	row := Row{}
	if s == "(no-tuple-data)" { // a table without identity
		return row, "", nil
	}
	for s != "" && !strings.HasPrefix(s, "new-tuple: ") {
		// An array type's own brackets end in "[]": the type ends at the last ']' before ':'.
		at := strings.Index(s, "]:")
		open := strings.IndexByte(s, '[')
		if at < 0 || open < 0 || open > at {
			return nil, s, fmt.Errorf("%w: no column at %q", errTestDecoding, s)
		}
		name := strings.Trim(s[:open], `"`)
		s = s[at+2:]
		if strings.HasPrefix(s, "'") {
			text, rest, ok := quoted(s[1:])
			if !ok {
				return nil, s, fmt.Errorf("%w: open quote in column %s", errTestDecoding, name)
			}
			row[name] = text
			s = strings.TrimPrefix(rest, " ")
			continue
		}
		value, rest, _ := strings.Cut(s, " ")
		s = rest
		switch value {
		case unchangedToast:
		case "null":
			row[name] = Null
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

// quoted reads up to the quote that is not doubled.
func quoted(s string) (text, rest string, ok bool) {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\'')
		if i < 0 {
			return "", "", false
		}
		b.WriteString(s[:i])
		if s = s[i+1:]; !strings.HasPrefix(s, "'") {
			return b.String(), s, true
		}
		b.WriteByte('\'')
		s = s[1:]
	}
}
