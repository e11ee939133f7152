package mapping_test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	cfg "github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// bills are invoices that have their lines in a column.
var bills = (&change.Table{
	Source: "erp", Schema: "public", Name: "bill", Topic: "erp.public.bill", OldFull: true,
	Columns: []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int},
		{Name: "lines", Type: "jsonb", Kind: change.JSON, Nullable: true},
		{Name: "project", Type: "text", Kind: change.String, Nullable: true},
	},
	Key: []int{0},
}).Index()

func bill(b *change.Batch, id int64, lines string) []change.Value {
	row := b.Row(3)
	row[0], row[2] = change.IntValue(id), b.SpanString(change.String, "P-1")
	switch lines {
	case "":
	case "unsent":
		row[1] = change.UnchangedValue()
	default:
		row[1] = b.SpanString(change.JSON, lines)
	}
	return row
}

// billRule gives a line per element: [["a", 5], …], its name and its amount.
func billRule() mapping.Topic {
	return mapping.Topic{From: bills.Topic, To: "ps.invoice_line", Each: "json(row.lines)", Key: theText(`"erp-" + string(row.id) + "-" + item[0]`), Fields: map[string]cfg.Scalar{
		"invoice_id": theText("erp-{id}"), "project_id": theText("project"), "quantity": theText("decimal(index)"), "unit_price": theText("decimal(item[1])"), "amount": theText("decimal(item[1])"),
	}}
}

func billed(t *testing.T, r mapping.Topic, fill func(b *change.Batch)) (got []string, rejected []error) {
	t.Helper()
	o := applied(t, rules(t, r), fill)
	for _, g := range o.got {
		got = append(got, strings.TrimPrefix(strings.TrimRight(strings.ReplaceAll(g, "?|", ""), "|"), "ps.invoice_line "))
	}
	return got, o.rejected
}

