package mapping_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
	cfg "github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// lines are the time entries of an application that keeps hours as floats,
// statuses as numbers, and clocks without a zone.
var lines = (&change.Table{
	Source: "psa", Schema: "public", Name: "line", Topic: "psa.public.line", OldFull: true,
	Columns: []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int},
		{Name: "user_id", Type: "bigint", Kind: change.Int},
		{Name: "project", Type: "text", Kind: change.String},
		{Name: "hours", Type: "double precision", Kind: change.Float64, Nullable: true},
		{Name: "status", Type: "bigint", Kind: change.Int, Nullable: true},
		{Name: "made", Type: "timestamp without time zone", Kind: change.Timestamp},
		{Name: "comments", Type: "text", Kind: change.String, Nullable: true},
		{Name: "deleted", Type: "boolean", Kind: change.Bool},
	},
	Key: []int{0},
}).Index()

func line(b *change.Batch, id int64) []change.Value {
	row := b.Row(8)
	row[0], row[1], row[2], row[3], row[4] = change.IntValue(id), change.IntValue(7), b.SpanString(change.String, "P-1"), change.Float64Value(1.35), change.IntValue(2)
	row[5], row[7] = change.TimestampValue((change.Days(2026, 3, 31)*86400+23*3600)*1_000_000), change.BoolValue(false)
	return row
}

// codeList writes a list for a test.
func codeList(t *testing.T, text string) codes.Lists {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "status.csv"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := codes.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const statuses = "code,value\n1,draft\n2,approved\n"

// entryRule maps lines without Go code.
func entryRule() mapping.Topic {
	return mapping.Topic{From: lines.Topic, To: "ps.time_entry", Where: "!row.deleted", Fields: map[string]cfg.Scalar{
		"time_entry_id": theText("line-{id}"), "resource_id": theText("user_id"), "project_id": theText(`after(row.project, "P-")`),
		"task_number": theText("=none"), "work_date": theText("day(row.made)"), "hours": theText(`round(decimal(row.hours), 2, "half_even")`),
		"billable": {Kind: cfg.BoolScalar, Text: "true"}, "status": theText(`code("status", row.status)`), "note": theText("comments"),
		"bill_rate": {Kind: cfg.NumberScalar, Text: "120.50"}, "created_at": theText(`moment(row.made, "Europe/Berlin")`), "updated_at": theText("=2026-01-01T00:00:00Z"),
	}}
}

func rules(t *testing.T, rs ...mapping.Topic) *mapping.Stage {
	t.Helper()
	s, err := mapping.New("canonical", mapping.Config{Topics: rs}, nil, codeList(t, statuses))
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	return s
}

func applied(t *testing.T, s *mapping.Stage, fill func(b *change.Batch)) *outlet {
	t.Helper()
	b, o := change.Get(), &outlet{}
	fill(b)
	if err := s.Apply(t.Context(), b, o); err != nil {
		t.Fatal(problem.Format(err))
	}
	return o
}

// What an application keeps in another form fills the contract exactly.
func TestExpressionsFillAContract(t *testing.T) {
	o := applied(t, rules(t, entryRule()), func(b *change.Batch) {
		b.Append(lines, change.Create).New = line(b, 17)
	})
	want(t, o.got, "ps.time_entry c line-17|7|1|none|2026-03-31|1.35|t|approved||120.50|2026-03-31 21:00:00+00|2026-01-01 00:00:00+00|")
}

// Lost if this fails: a row that left the condition stays in every dashboard, or
// one that the condition never let in is written.
func TestWhere(t *testing.T) {
	gone := func(b *change.Batch, id int64) []change.Value {
		row := line(b, id)
		row[7] = change.BoolValue(true)
		return row
	}
	o := applied(t, rules(t, entryRule()), func(b *change.Batch) {
		c := b.Append(lines, change.Update)
		c.Old, c.New = line(b, 1), gone(b, 1)
		b.Append(lines, change.Read).New = gone(b, 2) // another version of the rule may have let it in
		c = b.Append(lines, change.Update)
		c.Old, c.New = gone(b, 3), line(b, 3)
		b.Append(lines, change.Delete).Old = gone(b, 4)
		c = b.Append(lines, change.Update) // its key changed, and it left
		c.Old, c.New = line(b, 5), gone(b, 6)
		c = b.Append(lines, change.Update) // what the update did not send is in its old row
		c.Old, c.New = gone(b, 7), line(b, 7)
		c.New[7] = change.UnchangedValue()
		c = b.Append(lines, change.Update)
		c.New = line(b, 8)
		c.New[7] = change.UnchangedValue()
	})
	var got []string
	for _, g := range o.got {
		f := strings.SplitN(g, "|", 2)
		got = append(got, strings.TrimPrefix(f[0], "ps.time_entry "))
	}
	want(t, got, "d line-1", "d line-2", "u line-3", "d line-4", "d line-5", "d line-6", "d line-7")
	if len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrUnchanged) || !strings.Contains(o.rejected[0].Error(), "column deleted, needed for the condition") {
		t.Errorf("rejected: %v", o.rejected)
	}
}

