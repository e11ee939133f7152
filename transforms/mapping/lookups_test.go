package mapping_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	cfg "github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/join"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// firm is a PSA that nobody planned: entries name tasks of a tree, hours are floats,
// people are numbers with a point, rates have a last day and a currency.
func firm(t testing.TB) (mapping.Config, avro.Catalogue, []*change.Table) {
	t.Helper()
	all, err := avro.LoadCatalogue("testdata/lookups")
	if err != nil {
		t.Fatal(err)
	}
	rules := mapping.Config{Dedupe: mapping.Dedupe{Mode: "off", Window: mapping.Defaults().Dedupe.Window}}
	none := &cfg.Scalar{}
	rules.Topics = []mapping.Topic{{
		From: "psa.public.entry", To: "x.cost", Where: "row.deleted == false", WaitingFor: "waiting_for", Key: cfg.Text("e-{id}/{kind}"),
		Lookups: map[string]join.Lookup{
			"work":    {Topic: "psa.public.task", On: `after(row.task_ref, "task,")`, Climb: "parent_id", Until: "ref.project_id != null"},
			"project": {Topic: "psa.public.project", On: "work.project_id"},
			"label":   {Topic: "x.task", On: "t-{work.id}", Missing: none},
			"mail":    {Topic: "psa.public.mail", On: "row.person_id", By: "person_id", Where: "ref.main", Optional: true, Missing: none},
			"person":  {Topic: "psa.public.person", On: "row.person_id", Missing: none},
			"chief":   {Topic: "psa.public.person", On: "person.chief_id", Optional: true},
			"rate": {
				Topic: "psa.public.rate", On: "row.person_id", Where: "ref.active", Agree: "ref.currency == project.currency",
				By: "person_id", InForce: &join.Dated{From: "valid_from", To: "valid_to", Inclusive: true, At: "day"},
			},
		},
		Fields: map[string]cfg.Scalar{
			"project": cfg.Text("project.name"), "task": cfg.Text("{work.id}"), "person": cfg.Text("person.name"), "chief": cfg.Text("chief.name"), "mail": cfg.Text("mail.address"), "label": cfg.Text("label.name"),
			"hours": cfg.Text(`round(decimal(row.hours), 6, "half_even")`), "cost": cfg.Text(`round(decimal(row.hours), 6, "half_even") * rate.rate`),
			"currency": cfg.Text("rate.currency"),
		},
	}, {
		From: "psa.public.task", To: "x.task", Where: "project.open != false",
		Lookups: map[string]join.Lookup{
			"above":   {Topic: "psa.public.task", On: "row.parent_id", Optional: true},
			"project": {Topic: "psa.public.project", On: "row.project_id", Optional: true, Missing: none},
		},
		Fields: map[string]cfg.Scalar{"id": cfg.Text("t-{id}"), "above": cfg.Text("above.name")},
	}, {
		From: "psa.public.person", To: "x.person", Key: cfg.Text("name"), Claims: true, WaitingFor: "waiting_for",
		Lookups: map[string]join.Lookup{"chief": {Topic: "psa.public.person", On: "row.chief_id", Optional: true}},
		Fields:  map[string]cfg.Scalar{"chief": cfg.Text("chief.name"), "number": cfg.Text("{id}")},
	}, {
		From: "psa.public.project", To: "x.tag", Each: `row.tags.split(",")`, Key: cfg.Text(`string(row.id) + "-" + item`),
		Lookups: map[string]join.Lookup{"lead": {Topic: "x.person", On: "row.lead"}},
		Fields:  map[string]cfg.Scalar{"lead": cfg.Text(`item + " of " + lead.number`)},
	}}
	id := change.Column{Name: "id", Kind: change.Int, Width: 4, Type: "integer"}
	integer := func(name string) change.Column {
		return change.Column{Name: name, Kind: change.Int, Width: 4, Type: "integer", Nullable: true}
	}
	text := func(name string) change.Column {
		return change.Column{Name: name, Kind: change.String, Type: "text", Nullable: true}
	}
	number := func(name string, precision, scale int16) change.Column {
		return change.Column{Name: name, Kind: change.Decimal, Precision: precision, Scale: scale, Type: "numeric", Nullable: true}
	}
	date := func(name string) change.Column {
		return change.Column{Name: name, Kind: change.Date, Type: "date", Nullable: true}
	}
	boolean := func(name string) change.Column {
		return change.Column{Name: name, Kind: change.Bool, Type: "boolean", Nullable: true}
	}
	table := func(name string, cols ...change.Column) *change.Table {
		return (&change.Table{Source: "psa", Schema: "public", Name: name, Topic: "psa.public." + name, Columns: cols, Key: []int{0}}).Index()
	}
	personID := number("id", 10, 0)
	personID.Nullable = false
	return rules, all, []*change.Table{
		table("entry", id, text("kind"), number("person_id", 12, 2), text("task_ref"), date("day"), change.Column{Name: "hours", Kind: change.Float64, Type: "double precision"}, boolean("deleted")),
		table("task", id, integer("parent_id"), integer("project_id"), text("name")),
		table("project", id, text("name"), text("currency"), boolean("open"), text("unused"), text("tags"), text("lead")),
		table("person", personID, text("name"), integer("chief_id")),
		table("mail", id, integer("person_id"), text("address"), boolean("main")),
		table("rate", id, number("person_id", 10, 0), date("valid_from"), date("valid_to"), text("currency"), number("rate", 12, 4), boolean("active")),
	}
}

