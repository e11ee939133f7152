// Check: what was committed against what topics hold.

package history

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kind is what is wrong with a change.
type Kind string

// Kinds of findings.
const (
	Lost      Kind = "lost"      // committed, and not there
	Doubled   Kind = "doubled"   // there more often than it was committed
	Reordered Kind = "reordered" // there, but not at its place among those of its key
	Wrong     Kind = "wrong"     // there with other values
	Invented  Kind = "invented"  // there, and never committed
)

// Finding is one change that is not as it was committed.
type Finding struct {
	Kind    Kind
	Table   string
	Key     string
	Nth     int      // which change of the key it should be, from 1; 0: none, or the row that a load should give
	Of      int      // how many the key has
	Columns []string // of Wrong: which
	Want    *Change  // nil: nothing
	Got     *Change  // nil: nothing
	Note    string
}

func (f Finding) String() string {
	var b strings.Builder
	key := f.Key
	if len(key) > 100 {
		key = key[:100] + "…"
	}
	fmt.Fprintf(&b, "%s: %s %s", f.Kind, f.Table, key)
	if f.Nth > 0 {
		fmt.Fprintf(&b, ", change %d of %d", f.Nth, f.Of)
	}
	if len(f.Columns) > 0 {
		fmt.Fprintf(&b, ", %s", strings.Join(f.Columns, ", "))
	}
	if f.Note != "" {
		fmt.Fprintf(&b, ", %s", f.Note)
	}
	if f.Want != nil {
		fmt.Fprintf(&b, ": want %s", f.Want)
	}
	if f.Got != nil {
		fmt.Fprintf(&b, ": got %s", f.Got)
	}
	return b.String()
}

// Options of Check.
type Options struct {
	// LoadResumed: a load may have been cut off, and the rest been read beside the
	// stream, or tables been read anew: then rows come several times, or not at all
	// where a change came that has all of it.
	LoadResumed bool
}

// Check names each change of the history that is not in the topics as it should
// be, and each change in them that is not of the history: all keys, in order.
// Tables that only the topics know are passed over.
func (h *History) Check(seen *Seen, o Options) []Finding {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(seen.findings)
	for _, name := range slices.Sorted(maps.Keys(h.tables)) {
		t := h.tables[name]
		got := seen.tables[name]
		if got == nil {
			got = newSeenTable()
		}
		for p, n := range got.truncates {
			if n < t.truncates-t.loaded || n > t.truncates {
				out = append(out, Finding{Kind: countKind(n, t.truncates), Table: name, Note: fmt.Sprintf("partition %d has %d truncates of %d", p, n, t.truncates)})
			}
		}
		out = append(out, got.unswept(name)...)
		keys := map[string]bool{}
		for k := range t.rows {
			keys[k] = true
		}
		for k := range got.rows {
			keys[k] = true
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			l := t.rows[k]
			if l == nil {
				l = &life{states: []Row{nil}}
			}
			j := judge{table: name, key: k, life: l, types: got.types, o: o}
			out = append(out, j.changes(got.rows[k])...)
		}
	}
	return out
}

func countKind(got, want int) Kind {
	if got > want {
		return Doubled
	}
	return Lost
}

// judge is of one key.
type judge struct {
	table, key string
	life       *life
	types      map[string]string
	o          Options
}

// changes holds what was read of the key against its life. What a load read
// stands for all changes up to some state.
func (j *judge) changes(got []Change) []Finding {
	n := 0
	for n < len(got) && got[n].Op == 'r' {
		n++
	}
	if !j.o.LoadResumed {
		return j.split(got, n)
	}
	// Rows that were read anew may follow one that the load gave: where that ends
	// cannot be seen.
	var least []Finding
	for k := n; k >= min(n, 1); k-- {
		fs := j.split(got, k)
		if k == n || len(fs) < len(least) {
			least = fs
		}
		if len(fs) == 0 {
			break
		}
	}
	return least
}

