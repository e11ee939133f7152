package mapping_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	cfg "github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/join"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// says drains the world and holds one record against what it should say, by column;
// "": it is null. No fields: it is not there.
func (w *world) says(topic, key string, want map[string]string) {
	w.tb.Helper()
	w.drain(w.tb.Context())
	w.compare()
	row := w.logs[topic].latest()[key]
	if (row == nil) != (want == nil) {
		w.tb.Errorf("%s %s is %v, want %v", topic, key, row, want)
		return
	}
	for name, text := range want {
		got := ""
		if v := row[name]; !v.IsNull() {
			got = string(w.texts.AppendByValue(nil, v))
		}
		if got != text {
			w.tb.Errorf("%s of %s %s is %q, want %q", name, topic, key, got, text)
		}
	}
}

// An entry comes before all that it names, which then comes, changes, moves and goes,
// one after the other. If this failed, it would wait for what is there, or say what is
// not so any more, until somebody touched it.
func TestLookupStory(t *testing.T) {
	rules, all, raw := firm(t)
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	num := func(n int64) change.Value { return change.IntValue(n) }
	entry := func(task string, person int64) {
		w.set("entry", 1, values{
			"kind": w.str("a"), "person_id": change.DecimalValue(person*100, 2), "task_ref": w.str(task), "day": change.DateValue(5),
			"hours": change.Float64Value(0.25), "deleted": change.BoolValue(false),
		})
	}
	task := func(id int, parent, project int64) {
		row := values{"name": w.str(fmt.Sprint("t", id))}
		if parent > 0 {
			row["parent_id"] = num(parent)
		}
		if project > 0 {
			row["project_id"] = num(project)
		}
		w.set("task", id, row)
	}
	project := func(id int, name, currency string) {
		w.set("project", id, values{"name": w.str(name), "currency": w.str(currency), "open": change.BoolValue(true)})
	}
	rate := func(id int, person, from, rate int64, currency string) {
		w.set("rate", id, values{
			"person_id": change.DecimalValue(person, 0), "valid_from": change.DateValue(from), "currency": w.str(currency),
			"rate": change.DecimalValue(rate, 4), "active": change.BoolValue(true),
		})
	}
	is := func(what, waits, project, cost string) {
		t.Helper()
		w.says("x.cost", "e-1/a", map[string]string{"waiting_for": waits, "project": project, "cost": cost})
		if t.Failed() {
			t.Fatal(what)
		}
	}
	entry("task,3", 7)
	is("nothing is there", "work above 3", "", "")
	task(3, 2, 0)
	is("its task is there", "work above 3: 2 is missing", "", "")
	task(2, 3, 0)
	is("a cycle", "work above 3: 3 is above itself", "", "")
	task(2, 0, 0)
	is("the topmost has no project", "work above 3: none fulfils until", "", "")
	task(2, 0, 9)
	is("it has one", "project 9", "", "")
	project(9, "Harbour", "EUR")
	is("the project is there", "rate of person 7 on 1970-01-06", "Harbour", "")
	rate(1, 7, 5, 400000, "USD")
	is("a rate in another currency", "rate 7, which does not agree: ref.currency == project.currency", "Harbour", "")
	rate(2, 7, 1, 480000, "EUR")
	is("one that agrees", "", "Harbour", "12")
	rate(3, 7, 4, 600000, "EUR")
	is("a later one", "", "Harbour", "15")
	rate(3, 8, 4, 600000, "EUR") // under the default replica identity nobody says whose it was
	is("that is another person's now", "", "Harbour", "12")
	project(9, "Harbour wall", "EUR")
	is("the project is renamed", "", "Harbour wall", "12")
	task(1, 0, 8)
	project(8, "Mill", "EUR")
	task(2, 1, 0)
	is("the task in the middle moves", "", "Mill", "12")
	entry("task,2", 8)
	is("the entry is another task's and person's", "", "Mill", "15")
	entry("bug,2", 8)
	is("it names none", "work that is not named", "", "")
	entry("task,1", 7)
	is("it names the topmost", "", "Mill", "12")
	w.set("rate", 2, nil)
	is("its rate is gone", "rate 7, which does not agree: ref.currency == project.currency", "Mill", "")
	w.set("rate", 1, nil)
	is("there is no rate left", "rate of person 7 on 1970-01-06", "Mill", "")
	w.set("project", 8, nil)
	is("the project is gone", "project 8", "", "")

	// Of a rule that tells nothing of it, a row that waits is not there.
	w.says("x.task", "t-3", map[string]string{"above": "t2"})
	w.set("task", 2, nil)
	w.says("x.task", "t-3", nil)
	task(2, 0, 9)
	w.says("x.task", "t-3", map[string]string{"above": "t2"})
	w.set("project", 9, values{"name": w.str("n"), "currency": w.str("EUR"), "open": change.BoolValue(false)})
	w.says("x.task", "t-2", nil)
	w.set("entry", 1, nil)
	w.says("x.cost", "e-1/a", nil)
}