// set changes a row of a raw table, or deletes it: row nil.
func (w *world) set(table string, id int, row values) {
	l := w.logs["psa.public."+table]
	key := change.IntValue(int64(id))
	if table == "person" {
		key = change.DecimalValue(int64(id), 0)
	}
	w.lsn++
	rec := record{key: strconv.Itoa(id), row: row, old: values{"id": key}, pos: change.Pos{System: 1, LSN: w.lsn, Kind: change.PosCommit, Ordinal: 1}}
	if row != nil {
		row["id"] = key
	}
	l.append(rec)
}

// begin sets a firm in which most entries have a cost, until mutate has been at it.
func (w *world) begin() {
	for i := range 3 {
		id := int64(i + 1)
		w.set("person", i+1, values{"name": w.str(fmt.Sprint("n", id))})
		w.set("project", i+1, values{"name": w.str(fmt.Sprint("p", id)), "currency": w.str("EUR"), "open": change.BoolValue(true), "tags": w.str("a"), "lead": w.str("n1")})
		w.set("task", i+1, values{"name": w.str(fmt.Sprint("t", id)), "project_id": change.IntValue(id)})
		w.set("task", i+4, values{"name": w.str(fmt.Sprint("t", id+3)), "parent_id": change.IntValue(id)})
		w.set("rate", i+11, values{"person_id": change.DecimalValue(id, 0), "currency": w.str("EUR"), "rate": change.DecimalValue(id*100_000, 4), "active": change.BoolValue(true)})
	}
}

func (w *world) mutate() {
	n := func(k int) int { return w.rng.IntN(k) }
	maybe := func(v change.Value) change.Value {
		if n(6) == 0 {
			return change.NullValue()
		}
		return v
	}
	num := func(k int) change.Value { return change.IntValue(int64(1 + n(k))) }
	currency := func() change.Value { return w.str([]string{"EUR", "EUR", "EUR", "USD"}[n(4)]) }
	flag := func() change.Value { return change.BoolValue(n(5) > 0) }
	switch n(16) {
	case 0, 1, 2, 3:
		w.set("entry", 1+n(12), values{
			"kind": w.str([]string{"a", "b"}[n(2)]), "person_id": maybe(change.DecimalValue(int64(1+n(3))*100, 2)), "task_ref": maybe(w.str(fmt.Sprintf("%s,%d", []string{"task", "task", "task", "task", "bug"}[n(5)], 1+n(6)))),
			"day": change.DateValue(int64(n(10))), "hours": change.Float64Value(float64(1+n(40)) / 8), "deleted": change.BoolValue(n(6) == 0),
		})
	case 4:
		w.set("entry", 1+n(12), nil)
	case 5, 6:
		id := 1 + n(6)
		row := values{"parent_id": num(6), "name": w.str(fmt.Sprint("t", n(100)))}
		if id > 3 && n(4) > 0 {
			row["parent_id"] = num(id - 1) // no cycle
		}
		if id <= 3 || n(2) == 0 {
			row["project_id"] = num(3)
		}
		if n(3) == 0 {
			delete(row, "parent_id")
		}
		w.set("task", id, row)
	case 7:
		w.set("project", 1+n(3), values{"name": w.str(fmt.Sprint("p", n(100))), "currency": currency(), "open": flag(), "unused": w.str(fmt.Sprint(n(100))), "tags": w.str([]string{"a", "b", "a,b", "b,c", "c,d,a"}[n(5)]), "lead": w.str(fmt.Sprint("n", n(5)))})
	case 8:
		w.set("person", 1+n(4), values{"name": w.str(fmt.Sprint("n", n(4))), "chief_id": maybe(num(3))})
	case 9, 10, 11:
		row := values{"person_id": change.DecimalValue(int64(1+n(3)), 0), "currency": currency(), "rate": change.DecimalValue(int64(1+n(900000)), 4), "active": flag()}
		if n(5) > 0 {
			row["valid_from"] = change.DateValue(int64(n(10)))
		}
		if n(2) == 0 {
			row["valid_to"] = change.DateValue(int64(n(12)))
		}
		w.set("rate", 1+n(6), row)
	case 12:
		w.set([]string{"task", "project", "person"}[n(3)], 1+n(4), nil)
	case 13:
		w.set("rate", 1+n(6), nil)
	case 14:
		w.set("mail", 1+n(5), values{"person_id": num(3), "address": w.str(fmt.Sprint("m", n(100))), "main": flag()})
	case 15:
		w.set("mail", 1+n(5), nil)
	}
}