// split holds what was read of the key against its life, where the first n are of the
// load.
func (j *judge) split(got []Change, n int) []Finding {
	loads, rest := got[:n], got[n:]
	var out []Finding
	if n > 1 && !j.o.LoadResumed {
		for i := range loads[1:] {
			out = append(out, j.finding(Doubled, -1, &loads[i+1]))
		}
	}
	from := j.begins(loads)
	if j.o.LoadResumed && n == 0 && len(got) > 0 {
		from = from[:0]
		for i := range j.life.changes {
			from = append(from, i)
		}
		out = append(out, j.neverTold(got)...)
	}
	if len(from) == 0 { // the row is not one that ever was
		return append(out, j.notLoaded(loads)...)
	}
	// The longest of the beginnings that fits; when none does, the one that
	// leaves the least to say.
	var least []Finding
	for i, begin := range from {
		fs := j.align(begin, rest)
		if i == 0 || len(fs) < len(least) {
			least = fs
		}
		if len(fs) == 0 {
			return out
		}
	}
	return append(out, least...)
}

// begins are the numbers of changes that may stand before the first one that is
// in the topic.
func (j *judge) begins(loads []Change) []int {
	l := j.life
	most := l.loaded
	if most < 0 {
		most = len(l.changes)
	}
	var out []int
	for i := 0; i <= most; i++ {
		switch {
		case l.states[i] == nil && len(loads) == 0:
		case l.states[i] != nil && len(loads) > 0 && len(j.differs(l.states[i], nil, loads[len(loads)-1].New)) == 0:
		default:
			continue
		}
		out = append(out, i)
	}
	return out
}