// Would be parked for ever: rows that the condition leaves out because they have
// no key. Their old key is deleted all the same.
func TestWhereLeavesOutWhatHasNoKey(t *testing.T) {
	r := entryRule()
	r.Where = "row.comments != null"
	for name, key := range map[string]string{"null": "{comments}/{id}", "no value": `(row.comments != null ? row.comments : after(row.project, "x")) + "/" + string(row.id)`} {
		r.Fields["time_entry_id"] = theText(key)
		named := func(b *change.Batch, id int64, comments string) []change.Value {
			row := line(b, id)
			row[6] = change.NullValue()
			if comments != "" {
				row[6] = b.SpanString(change.String, comments)
			}
			return row
		}
		fill := func(b *change.Batch) {
			b.Append(lines, change.Create).New = named(b, 1, "")
			for _, was := range [][2]string{{"", ""}, {"A", ""}, {"", "B"}, {"C", "D"}} {
				c := b.Append(lines, change.Update)
				c.Old, c.New = named(b, 2, was[0]), named(b, 2, was[1])
			}
			b.Append(lines, change.Delete).Old = named(b, 3, "")
			b.Append(lines, change.Delete).Old = named(b, 4, "E")
		}
		one := applied(t, rules(t, r), fill)
		two := applied(t, rules(t, r, peopleRule(r.Where)), fill) // whose keys are numbers
		for _, o := range []*outlet{one, two} {
			var got []string
			for _, g := range o.got {
				if f, is := strings.CutPrefix(g, "ps.time_entry "); is {
					got = append(got, f[:3])
				}
			}
			want(t, got, "d A", "u B", "d C", "u D", "d E")
			if len(o.rejected) > 0 {
				t.Errorf("%s: rejected %v", name, o.rejected)
			}
		}
	}
}

// peopleRule makes the people of lines.
func peopleRule(where string) mapping.Topic {
	return mapping.Topic{From: lines.Topic, To: "ps.resource", Where: where, Fields: map[string]cfg.Scalar{
		"resource_id": theText("line-{user_id}/{id}"), "number": theText("user_id"), "first_name": theText(`coalesce(row.comments, "?")`), "last_name": theText("user_id"), "legal_entity": theText("=DE"), "email": theText("=a@b.example"),
		"active": {Kind: cfg.BoolScalar, Text: "true"}, "updated_at": theText(`moment(row.made, "UTC")`),
	}}
}