// naive computes both outputs from the latest rows, the plain way.
func (w *world) naive() (costs, tasks, persons, tags map[string]values) {
	text := func(v change.Value) string { return string(w.texts.AppendByValue(nil, v)) }
	of := func(table string) map[string]values { return w.logs["psa.public."+table].latest() }
	entries, works, projects, people, rates, mails := of("entry"), of("task"), of("project"), of("person"), of("rate"), of("mail")
	costs, tasks = map[string]values{}, map[string]values{}
	for _, t := range works {
		out := values{"id": w.str("t-" + text(t["id"])), "name": t["name"]}
		if !t["parent_id"].IsNull() {
			above := works[text(t["parent_id"])]
			if above == nil {
				continue // it waits, and nothing tells so
			}
			out["above"] = above["name"]
		}
		if p := projects[text(t["project_id"])]; p != nil && !t["project_id"].IsNull() && !p["open"].Bool() {
			continue
		}
		tasks[text(out["id"])] = out
	}
	for _, e := range entries {
		if e["deleted"].Bool() {
			continue
		}
		key := fmt.Sprintf("e-%s/%s", text(e["id"]), text(e["kind"]))
		out := values{"id": w.str(key), "kind": e["kind"], "hours": change.DecimalValue(int64(e["hours"].Float64()*1_000_000), 6)}
		waits := ""
		say := func(format string, args ...any) {
			if waits == "" {
				waits = fmt.Sprintf(format, args...)
			}
		}
		// In the order in which they are looked up: person before chief, work before
		// project before rate.
		var project values
		person := people[text(e["person_id"])]
		chief := func() {
			if person == nil {
				return
			}
			out["person"] = person["name"]
			if c := person["chief_id"]; !c.IsNull() {
				if chief := people[text(c)]; chief != nil {
					out["chief"] = chief["name"]
				} else {
					say("chief %s", text(c))
				}
			}
		}
		if e["person_id"].IsNull() {
			say("person that is not named")
		}
		chief()
		var mail values
		for _, m := range mails {
			if !e["person_id"].IsNull() && text(m["person_id"]) == text(e["person_id"]) && m["main"].Bool() && (mail == nil || m["id"].Int() > mail["id"].Int()) {
				mail = m
			}
		}
		if mail != nil {
			out["mail"] = mail["address"]
		}
		work := func() {
			first, is := strings.CutPrefix(text(e["task_ref"]), "task,")
			if !is {
				say("work that is not named")
				return
			}
			seen := map[string]bool{}
			for at := first; ; {
				t := works[at]
				switch {
				case t == nil && at == first:
					say("work above %s", first)
					return
				case t == nil:
					say("work above %s: %s is missing", first, at)
					return
				case !t["project_id"].IsNull():
					out["task"] = w.str(text(t["id"]))
					if label := tasks["t-"+text(t["id"])]; label != nil {
						out["label"] = label["name"]
					}
					if project = projects[text(t["project_id"])]; project == nil {
						say("project %s", text(t["project_id"]))
					} else {
						out["project"] = project["name"]
					}
					return
				case t["parent_id"].IsNull():
					say("work above %s: none fulfils until", first)
					return
				}
				seen[at] = true
				if at = text(t["parent_id"]); seen[at] {
					say("work above %s: %s is above itself", first, at)
					return
				}
			}
		}
		work()
		if project == nil {
			say("project that is not named")
		}
		var best values
		agrees := false
		if !e["person_id"].IsNull() {
			currency := "none"
			if project != nil {
				currency = text(project["currency"])
			}
			best, agrees = w.inForce(rates, e, currency)
		}
		switch {
		case e["person_id"].IsNull():
			say("rate that is not named")
		case best == nil:
			say("rate of person %s on %s", text(e["person_id"]), text(e["day"]))
		case !agrees:
			say("rate %s, which does not agree: ref.currency == project.currency", text(e["person_id"]))
		default:
			h, _ := out["hours"].Small()
			r, _ := best["rate"].Small()
			out["cost"], out["currency"] = change.DecimalValue(h*r, 10), best["currency"]
		}
		if waits != "" {
			out["waiting_for"] = w.str(waits)
		}
		costs[key] = out
	}
	persons = map[string]values{}
	newest := map[string]change.Pos{}
	for _, part := range w.logs["psa.public.person"].parts {
		for _, r := range part {
			if p := people[r.key]; p == nil || r.row == nil || text(p["id"]) != text(r.row["id"]) {
				continue
			}
			newest[r.key] = r.pos // the last of them counts
		}
	}
	won := map[string]string{}
	for id, p := range people {
		name := text(p["name"])
		if was, is := won[name]; is && newest[was].Compare(newest[id]) > 0 {
			continue
		}
		won[name] = id
		out := values{"id": p["name"], "number": w.str(id)}
		if c := p["chief_id"]; !c.IsNull() {
			if chief := people[text(c)]; chief != nil {
				out["chief"] = chief["name"]
			} else {
				out["waiting_for"] = w.str("chief " + text(c))
			}
		}
		persons[name] = out
	}
	tags = map[string]values{}
	for id, p := range projects {
		lead := persons[text(p["lead"])]
		if p["tags"].IsNull() || lead == nil {
			continue
		}
		for _, tag := range strings.Split(text(p["tags"]), ",") {
			key := id + "-" + tag
			tags[key] = values{"id": w.str(key), "lead": w.str(tag + " of " + text(lead["number"]))}
		}
	}
	return costs, tasks, persons, tags
}

