package expr

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

// What a list has more or less than its row says is a record too many or lost.
func TestList(t *testing.T) {
	b := change.Get()
	defer b.Release()
	row := entry(b)
	want := change.Column{Name: "x", Type: "string", Kind: change.String, Nullable: true}
	for list, of := range map[string]struct{ item, want string }{
		`json("[{\"n\": 1.50}, {\"n\": 2}]")`:   {`string(index) + ":" + string(item.n * 2)`, "0:3.00 1:4"},
		`"a, b,,".split(",").map(s, s.trim())`:  {`item`, "a b  "},
		`["x", "yz"]`:                           {`item + string(row.id)`, "x17 yz17"},
		`[row.id, row.id + 1]`:                  {`string(item - row.id)`, "0 1"},
		`[]`:                                    {`string(index)`, ""},
		`null`:                                  {`string(index)`, ""},
		`json("null")`:                          {`string(index)`, ""},
		`row.id > 5 ? null : json("[1]")`:       {`string(index)`, ""},
		`json("[[1, 2], [3]]")`:                 {`string(item.map(x, x + index).size())`, "2 1"},
		`json("{\"lines\": [null]}").lines`:     {`item == null ? "none" : "some"`, "none"},
		`json("[1, 2]").filter(item, item > 1)`: {`string(item)`, "2"},
	} {
		l, bad := List(list, scope())
		if len(bad) > 0 {
			t.Errorf("%s: %+v", list, bad)
			continue
		}
		s := scope()
		s.Each, s.List = true, l
		p, bad := Compile(of.item, s, &want)
		if len(bad) > 0 {
			t.Errorf("%s: %+v", of.item, bad)
			continue
		}
		r := &Row{Batch: b, Of: row}
		n, err := l.Items(r)
		if err != nil {
			t.Errorf("%s: %v", list, err)
		}
		var got []string
		for i := range n {
			r.Take(i)
			v, err := p.Value(r, &want)
			if err != nil {
				t.Errorf("%s: %v", of.item, err)
			}
			got = append(got, string(b.AppendText(nil, v)))
		}
		if strings.Join(got, " ") != of.want {
			t.Errorf("%s of %s: %q, want %q", of.item, list, got, of.want)
		}
	}
}

// A list that is none, or without end, is told; and names that are not there.
func TestMistakesOfLists(t *testing.T) {
	b := change.Get()
	defer b.Release()
	r := &Row{Batch: b, Of: entry(b)}
	if _, bad := List(`row.comments`, scope()); len(bad) != 1 || bad[0].Text != "each is a list, this is a string" {
		t.Errorf("%+v", bad)
	}
	long := "json(\"[" + strings.Repeat("1,", MaxItems) + "1]\")"
	for list, says := range map[string]string{`json("{}")`: "each is a list, this is a map", long: fmt.Sprintf("the list has %d elements, more than %d", MaxItems+1, MaxItems), `json("{}").lines`: "no such key"} {
		p, bad := List(list, scope())
		if len(bad) > 0 {
			t.Fatal(bad)
		}
		if n, err := p.Items(r); n != 0 || err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.30s: %d, %v", list, n, err)
		}
	}
	// What is made of a null is null; what does not go is told.
	none := &Row{Batch: b, Of: entry(b)}
	none.Of[entries.Column("comments")] = change.NullValue()
	for list, fails := range map[string]bool{`json(row.comments).lines`: false, `row.comments.split(",")`: false, `row.id > 1 ? row.comments.split(",") : []`: true, `json(string(row.id)).lines`: true} {
		p, bad := List(list, scope())
		if len(bad) > 0 {
			t.Fatal(bad)
		}
		if n, err := p.Items(none); n != 0 || (err != nil) != fails {
			t.Errorf("%s of a null: %d, %v", list, n, err)
		}
	}
	for in, says := range map[string]string{`item > 1`: "there is no item here", `index == 0`: "there is no index here"} {
		if _, bad := Condition(in, scope()); len(bad) != 1 || bad[0].Text != says || !strings.Contains(bad[0].Remedy, "a rule's each") {
			t.Errorf("%s: %+v", in, bad)
		}
	}
	l, _ := List(`["a"]`, scope())
	s := scope()
	s.Each, s.List = true, l
	if _, bad := Condition(`item > 1`, s); len(bad) != 1 || bad[0].Text != "> does not go with (string, int)" {
		t.Errorf("%+v", bad)
	}
}

// By what an expression names it is told whether each element has its own key.
func TestWhatAnExpressionNames(t *testing.T) {
	want := change.Column{Name: "x", Type: "string", Kind: change.String, Nullable: true}
	for in, names := range map[string]string{
		`"a-" + string(row.id) + string(index)`:          "row index a-",
		`item.id`:                                        "item ",
		`[1].map(item, item + 1)[0]`:                     "",
		`[item].map(item, item + row.id)[0]`:             "row item ",
		`("b" + row.comments) + "c"`:                     "row b",
		`row.id > 1 ? "x" : "y"`:                         "row ",
		`[1].all(index, index > 0) ? string(index) : ""`: "index ",
	} {
		s := scope()
		s.Each = true
		p, bad := Compile(in, s, &want)
		if len(bad) > 0 {
			t.Errorf("%s: %+v", in, bad)
			continue
		}
		got := ""
		if p.NamesRow {
			got += "row "
		}
		if p.NamesItem {
			got += "item "
		}
		if p.NamesIndex {
			got += "index "
		}
		if got += p.Prefix; strings.TrimSpace(got) != strings.TrimSpace(names) {
			t.Errorf("%s names %q, want %q", in, got, names)
		}
	}
}