// An application that keeps no time of the last change still fills the contract:
// by the commit. What another version's records had and the table has not is null.
func TestCommitTimeWhereTheSourceHasNone(t *testing.T) {
	r := entryRule()
	for _, field := range []string{"task_number", "created_at", "updated_at"} {
		delete(r.Fields, field)
	}
	commit := (change.Days(2026, 4, 1)*86400 + 3600) * 1_000_000
	o := applied(t, rules(t, r), func(b *change.Batch) {
		c := b.Append(lines, change.Create)
		c.New, c.Time = line(b, 17), commit
		b.Append(lines, change.Create).New = line(b, 18)
	})
	want(t, o.got, "ps.time_entry c line-17|7|1||2026-03-31|1.35|t|approved||120.50||2026-04-01 01:00:00+00|")
	if len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrNull) || !strings.Contains(o.rejected[0].Error(), "and the change no time") {
		t.Errorf("without a time: %v", o.rejected)
	}
	r.Fields["updated_at"] = theText(`row.deleted ? moment(row.made, "UTC") : null`)
	o = applied(t, rules(t, r), func(b *change.Batch) {
		c := b.Append(lines, change.Create)
		c.New, c.Time = line(b, 17), commit
	})
	if len(o.got) != 1 || !strings.Contains(o.got[0], "|2026-04-01 01:00:00+00|") {
		t.Errorf("a null of its own: %q, %v", o.got, o.rejected)
	}
}

// Several rules read one topic: a row becomes all of it or, when one of them
// cannot, none.
func TestSeveralRulesOfOneTopic(t *testing.T) {
	people := peopleRule("")
	s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{entryRule(), people}}, nil, codeList(t, statuses))
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	if got := s.From(); len(got) != 1 {
		t.Errorf("it reads %v", got)
	}
	o := applied(t, s, func(b *change.Batch) {
		b.Append(lines, change.Create).New = line(b, 1)
		bad := b.Append(lines, change.Create)
		bad.New = line(b, 2)
		bad.New[4] = change.IntValue(9)
		c := b.Append(lines, change.Update)
		c.Old, c.New = line(b, 3), line(b, 3)
		c.Old[1] = change.IntValue(6)
	})
	var got []string
	for _, g := range o.got {
		f := strings.SplitN(g, "|", 2)
		got = append(got, f[0])
	}
	want(t, got, "ps.time_entry c line-1", "ps.resource c line-7/1", "ps.time_entry u line-3", "ps.resource d line-6/3", "ps.resource u line-7/3")
	// Remedy: TW-MAP-EXPR
	if len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrExpr) || !strings.Contains(o.rejected[0].Error(), `status.csv) does not have it: "9"`) {
		t.Errorf("rejected: %v", o.rejected)
	}
	mended, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{entryRule(), people}}, nil, codeList(t, statuses+"9,rejected\n"))
	if err != nil {
		t.Fatal(err)
	}
	o = applied(t, mended, func(b *change.Batch) {
		c := b.Append(lines, change.Create)
		c.New = line(b, 2)
		c.New[4] = change.IntValue(9)
	})
	if len(o.rejected) > 0 || len(o.got) != 2 || !strings.Contains(o.got[0], "|rejected|") {
		t.Errorf("after the list was mended: %q, %v", o.got, o.rejected)
	}
}

// A value that not everybody may see is in no message.
func TestFailuresHideValues(t *testing.T) {
	r := entryRule()
	r.Fields["note"] = theText(`after(row.comments, "x")`) // confidential in its contract
	r.Fields["task_number"] = theText(`after(row.project, "x")`)
	for field, hidden := range map[string]bool{"note": true, "task_number": false} {
		one := entryRule()
		one.Fields[field] = r.Fields[field]
		o := applied(t, rules(t, one), func(b *change.Batch) {
			c := b.Append(lines, change.Create)
			c.New = line(b, 1)
			c.New[2], c.New[6] = b.SpanString(change.String, "P-secret"), b.SpanString(change.String, "secret")
		})
		if len(o.rejected) != 1 || strings.Contains(o.rejected[0].Error(), "secret") == hidden {
			t.Errorf("%s: %v", field, o.rejected)
		}
	}
}