// inForce is the rate of an entry's person on its day, among these: one in the currency
// before all others, the latest, of two the greater.
func (w *world) inForce(rates map[string]values, e values, currency string) (best values, agrees bool) {
	text := func(v change.Value) string { return string(w.texts.AppendByValue(nil, v)) }
	from := func(r values) int64 {
		if v := r["valid_from"]; !v.IsNull() {
			return v.Int()
		}
		return -1
	}
	for _, r := range rates {
		day := e["day"].Int()
		if !r["active"].Bool() || text(r["person_id"]) != text(e["person_id"]) || from(r) > day || !r["valid_to"].IsNull() && r["valid_to"].Int() < day {
			continue
		}
		same := currency == text(r["currency"])
		if best == nil || same && !agrees || same == agrees && (from(r) > from(best) || from(r) == from(best) && r["id"].Int() > best["id"].Int()) {
			best, agrees = r, same
		}
	}
	return best, agrees
}

func (w *world) compare() {
	w.tb.Helper()
	costs, tasks, persons, tags := w.naive()
	for topic, want := range map[string]map[string]values{"x.cost": costs, "x.task": tasks, "x.person": persons, "x.tag": tags} {
		out := w.logs[topic]
		if out == nil {
			continue // no rule of this test fills it
		}
		if d := cmp.Diff(strings.Split(w.show(want, out.table), "\n"), strings.Split(w.show(out.latest(), out.table), "\n")); d != "" {
			w.tb.Errorf("%s is not what the rows say (- computed, + emitted):\n%s", topic, d)
		}
	}
}