// Two rows have a name; the newer has the record. What the older one names changes,
// and it is evaluated again. If this failed, it would take the name back.
func TestLookedUpClaimsKeepTheirPlace(t *testing.T) {
	rules, all, raw := firm(t)
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	w.set("person", 3, values{"name": w.str("chief"), "chief_id": change.NullValue()})
	w.set("person", 1, values{"name": w.str("ada"), "chief_id": change.IntValue(3)})
	w.set("person", 2, values{"name": w.str("ada"), "chief_id": change.NullValue()})
	w.says("x.person", "ada", map[string]string{"number": "2", "chief": ""})
	w.set("person", 3, values{"name": w.str("boss"), "chief_id": change.NullValue()})
	w.says("x.person", "ada", map[string]string{"number": "2", "chief": ""})
	w.set("person", 2, nil)
	w.says("x.person", "ada", map[string]string{"number": "1", "chief": "boss"})
}

// If this failed, a wrong word in a lookup would be met by the first row, or by none.
// Each of these rules is one that passes (TestLookupStory has its like), but for one
// word.
//
// Remedy: TW-LOOKUP-CONFIG
func TestLookupMistakes(t *testing.T) {
	_, all, _ := firm(t)
	of := func(l join.Lookup) mapping.Topic {
		return mapping.Topic{From: "psa.public.task", To: "x.task", Lookups: map[string]join.Lookup{"above": l}, Fields: map[string]cfg.Scalar{"id": cfg.Text("t-{id}")}}
	}
	task := join.Lookup{Topic: "psa.public.task", On: "row.parent_id"}
	for name, c := range map[string]struct {
		rule   func() mapping.Topic
		at     string
		errors string
	}{
		"no topic":            {func() mapping.Topic { l := task; l.Topic = ""; return of(l) }, "topics[0].lookups.above.topic", "is missing"},
		"nothing names it":    {func() mapping.Topic { l := task; l.On = ""; return of(l) }, "topics[0].lookups.above.on", "is missing"},
		"an unknown root":     {func() mapping.Topic { l := task; l.On = "wrok.id"; return of(l) }, "topics[0].lookups.above.on", "neither row nor a lookup"},
		"a broken expression": {func() mapping.Topic { l := task; l.On = `after(row.ref "x")`; return of(l) }, "topics[0].lookups.above.on@1:", "expecting"},
		"until without climb": {func() mapping.Topic { l := task; l.Until = "ref.id == 1"; return of(l) }, "topics[0].lookups.above.until", "there is none"},
		"climb of a group":    {func() mapping.Topic { l := task; l.Climb, l.By = "parent_id", "id"; return of(l) }, "topics[0].lookups.above.climb", "none above it"},
		"by an expression":    {func() mapping.Topic { l := task; l.By = "string(row.id)"; return of(l) }, "topics[0].lookups.above.by", "columns are wanted here"},
		"in force of what":    {func() mapping.Topic { l := task; l.InForce = &join.Dated{From: "a", At: "b"}; return of(l) }, "topics[0].lookups.above.by", "by says which"},
		"where names the row": {func() mapping.Topic { l := task; l.Where = "row.id == ref.id"; return of(l) }, "topics[0].lookups.above.where", "others than ref"},
		"where without ref":   {func() mapping.Topic { l := task; l.Where = "open"; return of(l) }, "topics[0].lookups.above.where@1:", "Columns are ref.NAME"},
		"a mistake in agree":  {func() mapping.Topic { l := task; l.Agree = "ref.id = row.id"; return of(l) }, "topics[0].lookups.above.agree@1:", "expecting"},
		"missing what":        {func() mapping.Topic { l := task; s := cfg.Text("none"); l.Missing = &s; return of(l) }, "topics[0].lookups.above.missing", "nothing that can be said"},
		"a field of a contract": {func() mapping.Topic {
			r := of(join.Lookup{Topic: "ps.project", On: "row.project_id"})
			r.Fields["name"] = cfg.Text("above.nmae")
			return r
		}, "topics[0].lookups.above", `no field "nmae"`},
		"a type of a contract": {func() mapping.Topic {
			r := of(join.Lookup{Topic: "ps.project", On: "row.project_id"})
			r.Fields["name"] = cfg.Text("above.number + 1")
			return r
		}, "topics[0].fields.name@1:", "does not go with"},
		"a rate for everybody": {func() mapping.Topic {
			r := of(join.Lookup{Topic: "ps.cost_rate", On: "row.rate_id"})
			r.Fields["name"] = cfg.Text("string(above.rate)")
			return r
		}, "topics[0].fields.name", "above.rate, of which it is made, is restricted"},
		"they need each other": {func() mapping.Topic {
			r := of(join.Lookup{Topic: "psa.public.task", On: "below.parent_id"})
			r.Lookups["below"] = join.Lookup{Topic: "psa.public.task", On: "above.parent_id"}
			return r
		}, "topics[0].lookups.above", "need each other"},
		"columns of two rows": {func() mapping.Topic {
			r := of(task)
			r.Lookups["top"] = join.Lookup{Topic: "psa.public.task", On: "above.parent_id, row.id"}
			return r
		}, "topics[0].lookups.top.on", "more than one row"},
		"waiting for what":         {func() mapping.Topic { r := of(task); r.WaitingFor = "nmae"; return r }, "topics[0].waiting_for", "no text field"},
		"waiting without lookups":  {func() mapping.Topic { r := of(task); r.Lookups, r.WaitingFor = nil, "name"; return r }, "topics[0].waiting_for", "no effect"},
		"a name that is another's": {func() mapping.Topic { r := of(task); r.Lookups["item"] = task; return r }, "topics[0].lookups", "cannot have the name"},
		"a key without the table's": {func() mapping.Topic {
			r := of(join.Lookup{Topic: "ps.customer", On: "row.customer_id"})
			r.From, r.Fields["id"] = "ps.project", cfg.Text("name")
			return r
		}, "topics[0].fields.id", "does not say project_id"},
		"a field that does not exist": {func() mapping.Topic { r := of(task); r.Fields["nme"] = cfg.Text("above.name"); return r }, "topics[0].fields.nme", "has no field"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := mapping.New("m", mapping.Config{Topics: []mapping.Topic{c.rule()}}, all, nil)
			if err == nil {
				t.Fatal("it passes")
			}
			text := problem.Format(err)
			if !strings.Contains(text, c.at) || !strings.Contains(text, c.errors) {
				t.Errorf("it says, and should say %q at %s:\n%s", c.errors, c.at, text)
			}
		})
	}
	// What names a lookup that has a mistake has none for that.
	wrong := task
	wrong.Climb, wrong.By = "parent_id", "id"
	rule := of(wrong)
	rule.Lookups["below"] = join.Lookup{Topic: "psa.public.task", On: "above.parent_id"}
	_, err := mapping.New("m", mapping.Config{Topics: []mapping.Topic{rule}}, all, nil)
	if text := problem.Format(err); err == nil || strings.Count(text, "TW-") != 1 {
		t.Errorf("one mistake is told as\n%s", text)
	}
}