// Lost if this fails: lines of an invoice that are missing, or that stay in the
// revenue when they were taken out.
func TestEach(t *testing.T) {
	update := func(was, is string) func(b *change.Batch) {
		return func(b *change.Batch) {
			c := b.Append(bills, change.Update)
			c.Old, c.New = bill(b, 7, was), bill(b, 7, is)
		}
	}
	line := func(op, name string, index, amount int) string {
		return fmt.Sprintf("%s erp-7-%s|erp-7|P-1||%d|%d|%d", op, name, index, amount, amount)
	}
	where := billRule()
	where.Where = "item[1] != 0"
	for name, c := range map[string]struct {
		rule mapping.Topic
		fill func(b *change.Batch)
		want []string
	}{
		"created":     {billRule(), func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5], ["b", 6]]`) }, []string{line("c", "a", 0, 5), line("c", "b", 1, 6)}},
		"empty":       {billRule(), func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[]`) }, nil},
		"null":        {billRule(), func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, "") }, nil},
		"deleted":     {billRule(), func(b *change.Batch) { b.Append(bills, change.Delete).Old = bill(b, 7, `[["a", 5], ["b", 6]]`) }, []string{"d erp-7-a", "d erp-7-b"}},
		"the same":    {billRule(), update(`[["a", 5]]`, `[["a", 5]]`), []string{line("u", "a", 0, 5)}},
		"vanished":    {billRule(), update(`[["a", 5], ["b", 6], ["c", 7]]`, `[["d", 8], ["b", 9]]`), []string{"d erp-7-a", "d erp-7-c", line("u", "d", 0, 8), line("u", "b", 1, 9)}},
		"all":         {billRule(), update(`[["a", 5], ["b", 6]]`, ""), []string{"d erp-7-a", "d erp-7-b"}},
		"come back":   {billRule(), update("", `[["a", 5]]`), []string{line("u", "a", 0, 5)}},
		"not sent":    {billRule(), update(`[["a", 5]]`, "unsent"), []string{line("u", "a", 0, 5)}},
		"was no list": {billRule(), update(`{}`, `[["a", 5]]`), []string{line("u", "a", 0, 5)}}, // Remedy: TW-MAP-EXPR
		"had no key":  {billRule(), update(`[["a", 5], [7, 5], ["c", 6]]`, `[["b", 6]]`), []string{"d erp-7-a", "d erp-7-c", line("u", "b", 0, 6)}},
		"two before":  {billRule(), update(`[["a", 5], ["a", 6]]`, `[["b", 6]]`), []string{"d erp-7-a", line("u", "b", 0, 6)}},
		"left out":    {where, update(`[["a", 5], ["b", 6]]`, `[["a", 0], ["b", 6]]`), []string{"d erp-7-a", line("u", "b", 1, 6)}},
		"was let in":  {where, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[["a", 0]]`) }, []string{"d erp-7-a"}},
		"out and in":  {where, update(`[["a", 5]]`, `[["a", 0], ["a", 5]]`), []string{line("u", "a", 1, 5)}},
		"another row": {billRule(), func(b *change.Batch) {
			c := b.Append(bills, change.Update)
			c.Old, c.New = bill(b, 6, `[["a", 5]]`), bill(b, 7, `[["a", 5]]`)
		}, []string{"d erp-6-a", line("u", "a", 0, 5)}},
	} {
		t.Run(name, func(t *testing.T) {
			got, rejected := billed(t, c.rule, c.fill)
			want(t, got, c.want...)
			if len(rejected) > 0 {
				t.Errorf("rejected: %v", rejected)
			}
		})
	}
}

// A row is taken as a whole: half an invoice is another invoice.
func TestEachRejects(t *testing.T) {
	long := "[" + strings.Repeat(`["a",1],`, expr.MaxItems) + `["a",1]]`
	for name, c := range map[string]struct {
		code problem.Code
		fill func(b *change.Batch)
		says string
	}{
		"two of one key": {mapping.ErrSameKey, func(b *change.Batch) {
			b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5], ["b", 6], ["a", 7]]`)
		}, `index 2 of the list: the key of ps.invoice_line is "erp-7-a", that of an element before it`},
		"one has no value": {mapping.ErrExpr, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5], ["b", "x"]]`) }, "index 1 of the list: field unit_price"},
		"one has no key":   {mapping.ErrNull, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[[null, 5]]`) }, "index 0 of the list: field invoice_line_id"},
		"no list":          {mapping.ErrExpr, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `{}`) }, "the list of ps.invoice_line, json(row.lines): each is a list, this is a map"},
		"too long":         {mapping.ErrExpr, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, long) }, "has 10001 elements, more than 10000"},
		"no old row":       {mapping.ErrUnchanged, func(b *change.Batch) { b.Append(bills, change.Update).New = bill(b, 7, `[]`) }, "the old row"},
		"old list not known": {mapping.ErrUnchanged, func(b *change.Batch) {
			c := b.Append(bills, change.Update)
			c.Old, c.New = bill(b, 7, "unsent"), bill(b, 7, `[]`)
		}, "the old value of lines"},
		"list not known":       {mapping.ErrUnchanged, func(b *change.Batch) { b.Append(bills, change.Update).New = bill(b, 7, "unsent") }, "column lines, needed for the list of ps.invoice_line"},
		"delete without":       {mapping.ErrUnchanged, func(b *change.Batch) { b.Append(bills, change.Delete).Old = bill(b, 7, "unsent") }, "column lines"},
		"delete of no list":    {mapping.ErrExpr, func(b *change.Batch) { b.Append(bills, change.Delete).Old = bill(b, 7, "{}") }, "the list of ps.invoice_line"},
		"delete without a row": {mapping.ErrUnchanged, func(b *change.Batch) { b.Append(bills, change.Delete) }, "the old row"},
	} {
		t.Run(name, func(t *testing.T) {
			got, rejected := billed(t, billRule(), func(b *change.Batch) {
				c.fill(b)
				b.Append(bills, change.Create).New = bill(b, 8, `[["z", 1]]`) // goes on
			})
			if len(rejected) != 1 || !problem.Has(rejected[0], c.code) || !strings.Contains(rejected[0].Error(), c.says) {
				t.Errorf("rejected %v, want %s with %q", rejected, c.code.ID, c.says)
			}
			want(t, got, "c erp-8-z|erp-8|P-1||0|1|1")
		})
	}
	// Remedy: TW-MAP-SAME-KEY
	r := billRule()
	r.Key = theText(`"erp-" + string(row.id) + "-" + string(index)`)
	got, rejected := billed(t, r, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5], ["a", 7]]`) })
	want(t, got, "c erp-7-0|erp-7|P-1||0|5|5", "c erp-7-1|erp-7|P-1||1|7|7")
	if len(rejected) > 0 {
		t.Errorf("keyed by index: %v", rejected)
	}
	// An empty text has one element, null has none.
	r.Each = `row.project.split(",")`
	for _, f := range []string{"unit_price", "amount"} {
		r.Fields[f] = theText("=1")
	}
	got, rejected = billed(t, r, func(b *change.Batch) {
		c := b.Append(bills, change.Update)
		c.Old, c.New = bill(b, 7, ""), bill(b, 7, "")
		c.Old[2], c.New[2] = b.SpanString(change.String, ""), change.NullValue()
	})
	want(t, got, "d erp-7-0")
	if len(rejected) > 0 {
		t.Errorf("an empty text: %v", rejected)
	}
	r = billRule()
	r.Key = theText(`"erp-" + string(row.id) + "-" + string(index)`)
	// A row that its condition leaves out need have no list.
	r.Where = "row.lines != null && row.lines != \"{}\""
	if got, rejected := billed(t, r, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, "{}") }); len(got)+len(rejected) > 0 {
		t.Errorf("%q, %v", got, rejected)
	}
}

// Would be lost: the other records of a row of which one cannot be made, or half
// of them would be there.
func TestEachBesideOtherRules(t *testing.T) {
	whole := mapping.Topic{From: bills.Topic, To: "firm.shift", Key: theText("bill-{id}")}
	s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{whole, billRule()}}, catalogue(t, shift), nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	o := applied(t, s, func(b *change.Batch) {
		b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5], ["b", 6]]`)
		b.Append(bills, change.Create).New = bill(b, 8, `[["a", 5], ["b", "x"]]`)
		b.Append(bills, change.Delete).Old = bill(b, 9, `[["a", 5]]`)
	})
	var got []string
	for _, g := range o.got {
		got = append(got, strings.SplitN(g, "|", 2)[0])
	}
	want(t, got, "firm.shift c bill-7", "ps.invoice_line c erp-7-a", "ps.invoice_line c erp-7-b", "firm.shift d bill-9", "ps.invoice_line d erp-9-a")
	if len(o.rejected) != 1 {
		t.Errorf("rejected: %v", o.rejected)
	}
}