// versions checks every record of a cost that was ever given, not the last alone: it is
// what the rule says of an entry, a person, a project and a task in one version each, and
// of the rates as they stood at some moment. A record made of halves of two versions, or
// of a rate where another one was in force, would be seen by whoever reads at that moment.
func (w *world) versions() {
	w.tb.Helper()
	text := func(v change.Value) string { return string(w.texts.AppendByValue(nil, v)) }
	any := func(table string, is func(values) bool) bool {
		for _, part := range w.logs["psa.public."+table].parts {
			if slices.ContainsFunc(part, func(r record) bool { return r.row != nil && is(r.row) }) {
				return true
			}
		}
		return false
	}
	// Whether a rate of this much was at some moment the one of its partition. In the other
	// partitions there may have been none at that moment: topics are read side by side.
	rated := func(e values, currency string, cost int64) bool {
		for _, part := range w.logs["psa.public.rate"].parts {
			rows := map[string]values{}
			for _, r := range part {
				if rows[r.key] = r.row; r.row == nil {
					delete(rows, r.key)
				}
				if best, agrees := w.inForce(rows, e, currency); agrees && small(best["rate"])*hours(e) == cost {
					return true
				}
			}
		}
		return false
	}
	for _, part := range w.logs["x.cost"].parts {
		for _, rec := range part {
			c := rec.row
			if c == nil || c["cost"].IsNull() {
				continue
			}
			w.costed++
			if !any("entry", func(e values) bool {
				return fmt.Sprintf("e-%s/%s", text(e["id"]), text(e["kind"])) == rec.key && !e["deleted"].Bool() && hours(e) == small(c["hours"]) &&
					any("task", func(t values) bool {
						return text(t["id"]) == text(c["task"]) && any("project", func(p values) bool {
							return text(t["project_id"]) == text(p["id"]) && text(p["name"]) == text(c["project"]) && text(p["currency"]) == text(c["currency"])
						})
					}) &&
					(c["person"].IsNull() || any("person", func(p values) bool {
						return text(p["id"]) == text(change.DecimalValue(small(e["person_id"])/100, 0)) && text(p["name"]) == text(c["person"])
					})) &&
					rated(e, text(c["currency"]), small(c["cost"]))
			}) {
				w.tb.Errorf("%s was given what no versions of its rows say: %s", rec.key, w.show(map[string]values{rec.key: c}, w.logs["x.cost"].table))
			}
		}
	}
}

// hours are an entry's hours in millionths.
func hours(e values) int64 { return int64(e["hours"].Float64() * 1_000_000) }

func small(v change.Value) int64 {
	n, _ := v.Small()
	return n
}

// anyOrder runs one seed to its end and compares.
func anyOrder(t testing.TB, addr string, seed uint64, flushPerMille int) *world {
	ctx := t.Context()
	rules, all, raw := firm(t)
	w := newWorld(t, addr, seed, rules, all, raw...)
	w.begin()
	for i := range 50 {
		for range w.rng.IntN(4) {
			w.mutate()
		}
		flushes := flushPerMille
		if i%10 > 5 {
			flushes = 0 // long enough for something to be given
		}
		w.step(ctx, 6, flushes, false)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	w.drain(ctx)
	w.compare()
	w.versions()
	if t.Failed() {
		t.Fatalf("seed %d: %v", seed, w.errs)
	}
	return w
}

// Whatever order the rows of all tables arrive in, wherever batches are cut,
// transactions aborted, processes started again, partitions moved between up to three
// of them, their conversations with Redis interleaved, and Redis lost: the end is what
// the rows say. If it failed, a cost would be wrong until somebody touched its entry.
func TestLookupsInAnyOrder(t *testing.T) {
	for _, flush := range []int{0, 10} {
		t.Run(fmt.Sprintf("%d flushes per 1000 round trips", flush), func(t *testing.T) {
			addr := miniRedis(t).Options().Addr
			met, costed := map[string]int{}, 0
			for seed := range uint64(8) {
				w := anyOrder(t, addr, seed, flush)
				for id, n := range w.errs {
					met[id] += n
				}
				costed += w.costed
			}
			if t.Log(met, costed); costed < 40 {
				t.Errorf("%d records with a cost: this is about nothing", costed)
			}
			if flush > 0 && (met["TW-STATE-UNKNOWN"] == 0 || met["TW-STATE-LOST"] == 0) {
				t.Errorf("losses were never met: %v", met)
			}
		})
	}
}

// Rules that read canonical rows alone have no raw rows to keep: a group that reads
// nothing would halt the transform.
func TestRulesOfCanonicalRows(t *testing.T) {
	all, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	rules := mapping.Defaults()
	rules.Topics = []mapping.Topic{{
		From: "ps.time_entry", To: "ps.time_entry_costed", WaitingFor: "waiting_for",
		Lookups: map[string]join.Lookup{"project": {Topic: "ps.project", On: "project_id"}},
		Fields:  map[string]cfg.Scalar{"project_number": cfg.Text("project.number"), "currency": cfg.Text("project.currency")},
	}}
	specs, err := mapping.Groups(&pipeline.Env{Contracts: all}, "costed", rules, all, func(*join.Options, string, *join.Plan) {}, func(string) []int64 { return nil }, nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	var names []string
	for _, s := range specs {
		if names = append(names, s.Name); len(s.Topics) == 0 {
			t.Errorf("group %s reads nothing", s.Name)
		}
	}
	if want := []string{"costed.ps.time_entry_costed.right", "costed.ps.time_entry_costed"}; !slices.Equal(names, want) {
		t.Errorf("groups %v, want %v", names, want)
	}
}
