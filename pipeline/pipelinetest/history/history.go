// Package history judges what became of changes: writers record what they
// committed (writers.go), or a slot of the server's own test_decoding does
// (testdecoding.go); topics.go reads what raw topics hold of it; Check and
// CheckSink name every change that is lost, doubled, reordered, wrong or
// invented.
//
// It shares no code with what carries the changes: records are read by goavro,
// by the schemas that they name.
package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Row is a row by column, each value as Postgres prints it. A column that is
// not there is one that nothing is said of.
type Row map[string]string

// Null is the value of a column that is null. No text of Postgres holds a NUL.
const Null = "\x00"

// Change is one change of one row: one that was committed, or one that was
// read from a topic.
type Change struct {
	Table string // "public.item"
	Op    byte   // as Debezium names them: c, u, d, r (loaded), t (the table was truncated); s (swept), Unsaid, Filled
	Old   Row    // what is said of the row before; nil: nothing
	New   Row    // nil: it is gone
	At    string // where it was read, "" if it was committed
}

func (c Change) String() string {
	text := fmt.Sprintf("%c", c.Op)
	if c.At != "" {
		text += " at " + c.At
	}
	if c.Old != nil {
		text += " old " + c.Old.String()
	}
	if c.New != nil {
		text += " new " + c.New.String()
	}
	return text
}

func (r Row) String() string {
	const most = 60
	var b strings.Builder
	b.WriteByte('{')
	for i, name := range slices.Sorted(maps.Keys(r)) {
		if i > 0 {
			b.WriteByte(' ')
		}
		switch v := r[name]; {
		case v == Null:
			fmt.Fprintf(&b, "%s=null", name)
		case len(v) > most:
			fmt.Fprintf(&b, "%s=%.*q… (%d octets)", name, most, v, len(v))
		default:
			fmt.Fprintf(&b, "%s=%q", name, v)
		}
	}
	b.WriteByte('}')
	return b.String()
}

// What becomes of rows without a change that says so, in a history. Topics get to
// know of it by rows that are read anew, and by a sweep (s).
const (
	// Unsaid: the row is New, or gone: its partition was detached, say. Old has the
	// key of one that is gone.
	Unsaid byte = '~'
	// Filled: every row of the table has the values of New too: a column with a
	// default was added.
	Filled byte = '+'
)

// History is what was committed, key by key, in order. Safe for concurrent use,
// but a key must not be written by two at once: their order would not be known.
type History struct {
	mu     sync.Mutex
	tables map[string]*table
	roots  map[string]string // of each partition: the table of the history
}

type table struct {
	key       []string
	rows      map[string]*life
	truncates int
	over      bool // the load is
	loaded    int  // truncates before it was over
}

// life is that of one key. states[i] is the row after i changes, nil while
// there is none; states[0] is what was there before the history begins.
type life struct {
	changes []Change
	states  []Row
	moved   map[int]Row // changes that brought the row from another key: the row there
	loaded  int         // how many changes a load may stand for; -1: all there are
}

// New makes a history of tables, which are empty, by the columns of their keys.
func New(keys map[string][]string) *History {
	h := &History{tables: map[string]*table{}, roots: map[string]string{}}
	for name, key := range keys {
		h.tables[name] = &table{key: key, rows: map[string]*life{}}
	}
	return h
}

// Tables are the tables of the history, in order.
func (h *History) Tables() []string { return slices.Sorted(maps.Keys(h.tables)) }

// Partitions says that what is committed to partitions is committed to their table,
// also when they have left it: a row that is gone must not be written to.
func (h *History) Partitions(name string, partitions ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range partitions {
		h.roots[p] = name
	}
}

// Base tells what a table holds before the first change.
func (h *History) Base(name string, rows []Row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tables[name]
	for _, r := range rows {
		l := t.of(keyOf(t.key, r))
		l.states[0] = r
	}
}

// Commit records the changes of one committed transaction, in their order. New
// may leave out what did not change. An update that changes the key must have
// the old key in Old: it is the end of one key and the beginning of another.
// Tables that the history is not of are passed over.
func (h *History) Commit(changes ...Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range changes {
		if root := h.roots[c.Table]; root != "" {
			if c.Op == 't' {
				continue // a truncate of a partition by itself is not told by that of its table
			}
			c.Table = root
		}
		t := h.tables[c.Table]
		if t == nil {
			continue
		}
		if c.Op == Filled {
			for _, l := range t.rows {
				if was := l.now(); was != nil {
					is := maps.Clone(was)
					maps.Copy(is, c.New)
					l.add(Change{Table: c.Table, Op: Unsaid, New: is}, is)
				}
			}
			continue
		}
		if c.Op == 't' {
			t.truncates++
			for _, l := range t.rows {
				if l.now() != nil {
					l.add(c, nil)
				}
			}
			continue
		}
		was, is := c.New, c.New
		if c.Old != nil {
			was = c.Old
		}
		for _, k := range t.key { // stored out of line, and not said again
			old, known := c.Old[k]
			if _, told := is[k]; !told && is != nil && known {
				is = maps.Clone(is)
				is[k] = old
			}
		}
		if is == nil {
			is = was
		}
		oldKey, newKey := keyOf(t.key, was), keyOf(t.key, is)
		before := t.of(oldKey).now()
		var after Row
		if c.New != nil {
			after = maps.Clone(c.New)
			for name, v := range before {
				if _, told := after[name]; !told {
					after[name] = v
				}
			}
		}
		c.New = after
		switch {
		case c.New == nil && c.Op == Unsaid && before == nil: // it was not there
		case c.New == nil:
			t.of(oldKey).add(c, nil)
		case oldKey != newKey:
			t.of(oldKey).add(Change{Table: c.Table, Op: 'd', Old: c.Old}, nil)
			to := t.of(newKey)
			if to.moved == nil {
				to.moved = map[int]Row{}
			}
			to.moved[len(to.changes)] = before
			to.add(Change{Table: c.Table, Op: 'c', New: after}, after)
		default:
			t.of(newKey).add(c, after)
		}
	}
}

// Loaded says that the initial load is over: whatever is committed from now on
// must arrive as a change.
func (h *History) Loaded() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tables {
		t.over, t.loaded = true, t.truncates
		for _, l := range t.rows {
			l.loaded = len(l.changes)
		}
	}
}

// Changes is how many there are.
func (h *History) Changes() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, t := range h.tables {
		for _, l := range t.rows {
			n += len(l.changes)
		}
	}
	return n
}

// Versions are the rows that a table ever had, each as often as it came to be.
func (h *History) Versions(name string) (rows []Row) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(h.tables[name].rows)) {
		for _, r := range h.tables[name].rows[key].states {
			if r != nil {
				rows = append(rows, r)
			}
		}
	}
	return rows
}

func (t *table) of(key string) *life {
	l := t.rows[key]
	if l == nil {
		l = &life{states: []Row{nil}, loaded: -1}
		if t.over {
			l.loaded = 0
		}
		t.rows[key] = l
	}
	return l
}

func (l *life) now() Row { return l.states[len(l.states)-1] }

func (l *life) add(c Change, after Row) {
	l.changes = append(l.changes, c)
	l.states = append(l.states, after)
}

// keyOf is a key as a text: its values, joined by slashes.
func keyOf(columns []string, r Row) string {
	var b strings.Builder
	for i, c := range columns {
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(strings.ReplaceAll(r[c], "/", "//"))
	}
	return b.String()
}