// Told before the first row: the list, the names, and a key that does not tell
// the elements apart.
func TestMistakesOfEach(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*mapping.Topic)
		says []string
	}{
		"key of the row":     {func(r *mapping.Topic) { r.Key = theText("erp-{id}") }, []string{"topics[0].key", "the key names neither item nor index", `"erp-public-bill-" + string(row.id) + "-" + string(index)`}},
		"key by itself":      {func(r *mapping.Topic) { r.Key = cfg.Scalar{} }, []string{"topics[0].fields.invoice_line_id", "neither item nor index"}},
		"an item of its own": {func(r *mapping.Topic) { r.Key = theText(`["a"].map(item, item + string(row.id))[0]`) }, []string{"neither item nor index"}},
		"index alone":        {func(r *mapping.Topic) { r.Key = theText(`"x-" + string(index)`) }, []string{"topics[0].key", "names index and no column"}},
		"no list":            {func(r *mapping.Topic) { r.Each = "1 + 2" }, []string{"topics[0].each@1:1", "each is a list, this is a int"}},
		"item of nothing":    {func(r *mapping.Topic) { r.Each = "item.lines" }, []string{"topics[0].each@1:1", "there is no item here"}},
		"without each":       {func(r *mapping.Topic) { r.Each = "" }, []string{"topics[0].key@1:33", "there is no item here", "fields.quantity@1:9", "there is no index here"}},
		"all at once":        {func(r *mapping.Topic) { r.Each, r.Where, r.Key = "[1", "itme > 1", theText("id") }, []string{"topics[0].each@1:", "there is no itme here", "neither item nor index"}},
		"types":              {func(r *mapping.Topic) { r.Each, r.Where = `"a,b".split(",")`, "item > 1" }, []string{"where@1:6", "> does not go with (string, int)"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := billRule()
			c.edit(&r)
			_, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{r}}, nil, nil)
			all := problem.Format(err)
			for _, s := range c.says {
				if !strings.Contains(all, s) {
					t.Errorf("it does not say %q:\n%s", s, all)
				}
			}
		})
	}
	// Against the table.
	r := billRule()
	r.Each = "row.lines"
	b := change.Get()
	b.Append(bills, change.Create).New = bill(b, 7, "[]")
	err := rules(t, r).Apply(t.Context(), b, &outlet{})
	if !problem.Has(err, mapping.ErrColumn) || !strings.Contains(problem.Format(err), "each is a list, this is a string") {
		t.Error(problem.Format(err))
	}
	// Keys that begin with a text of their own do not meet those of another rule.
	other := billRule()
	other.From, other.Key = "old.public.bill", theText(`"old-" + string(row.id) + "-" + item[0]`)
	if _, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{billRule(), other}}, nil, nil); err != nil {
		t.Error(problem.Format(err))
	}
}