// All mistakes of a configuration are told at once, each with its place.
func TestMistakesOfRules(t *testing.T) {
	r := entryRule()
	r.Where = "row.deleted = false"
	for field, s := range map[string]cfg.Scalar{
		"hours": theText(`roudn(row.hours, 2, "up")`), "status": theText(`code("status", row.status)`), "work_date": theText("=2026-02-30"),
		"billable": {Kind: cfg.NumberScalar, Text: "1"}, "resource_id": {}, "project_id": theText(`code("statsu", row.id)`),
		"created_at": {Kind: cfg.BoolScalar, Text: "true"},
	} {
		r.Fields[field] = s
	}
	_, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{r}}, nil, codeList(t, "code,value\n1,drfat\n"))
	all := problem.Format(err)
	for _, says := range []string{
		"topics[0].where@1:13", "fields.hours@1:6", "Did you mean round?", `status.csv: field status of ps.time_entry is "drfat", none of draft`, `did you mean "draft"`,
		`"2026-02-30" is no date`, `"1" is no boolean, which field billable is`, "field resource_id is never null", `there is no code list "statsu"`, `"true" is no `,
	} {
		if !strings.Contains(all, says) {
			t.Errorf("it does not say %q", says)
		}
	}
	if t.Failed() {
		t.Log(all)
	}
}

// A column of another type is told with the expression that makes the field of it.
func TestColumnsOfAnotherType(t *testing.T) {
	r := entryRule()
	r.Fields["hours"], r.Fields["created_at"], r.Fields["work_date"] = theText("hours"), theText("made"), theText("day(row.maed)")
	b := change.Get()
	b.Append(lines, change.Create).New = line(b, 1)
	err := rules(t, r).Apply(t.Context(), b, &outlet{})
	all := problem.Format(err)
	for _, says := range []string{`round(decimal(row.hours), 6, "half_even")`, `moment(row.made, "UTC")`, "fields.work_date@1:8", "Did you mean made?"} {
		if !strings.Contains(all, says) {
			t.Errorf("it does not say %q:\n%s", says, all)
		}
	}
}

// Lost if this fails: what was made of a truncated table stays, or what others
// gave goes with it.
func TestTruncate(t *testing.T) {
	work := entryRule()
	work.Where = "row.hours > 1.0"
	work.Fields["time_entry_id"] = theText("work-{id}")
	s := rules(t, entryRule(), work)
	o := applied(t, s, func(b *change.Batch) {
		b.Append(lines, change.Create).New = line(b, 1)
		b.Append(lines, change.Truncate)
		b.Append(lines, change.Create).New = line(b, 2)
	})
	var got []string
	for _, g := range o.got {
		f := strings.SplitN(g, "|", 2)
		got = append(got, strings.TrimSpace(f[0]))
	}
	want(t, got, "ps.time_entry c line-1", "ps.time_entry c work-1", "ps.time_entry t", "ps.time_entry t", "ps.time_entry c line-2", "ps.time_entry c work-2")
}

// Lost if this fails: two rows hand a key to each other, and the delete of the one
// comes after the record of the other.
func TestKeysHoldThatOfTheTable(t *testing.T) {
	each := entryRule()
	each.Each = "[string(row.id), row.project]"
	fails := func(r mapping.Topic, key string) error {
		r.Fields["time_entry_id"] = theText(key)
		b := change.Get()
		b.Append(lines, change.Create).New = line(b, 1)
		return rules(t, r).Apply(t.Context(), b, &outlet{})
	}
	for key, r := range map[string]mapping.Topic{"user-{user_id}": entryRule(), `"of-" + item`: each, `"user-" + string(row.user_id)`: entryRule()} {
		err := fails(r, key)
		if !problem.Has(err, mapping.ErrKey) || !strings.Contains(problem.Format(err), "transforms.canonical.topics[0].fields.time_entry_id") || !strings.Contains(err.Error(), "does not say id") {
			t.Errorf("%s: %v", key, err)
		}
	}
	// Remedy: TW-MAP-KEY
	for key, r := range map[string]mapping.Topic{"{user_id}/{id}": entryRule(), `"of-" + string(row.id) + "-" + item`: each} {
		if err := fails(r, key); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// catalogue is the pack with contracts of a firm.
func catalogue(t *testing.T, contracts ...string) avro.Catalogue {
	t.Helper()
	dir := t.TempDir()
	for i, text := range contracts {
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))+".avsc"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := avro.LoadCatalogue(dir)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	return all
}