// neverTold is for a row that no load gave: of what its changes left out, since it was
// as before, something must tell what it is.
func (j *judge) neverTold(got []Change) []Finding {
	told := Row{}
	for i := range got {
		switch got[i].Op {
		case 'd':
			clear(told)
		case 'c': // what it leaves out is told of the key that the row had before
			maps.Copy(told, j.life.now())
		default:
			maps.Copy(told, got[i].New)
		}
	}
	var missing []string
	for name := range j.life.now() {
		if _, is := told[name]; !is {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	last := len(got) - 1
	return []Finding{{Kind: Lost, Table: j.table, Key: j.key, Of: len(j.life.changes), Columns: missing, Got: &got[last], Note: "nothing tells what they are"}}
}

// notLoaded is for a key whose load gave no row that it ever had.
func (j *judge) notLoaded(loads []Change) []Finding {
	l := j.life
	if len(loads) == 0 { // it was there all the time, and did not come
		return []Finding{{Kind: Lost, Table: j.table, Key: j.key, Of: len(l.changes), Note: "the row was there before the load", Want: &Change{Table: j.table, Op: 'r', New: l.states[0]}}}
	}
	last := &loads[len(loads)-1]
	if l.states[0] == nil && len(l.changes) == 0 {
		return []Finding{j.finding(Invented, -1, last)}
	}
	f := Finding{Kind: Wrong, Table: j.table, Key: j.key, Of: len(l.changes), Got: last, Note: "no state of the row is as it was loaded"}
	for i := 0; i < len(l.states) && f.Want == nil; i++ {
		if l.states[i] != nil {
			f.Want = &Change{Table: j.table, Op: 'r', New: l.states[i]}
			f.Columns = j.differs(l.states[i], nil, last.New)
		}
	}
	return []Finding{f}
}

// finding of change i of the life (-1: none) and of what was read.
func (j *judge) finding(k Kind, i int, got *Change) Finding {
	f := Finding{Kind: k, Table: j.table, Key: j.key, Of: len(j.life.changes), Got: got}
	if i >= 0 {
		f.Nth, f.Want = i+1, &j.life.changes[i]
	}
	return f
}

// same reports whether got is change i, values and all.
func (j *judge) same(i int, got *Change) bool {
	if c := &j.life.changes[i]; c.Op == Unsaid {
		if c.New == nil { // a truncate says it as well
			return got.Op == 's' || got.Op == 't'
		}
		return got.Op == 'r' && len(j.differs(c.New, nil, got.New)) == 0
	}
	return j.life.changes[i].Op == got.Op && len(j.columns(i, got)) == 0
}

// columns are those in which got is not change i.
func (j *judge) columns(i int, got *Change) []string {
	l := j.life
	before := l.states[i]
	if from := l.moved[i]; from != nil {
		before = from
	}
	out := j.differs(l.states[i+1], before, got.New)
	if got.New == nil != (l.states[i+1] == nil) {
		out = append(out, "the row after")
	}
	for name, v := range got.Old {
		was, told := l.states[i][name]
		if told && j.normal(name, was) != j.normal(name, v) && (v != Null || len(was) <= leftOut) {
			out = append(out, name+" before")
		}
	}
	slices.Sort(out)
	return out
}

// leftOut is the length, in octets, above which a value of the row before may
// be left out of a record that would be too large.
const leftOut = 1024

// differs are the columns of got that are not as in want. Columns that got says
// nothing of must be as they were before.
func (j *judge) differs(want, before, got Row) []string {
	if got == nil {
		return nil
	}
	var out []string
	for name, w := range want {
		g, told := got[name]
		if !told {
			if b, was := before[name]; was && b == w {
				continue
			}
			g = "\x01" // not sent, though it changed
		}
		if j.normal(name, g) != j.normal(name, w) {
			out = append(out, name)
		}
	}
	for name := range got {
		if _, told := want[name]; !told && got[name] != Null {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (j *judge) normal(column, text string) string { return normal(j.types[column], text) }

// align holds what was read against the changes from begin on, and says what is
// wrong: what is in the longest common part of both is well.
func (j *judge) align(begin int, got []Change) []Finding {
	changes := j.life.changes
	// What was read again beside the stream is well when the row is like that
	// at this moment.
	i, g := begin, 0
	var owed owing
	for g < len(got) {
		if got[g].Op == 'r' && j.life.states[i] != nil && len(j.differs(j.life.states[i], nil, got[g].New)) == 0 {
			owed.tell(&got[g])
			g++
			continue
		}
		if i < len(changes) && j.same(i, &got[g]) {
			owed.tell(&got[g])
			i++
			g++
			continue
		}
		// Nothing said it when it was so: what comes later has to.
		if i < len(changes) && changes[i].Op == Unsaid {
			owed.add(j.life.states[i], changes[i].New)
			i++
			continue
		}
		break
	}
	if i == len(changes) && g == len(got) && owed.nothing() {
		return nil
	}
	if i == len(changes) && g == len(got) {
		return []Finding{{Kind: Lost, Table: j.table, Key: j.key, Of: len(changes), Columns: slices.Sorted(maps.Keys(owed.columns)), Want: &changes[i-1], Note: "nothing tells what became of the row"}}
	}
	tail := 0
	for i < len(changes)-tail && g < len(got)-tail && j.same(len(changes)-1-tail, &got[len(got)-1-tail]) {
		tail++
	}
	return j.diff(i, len(changes)-tail, got, g, len(got)-tail)
}

// owing is what became of a row without a change that said so, and that nothing in the
// topic has told yet.
type owing struct {
	gone    bool
	columns map[string]bool
}

func (o *owing) nothing() bool { return !o.gone && len(o.columns) == 0 }

// add takes what was not said.
func (o *owing) add(was, is Row) {
	if o.gone = is == nil; o.gone {
		o.columns = nil
		return
	}
	if o.columns == nil {
		o.columns = map[string]bool{}
	}
	for name, v := range is {
		if old, told := was[name]; !told || old != v {
			o.columns[name] = true
		}
	}
}

// tell takes what a record tells of the row.
func (o *owing) tell(got *Change) {
	o.gone = false
	if got.New == nil {
		o.columns = nil
	}
	for name := range got.New {
		delete(o.columns, name)
	}
}

// most is how many pairs diff compares before it gives up being exact.
const most = 4 << 20

// diff says what is wrong between changes[i:n] and got[g:m].
func (j *judge) diff(i, n int, got []Change, g, m int) []Finding {
	wantHas, gotHas := j.common(i, n, got, g, m)
	var (
		out           []Finding
		missing       []int // of changes
		unsaid        []int // of changes: what comes later may tell them
		extra         []int // of got
		partner       = map[int]int{}
		gapOf, gapHas = map[int]int{}, map[int]int{} // how many are well before it
	)
	well := 0
	for x := i; x < n; x++ {
		switch {
		case wantHas[x-i]:
			well++
		case j.life.changes[x].Op == Unsaid && x < len(j.life.changes)-1:
			unsaid = append(unsaid, x)
		default:
			missing, gapOf[x] = append(missing, x), well
		}
	}
	well = 0
	for x := g; x < m; x++ {
		if gotHas[x-g] {
			well++
		} else {
			extra, gapHas[x] = append(extra, x), well
		}
	}
	taken := map[int]bool{}
	pair := func(ok func(w, e int) bool) {
		for _, e := range extra {
			if _, done := partner[e]; done {
				continue
			}
			for _, w := range missing {
				if !taken[w] && ok(w, e) {
					partner[e], taken[w] = w, true
					break
				}
			}
		}
	}
	pair(func(w, e int) bool { return j.same(w, &got[e]) })
	reordered := maps.Clone(partner)
	// The change at its place, with other values.
	pair(func(w, e int) bool {
		return gapOf[w] == gapHas[e] && j.life.changes[w].Op == got[e].Op && j.which(&got[e]) < 0
	})
	again := -1 // a row that was read beside the stream, though not at this moment
	for _, e := range extra {
		w, paired := partner[e]
		_, moved := reordered[e]
		switch {
		case got[e].Op == 'r' && j.wasOnce(&got[e]):
			again = e
		case got[e].Op == 's' && !moved:
			f := j.finding(Lost, -1, &got[e])
			f.Note = "it is swept, and was there"
			out = append(out, f)
		case moved:
			out = append(out, j.finding(Reordered, w, &got[e]))
		case paired:
			f := j.finding(Wrong, w, &got[e])
			f.Columns = j.columns(w, &got[e])
			out = append(out, f)
		case j.which(&got[e]) >= 0:
			out = append(out, j.finding(Doubled, j.which(&got[e]), &got[e]))
		default:
			out = append(out, j.finding(Invented, -1, &got[e]))
		}
	}
	for _, w := range missing {
		if !taken[w] {
			out = append(out, j.finding(Lost, w, nil))
		}
	}
	if again >= 0 && len(out) == 0 {
		out = append(out, j.finding(Reordered, -1, &got[again]))
	}
	if len(out) == 0 {
		for _, w := range unsaid {
			out = append(out, j.finding(Lost, w, nil))
		}
	}
	return out
}

// which change of the key got is, -1: none.
func (j *judge) which(got *Change) int {
	for i := range j.life.changes {
		if j.same(i, got) {
			return i
		}
	}
	return -1
}

func (j *judge) wasOnce(got *Change) bool {
	return slices.ContainsFunc(j.life.states, func(s Row) bool { return s != nil && len(j.differs(s, nil, got.New)) == 0 })
}

// common marks the members of a longest common subsequence.
func (j *judge) common(i, n int, got []Change, g, m int) (wantHas, gotHas []bool) {
	rows, cols := n-i, m-g
	wantHas, gotHas = make([]bool, rows), make([]bool, cols)
	if rows*cols > most { // far apart: in order, whatever comes first
		at := i
		for x := g; x < m; x++ {
			for y := at; y < n; y++ {
				if j.same(y, &got[x]) {
					wantHas[y-i], gotHas[x-g], at = true, true, y+1
					break
				}
			}
		}
		return wantHas, gotHas
	}
	same := make([]bool, rows*cols)
	length := make([]int32, (rows+1)*(cols+1))
	at := func(r, c int) int { return r*(cols+1) + c }
	for r := rows - 1; r >= 0; r-- {
		for c := cols - 1; c >= 0; c-- {
			if same[r*cols+c] = j.same(i+r, &got[g+c]); same[r*cols+c] {
				length[at(r, c)] = length[at(r+1, c+1)] + 1
			} else {
				length[at(r, c)] = max(length[at(r+1, c)], length[at(r, c+1)])
			}
		}
	}
	for r, c := 0, 0; r < rows && c < cols; {
		switch {
		case same[r*cols+c]:
			wantHas[r], gotHas[c] = true, true
			r++
			c++
		case length[at(r+1, c)] >= length[at(r, c+1)]:
			r++
		default:
			c++
		}
	}
	return wantHas, gotHas
}