// A list may be so large that an update does not send it: that is found before the
// first one.
func TestDoctorOfEach(t *testing.T) {
	pack, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for full, want := range map[bool]string{true: "", false: "in lines, project as it is comes without it"} {
		table := *bills
		table.OldFull = full
		if f := findings(t, pack, table.Index(), billRule())[0]; f.Err != nil || !strings.Contains(f.Advice, want) || (f.Advice == "") != full {
			t.Errorf("full %v: %q, %v", full, f.Advice, f.Err)
		}
	}
}

func TestSuiteOfEach(t *testing.T) {
	feed := func(lists ...string) *change.Batch {
		f := pipelinetest.FeedOf(bills)
		f.Fill = func(b *change.Batch, row []change.Value, _, version int) {
			row[1] = b.SpanString(change.JSON, lists[version-1])
		}
		b := change.Get()
		for k := range 3 {
			for v := range lists {
				c := f.Put(b, k, v+1)
				c.Old = append(b.Row(0), c.New...)
			}
		}
		return f.Close(b, 0)
	}
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New:     func(testing.TB) pipeline.Stage { return rules(t, billRule()) },
		Input:   func(testing.TB) *change.Batch { return feed(`[["a", 1], ["b", 2]]`, `[["b", 3]]`) },
		Bad:     func(testing.TB) *change.Batch { return feed(`[["a", 1], ["a", 2]]`) },
		Rejects: 3,
	})
}

// The key of an element is in a message only where its field's sensitivity allows it.
func TestEachHidesKeys(t *testing.T) {
	for _, sensitivity := range []string{"internal", "confidential", "restricted"} {
		all := catalogue(t, strings.Replace(shift, `"doc": "Id.", "owner": "people", "sensitivity": "internal"`, `"doc": "Id.", "owner": "people", "sensitivity": "`+sensitivity+`"`, 1))
		r := mapping.Topic{From: bills.Topic, To: "firm.shift", Each: "json(row.lines)", Key: theText("string(row.id) + item[0]")}
		s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{r}}, all, nil)
		if err != nil {
			t.Fatal(problem.Format(err))
		}
		o := applied(t, s, func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, `[["secret"], ["secret"]]`) })
		if len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrSameKey) || strings.Contains(o.rejected[0].Error(), "secret") != (sensitivity == "internal") {
			t.Errorf("%s: %v", sensitivity, o.rejected)
		}
	}
}

// Whatever became of a row, its topic holds the elements of its last version and
// no other, and no key twice in what one change gives.
func TestEachHoldsWhatTheRowHas(t *testing.T) {
	r := billRule()
	r.Where = "item[1] != 0"
	s := rules(t, r)
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.Custom(func(t *rapid.T) string {
			names := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 0, 4, rapid.ID[string]).Draw(t, "names")
			for i, n := range names {
				names[i] = fmt.Sprintf(`[%q, %d]`, n, rapid.IntRange(0, 2).Draw(t, "amount"))
			}
			return "[" + strings.Join(names, ",") + "]"
		})
		there, was := map[string]string{}, ""
		for range rapid.IntRange(1, 6).Draw(t, "versions") {
			is := list.Draw(t, "list")
			if was != "" && rapid.IntRange(0, 5).Draw(t, "deleted") == 0 {
				is = ""
			}
			b, o := change.Get(), &outlet{}
			switch {
			case was == "" && is == "":
			case was == "":
				b.Append(bills, change.Create).New = bill(b, 7, is)
			case is == "":
				b.Append(bills, change.Delete).Old = bill(b, 7, was)
			default:
				c := b.Append(bills, change.Update)
				c.Old, c.New = bill(b, 7, was), bill(b, 7, is)
			}
			if err := s.Apply(context.Background(), b, o); err != nil || len(o.rejected) > 0 {
				t.Fatal(err, o.rejected)
			}
			seen := map[string]bool{}
			for _, g := range o.got {
				f := strings.Split(strings.TrimPrefix(g, "ps.invoice_line "), "|")
				key := f[0][2:]
				if seen[key] {
					t.Fatalf("%s twice: %q", key, o.got)
				}
				if seen[key] = true; f[0][0] == 'd' {
					delete(there, key)
				} else {
					there[key] = f[len(f)-2]
				}
			}
			want := map[string]string{}
			for _, m := range regexp.MustCompile(`"(.)", (\d)`).FindAllStringSubmatch(is, -1) {
				if m[2] != "0" {
					want["erp-7-"+m[1]] = m[2]
				}
			}
			if !maps.Equal(there, want) {
				t.Fatalf("from %s to %s: %v, want %v (%q)", was, is, there, want, o.got)
			}
			was = is
		}
	})
}