// A condition that has no value for one row parks the row that looks it up, and nothing
// else; corrected at its source, all is well.
//
// Remedy: TW-LOOKUP-EXPR
func TestLookupWithoutAValue(t *testing.T) {
	rules, all, raw := firm(t)
	l := rules.Topics[1].Lookups["project"]
	l.Where = "ref.open || ref.open" // null is neither true nor false
	rules.Topics[1].Lookups["project"] = l
	rules.Topics = rules.Topics[1:2]
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	w.set("project", 1, values{"name": w.str("p")})
	w.set("task", 1, values{"name": w.str("a"), "project_id": change.IntValue(1)})
	w.set("task", 2, values{"name": w.str("b")})
	look := func() (rejected []error) {
		for _, g := range w.groups {
			if err := g.procs[0].check(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, g := range w.groups {
			for range 3 {
				p := g.procs[0]
				if err := p.check(t.Context()); err != nil {
					t.Fatal(err)
				}
				b := change.Get()
				for _, name := range g.topics {
					for part := range int32(partitions) {
						n := int64(len(w.logs[name].parts[part]))
						for o := g.committed[name][part]; o < n; o++ {
							w.put(w.logs[name], b, part, o)
						}
						b.Ranges = append(b.Ranges, change.Range{Topic: w.logs[name].topic, Partition: part, From: g.committed[name][part], To: n})
						g.committed[name][part] = n
					}
				}
				var recs []sent
				if s := p.spec.State; s != nil {
					s.Begin()
				}
				if err := p.spec.Stages[0].Apply(t.Context(), b, &worldOutlet{p, 1, &recs, &rejected}); err != nil {
					t.Fatal(err)
				}
				for _, r := range recs {
					w.logs[r.topic].append(r.rec)
				}
				p.keep(t.Context())
			}
		}
		return rejected
	}
	rejected := look()
	if len(rejected) != 1 || !problem.Has(rejected[0], join.ErrLookup) || !strings.Contains(problem.Format(rejected[0]), "lookups.project.where") {
		t.Fatalf("rejected: %v", rejected)
	}
	if got := w.logs["x.task"].latest(); len(got) != 1 || got["t-2"] == nil {
		t.Errorf("the others: %v", got)
	}
	w.set("project", 1, values{"name": w.str("p"), "open": change.BoolValue(true)})
	if rejected := look(); len(rejected) != 0 {
		t.Fatalf("rejected: %v", rejected)
	}
	if got := w.logs["x.task"].latest(); len(got) != 2 {
		t.Errorf("after it was corrected: %v", got)
	}
}

// A record that is no row halts who reads it; written anew by the map, it is read.
//
// Remedy: TW-LOOKUP-ROW
func TestRecordThatIsNoRow(t *testing.T) {
	rules, all, raw := firm(t)
	rules.Topics = rules.Topics[1:2]
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	w.set("task", 1, values{"name": w.str("a")})
	if err := w.groups[0].procs[0].work(t.Context(), 1000, false); err != nil {
		t.Fatal(err)
	}
	rows := w.logs["_tallywire.rows.m.psa.public.task"]
	for part := range rows.parts {
		for i, r := range rows.parts[part] {
			w.good, rows.parts[part][i].row = r.row, values{"key": r.row["key"], "row": w.texts.Span(change.Bytes, []byte{200, 1, 2})}
		}
	}
	for _, g := range w.groups[1:] {
		if err := g.procs[0].work(t.Context(), 1000, false); !problem.Has(err, join.ErrRow) {
			t.Errorf("%s: %v, want TW-LOOKUP-ROW", g.name, err)
		}
	}
	rows.append(record{key: "1", row: w.good})
	for part := range rows.parts {
		if n := len(rows.parts[part]); n == 2 {
			rows.parts[part] = rows.parts[part][1:]
		}
	}
	w.says("x.task", "t-1", map[string]string{"name": "a"})
}

// A rule begins to use another column when all rows have been read. If this failed, what
// is in it would be missing for ever, or nothing would run any more.
//
// Remedy: TW-MAP-ROWS-UNSEEN
func TestLookupsThatUseMore(t *testing.T) {
	rules, all, raw := firm(t)
	rules.Topics = rules.Topics[1:2]
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	for id := range 9 {
		w.set("project", 1+id, values{"name": w.str("p"), "unused": w.str(fmt.Sprint("u", id)), "open": change.BoolValue(true)})
		w.set("task", 1+id, values{"name": w.str("a"), "project_id": change.IntValue(int64(1 + id))})
	}
	w.drain(t.Context())
	again := func() {
		for _, g := range w.groups {
			for _, p := range g.procs {
				p.start()
			}
		}
	}
	again() // the same rules: nothing is to be read again
	w.set("project", 1, values{"name": w.str("q"), "unused": w.str("u0"), "open": change.BoolValue(true)})
	w.drain(t.Context())

	more := map[string]cfg.Scalar{"above": cfg.Text("project.unused")}
	for k, v := range w.cfg.Topics[0].Fields {
		if k != "above" {
			more[k] = v
		}
	}
	w.cfg.Topics[0].Fields = more
	again()
	w.set("project", 1, values{"name": w.str("q"), "unused": w.str("u1"), "open": change.BoolValue(true)})
	w.set("task", 1, values{"name": w.str("b"), "project_id": change.IntValue(1)})
	main := w.groups[0].procs[0]
	if err := main.work(t.Context(), 1000, false); !problem.Has(err, mapping.ErrRowsUnseen) {
		t.Fatalf("it says %v, want TW-MAP-ROWS-UNSEEN", err)
	}
	for _, at := range w.groups[0].committed { // tallywire replay
		*at = [partitions]int64{}
	}
	main.start()
	w.drain(t.Context())
	got := w.logs["x.task"].latest()
	for id := range 9 {
		key, want := fmt.Sprintf("t-%d", 1+id), fmt.Sprint("u", id)
		if id == 0 {
			want = "u1"
		}
		if row := got[key]; row == nil || string(w.texts.AppendText(nil, row["above"])) != want {
			t.Errorf("%s is %v, want %s", key, row, want)
		}
	}
}

// A rule begins to use another column, is started, and is taken back before anything is
// read again. Meanwhile rows change that lack nothing. If this failed, what was told of
// those to rows that lack the column would be gone, with all green, and for good.
func TestRulesThatAreTakenBack(t *testing.T) {
	rules, all, raw := firm(t)
	rules.Topics = rules.Topics[1:2]
	was := rules.Topics[0]
	use := func(w *world, where, above string) {
		t := was
		t.Where, t.Fields = where, map[string]cfg.Scalar{"id": cfg.Text("t-{id}"), "above": cfg.Text(above)}
		w.cfg.Topics = []mapping.Topic{t}
		for _, g := range w.groups {
			for _, p := range g.procs {
				p.start()
			}
		}
	}
	rules.Topics = []mapping.Topic{was}
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	for id := range 9 {
		row := values{"name": w.str("a"), "project_id": change.IntValue(int64(1 + id))}
		if id > 0 {
			row["parent_id"] = change.IntValue(1)
		}
		w.set("task", 1+id, row)
		w.set("project", 1+id, values{"open": change.BoolValue(true)})
	}
	w.drain(t.Context())
	w.compare()

	use(w, was.Where, "above.name + project.unused")
	w.set("task", 1, values{"name": w.str("b"), "project_id": change.IntValue(1)})
	for i, g := range w.groups {
		switch err := g.procs[0].work(t.Context(), 1000, false); {
		case i == 0 && err != nil:
			t.Fatal(err)
		case i > 0 && !problem.Has(err, mapping.ErrRowsUnseen):
			t.Errorf("%s says %v, want TW-MAP-ROWS-UNSEEN", g.name, err)
		}
	}
	use(w, was.Where, "above.name")
	w.drain(t.Context())
	w.compare()

	// What is not used for a while is not kept for a while.
	use(w, "", "above.name")
	w.set("project", 1, values{"open": change.BoolValue(false)})
	w.set("project", 2, values{"open": change.BoolValue(false)})
	w.drain(t.Context())
	use(w, was.Where, "above.name")
	w.set("project", 1, values{"open": change.BoolValue(true)})
	if err := w.groups[0].procs[0].work(t.Context(), 1000, false); !problem.Has(err, mapping.ErrRowsUnseen) {
		t.Errorf("it says %v, want TW-MAP-ROWS-UNSEEN", err)
	}
}

// A rate changes, of which one of two entries is. If this failed, each change would be
// told of all that the person ever worked; or a topic that is read again would not give
// again what is asked for.
func TestOnlyWhatDiffersIsGiven(t *testing.T) {
	rules, all, raw := firm(t)
	rules.Topics = rules.Topics[:1]
	for name, l := range rules.Topics[0].Lookups {
		if l.Topic == "x.task" {
			delete(rules.Topics[0].Lookups, name)
		}
	}
	fields := map[string]cfg.Scalar{}
	for k, v := range rules.Topics[0].Fields {
		if k != "label" {
			fields[k] = v
		}
	}
	rules.Topics[0].Fields = fields
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	rate := func(id int, from, rate int64) {
		w.set("rate", id, values{"person_id": change.DecimalValue(7, 0), "valid_from": change.DateValue(from), "currency": w.str("EUR"), "rate": change.DecimalValue(rate, 4), "active": change.BoolValue(true)})
	}
	w.set("project", 9, values{"name": w.str("p"), "currency": w.str("EUR"), "open": change.BoolValue(true)})
	w.set("task", 3, values{"project_id": change.IntValue(9)})
	rate(1, 0, 100)
	rate(2, 50, 200)
	for id, day := range []int64{10, 60} {
		w.set("entry", 1+id, values{
			"kind": w.str("a"), "person_id": change.DecimalValue(7, 0), "task_ref": w.str("task,3"), "day": change.DateValue(day),
			"hours": change.Float64Value(1), "deleted": change.BoolValue(false),
		})
	}
	w.drain(t.Context())
	before := map[string]int{}
	given := func() map[string]int {
		t.Helper()
		w.drain(t.Context())
		now := map[string]int{}
		for _, part := range w.logs["x.cost"].parts {
			for _, r := range part {
				now[r.key]++
			}
		}
		more := map[string]int{}
		for k, n := range now {
			if n > before[k] {
				more[k] = n - before[k]
			}
		}
		before = now
		return more
	}
	given()
	rate(2, 50, 300)
	if more := given(); len(more) != 1 || more["e-2/a"] == 0 {
		t.Errorf("a rate gave %v, want the second entry alone", more)
	}
	w.set("project", 9, values{"name": w.str("q"), "currency": w.str("EUR"), "open": change.BoolValue(true)})
	if more := given(); len(more) != 2 {
		t.Errorf("a project gave %v, want both", more)
	}
	last := w.groups[len(w.groups)-1]
	*last.committed["_tallywire.rows.m.psa.public.entry"] = [partitions]int64{} // kafka-consumer-groups --reset-offsets
	if more := given(); len(more) != 2 {
		t.Errorf("rows that were read again gave %v, want both", more)
	}
	w.compare()
}

// A rule without memory and without lookups stands beside one that has some, and their
// rows come in one batch. If this failed, the transform would end with the first of them.
func TestRulesBesideLookups(t *testing.T) {
	rules, all, raw := firm(t)
	rules.Topics = append(rules.Topics[1:2:2], mapping.Topic{From: "psa.public.mail", To: "x.task", Fields: map[string]cfg.Scalar{"id": cfg.Text("m-{id}"), "name": cfg.Text("address"), "above": {}}})
	w := newWorld(t, miniRedis(t).Options().Addr, 1, rules, all, raw...)
	for id := 1; id < 9; id++ {
		w.set("mail", id, values{"address": w.str("a")})
		w.set("task", id, values{"name": w.str("t")})
	}
	w.drain(t.Context())
	if got := w.logs["x.task"].latest(); len(got) != 16 || got["m-3"] == nil || got["t-3"] == nil {
		t.Errorf("%d records: %v", len(got), got)
	}
}
