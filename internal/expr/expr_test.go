package expr

import (
	"fmt"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
)

var entries = (&change.Table{
	Topic: "psa.public.time_entries",
	Columns: []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int},
		{Name: "hours", Type: "double precision", Kind: change.Float64, Nullable: true},
		{Name: "rate", Type: "numeric", Kind: change.Decimal, Nullable: true},
		{Name: "status_id", Type: "bigint", Kind: change.Int, Nullable: true},
		{Name: "comments", Type: "text", Kind: change.String, Nullable: true},
		{Name: "spent_on", Type: "date", Kind: change.Date},
		{Name: "created_on", Type: "timestamp without time zone", Kind: change.Timestamp},
		{Name: "updated_on", Type: "timestamp with time zone", Kind: change.TimestampTZ},
		{Name: "duration", Type: "interval", Kind: change.Interval},
		{Name: "payload", Type: "jsonb", Kind: change.JSON, Nullable: true},
		{Name: "Billable Now", Type: "boolean", Kind: change.Bool},
		{Name: "tags", Type: "text[]", Kind: change.Array},
		{Name: "starts", Type: "time without time zone", Kind: change.Time},
	},
	Key: []int{0},
}).Index()

var lists = codes.Lists{}

func scope() Scope { return Scope{Row: entries, Codes: lists} }

func entry(b *change.Batch) []change.Value {
	row := b.Row(len(entries.Columns))
	day := change.Days(2026, 3, 31)
	clock := (day*86400 + 23*3600 + 30*60) * 1_000_000
	for i, v := range []change.Value{
		change.IntValue(17), change.Float64Value(0.333), b.BigDecimal(big.NewInt(1234567), 4), change.IntValue(5), b.SpanString(change.String, "  Große  Hilfe "),
		change.DateValue(day), change.TimestampValue(clock), change.TimestampTZValue(clock), b.Interval(0, 1, 20*60*1_000_000),
		b.SpanString(change.JSON, `{"a": {"b": [1, 2.50]}, "n": null}`), change.BoolValue(true), change.NullValue(), change.TimeValue(5_400_000_000),
	} {
		row[i] = v
	}
	return row
}

// Comparing two texts goes its own way: what it says is what the interpreter says, and
// where it can say nothing, that is asked. If this failed, rows would be left out, or
// be costed by a rate that does not agree.
func TestComparingTexts(t *testing.T) {
	b := change.Get()
	defer b.Release()
	rows := [][]change.Value{entry(b), entry(b), entry(b)}
	comments, payload := entries.Column("comments"), entries.Column("payload")
	rows[1][comments] = b.SpanString(change.String, "x")
	rows[1][payload] = b.SpanString(change.JSON, "x")
	rows[2][comments] = change.NullValue()
	for text, short := range map[string]bool{
		`row.comments == "x"`:                    true,
		`"x" != row.comments`:                    true,
		`row.comments == row.payload`:            true,
		`row.comments != row.payload`:            true,
		`row.comments == null`:                   false,
		`row.comments == "x" || row.id == 1`:     false,
		`row.status_id == 5`:                     false,
		`[row.comments].exists(r, r == "x")`:     false,
		`row.comments == row.payload + "x"`:      false,
		`normalise(row.comments) == row.payload`: false,
	} {
		p, mistakes := Condition(text, scope())
		if len(mistakes) > 0 {
			t.Errorf("%s: %v", text, mistakes)
			continue
		}
		if (p.texts != nil) != short {
			t.Errorf("%s goes its own way: %v, want %v", text, p.texts != nil, short)
		}
		run := *p
		run.texts = nil
		for i, row := range rows {
			is, err := p.Holds(&Row{Batch: b, Of: row})
			want, wrong := run.Holds(&Row{Batch: b, Of: row})
			if is != want || (err == nil) != (wrong == nil) {
				t.Errorf("%s of row %d is %v, %v; the interpreter says %v, %v", text, i, is, err, want, wrong)
			}
		}
	}
}

// Money and hours are computed here: what is wrong shows in no total.
func TestValues(t *testing.T) {
	text := change.Column{Name: "x", Type: "string", Kind: change.String, Nullable: true}
	for in, want := range map[string]string{
		`round(decimal(row.hours), 6, "half_even")`: "0.333000",
		`row.rate * 2`:                                                           "246.9134",
		`2 * row.rate`:                                                           "246.9134",
		`row.rate + row.rate - 1`:                                                "245.9134",
		`-row.rate`:                                                              "-123.4567",
		`round(row.rate, 2, "half_even")`:                                        "123.46",
		`div(row.id, 60, 6, "half_even")`:                                        "0.283333",
		`div(1, 3, 2, "up")`:                                                     "0.34",
		`round(decimal("0.0001"), 0, "up")`:                                      "1",
		`round(decimal("-2.5"), 0, "half_even")`:                                 "-2",
		`decimal("1e3")`:                                                         "1000",
		`decimal(0.1) + decimal(0.2) == decimal("0.30")`:                         "t",
		`row.rate > 100 && row.rate < 124`:                                       "t",
		`decimal("5.00") == 5`:                                                   "t",
		`coalesce(row.id, int(row.comments))`:                                    "17",
		`5 == decimal("5.00") && 5 != decimal("5.01")`:                           "t",
		`17 == json("{\"n\": 17.0}").n`:                                          "t",
		`row.id in json("[17.0]") && !(row.id in json("[17.5]"))`:                "t",
		`decimal("17.0") in [1, row.id]`:                                         "t",
		`"n" in json("{\"n\": 1}") && !("m" in {"n": 1})`:                        "t",
		`row.id == null || null in [null]`:                                       "t",
		`string(1 == 1)`:                                                         "true",
		`row.id + 1`:                                                             "18",
		`row.id in [17, 18]`:                                                     "t",
		`day(row.created_on)`:                                                    "2026-03-31",
		`day(row.updated_on, "Europe/Berlin")`:                                   "2026-04-01",
		`moment(row.created_on, "Europe/Berlin")`:                                "2026-03-31 21:30:00+00",
		`moment(datetime("2026-03-29 02:30:00"), "Europe/Berlin")`:               "2026-03-29 01:30:00+00",
		`moment(datetime("2026-10-25 02:30:00"), "Europe/Berlin")`:               "2026-10-25 01:30:00+00",
		`moment(row.spent_on, "Europe/Berlin")`:                                  "2026-03-30 22:00:00+00",
		`datetime(row.updated_on, "America/New_York")`:                           "2026-03-31 19:30:00",
		`row.spent_on + 1`:                                                       "2026-04-01",
		`row.spent_on - date(2026, 3, 1)`:                                        "30",
		`row.spent_on >= date("2026-03-31")`:                                     "t",
		`year(row.spent_on) * 100 + month(row.spent_on)`:                         "202603",
		`hours(row.duration, 6, "half_even")`:                                    "24.333333",
		`hours(row.starts, 2, "half_even")`:                                      "1.50",
		`hours(row.updated_on - moment("2026-03-31T22:30:00Z"), 6, "half_even")`: "1.000000",
		`normalise(row.comments)`:                                                "große hilfe",
		`row.comments.trim().split(" ")[0]`:                                      "Große",
		`after("CUST-17", "CUST-")`:                                              "17",
		`json(row.payload).a.b[1]`:                                               "2.50",
		`json(row.payload).n`:                                                    "",
		`has(json(row.payload).z) ? "a" : "b"`:                                   "b",
		"row.`Billable Now`":                                                     "t",
		"row.`Billable Now` ? null : row.id":                                     "",
		`row.comments == "" ? null : "b"`:                                        "b",
		`string(row.id) + "/" + string(row.spent_on)`:                            "17/2026-03-31",
		`int("12") + int(row.rate - row.rate)`:                                   "12",
		`coalesce(null, row.comments, "x").trim()`:                               "Große  Hilfe",
		`null`:         "",
		`abs(-row.id)`: "17",
	} {
		b := change.Get()
		p, bad := Compile(in, scope(), &text)
		if len(bad) > 0 {
			t.Errorf("%s: %+v", in, bad)
			continue
		}
		v, err := p.Value(&Row{Batch: b, Of: entry(b)}, &text)
		if got := string(b.AppendText(nil, v)); err != nil || got != want {
			t.Errorf("%s = %q (%v), want %q", in, got, err, want)
		}
		b.Release()
	}
}

// A null is no 0: what is computed of it is null too, and what cannot be is told.
func TestNulls(t *testing.T) {
	b := change.Get()
	defer b.Release()
	row := entry(b)
	for i := range row {
		row[i] = change.NullValue()
	}
	want := change.Column{Name: "x", Type: "string", Kind: change.String, Nullable: true}
	for _, in := range []string{
		`row.rate * 2`, `round(decimal(row.hours), 2, "up")`, `row.spent_on + 1`, `day(row.updated_on, "UTC")`, `row.rate > 1`, `coalesce(row.rate, row.rate)`,
		`hours(row.duration, 2, "up")`, `code("status", row.status_id)`, `string(row.id)`,
	} {
		p, bad := Compile(in, Scope{Row: entries, Codes: codes.Lists{"status": {Name: "status"}}}, &want)
		if len(bad) > 0 {
			t.Errorf("%s: %+v", in, bad)
			continue
		}
		if v, err := p.Value(&Row{Batch: b, Of: row}, &want); err != nil || !v.IsNull() {
			t.Errorf("%s of nulls gives %v (%v)", in, v.Kind(), err)
		}
	}
	for in, want := range map[string]any{
		`row.rate == null`: true, `row.rate != null`: false, `row.comments == "a"`: false, `row.rate > 1`: "neither true nor false", `row.id > 1 && true`: "coalesce",
		`coalesce(row.id > 1, false)`: false,
	} {
		p, bad := Condition(in, scope())
		if len(bad) > 0 {
			t.Errorf("%s: %+v", in, bad)
			continue
		}
		got, err := p.Holds(&Row{Batch: b, Of: row})
		if says, is := want.(string); is && (err == nil || !strings.Contains(err.Error(), says)) || !is && (err != nil || got != want) {
			t.Errorf("%s of nulls is %v (%v), want %v", in, got, err, want)
		}
	}
}

// A mistake is told before anything runs, with its place and the way out; all of
// them at once.
func TestMistakes(t *testing.T) {
	dec := change.Column{Name: "hours", Type: "decimal(10,6)", Kind: change.Decimal}
	for in, want := range map[string][]string{
		`round(row.huors, 2, "half_evn") + row.tsatus`: {"1:10: psa.public.time_entries has no column \"huors\" | Did you mean hours?", "1:21: \"half_evn\" is no mode of rounding; did you mean \"half_even\"?", "1:38: psa.public.time_entries has no column \"tsatus\" | Did you mean status_id?"},
		`roudn(row.rate, 2, "up")`:                     {"1:6: there is no roudn here | Did you mean round?"},
		`hours * 2`:                                    {"1:1: there is no hours here | The column is row.hours."},
		`row.rate * 1.5`:                               {`1:10: * does not go with (decimal, double) | An exact number with a point is decimal("1.5"); decimal(row.NAME) makes one of a float.`},
		`row.id / 60`:                                  {`1:8: / does not go with (int, int) | Write div(a, b, 6, "half_even"), which is exact and says how it rounds.`},
		`row.spent_on`:                                 {"1:1: the expression is a date, hours is decimal(10,6)"},
		`row.rate +`:                                   {"1:11: mismatched input '<EOF>'"},
		`code("statsu", row.id) == "x" ? 1 : 2`:        {`1:6: there is no code list "statsu" | Did you mean status?`},
		`code(row.comments, row.id) == "x" ? 1 : 2`:    {"1:9: a code list is named by a text in quotes"},
		`int(string(day(row.updated_on, "Berlin")))`:   {`1:32: "Berlin" is no zone of the IANA database, such as Europe/Berlin`},
		`has(row.id) ? 1 : 2`:                          {"a column is always there: write row.id != null"},
		`row["id"]`:                                    {"1:1: row is used by its columns | Write row.NAME"},
		`size(row.tags)`:                               {"1:9: column tags is text[], which an expression cannot read"},
		`row.rate == "5" ? 1 : 2`:                      {"1:10: == does not go with (decimal, string)"},
		`row.id ? 1 : 2`:                               {"1:8: ? : does not go with (int, int, int)"},
		`div(1, 2, row.id, row.comments)`:              {"1:14: the digits after the point are a whole number that stands here", "1:22: the mode of rounding is a text in quotes that stands here"},
		`day(row.updated_on, 1) == null ? 1 : 2`:       {"1:4: day does not go with (moment, int) | It is day(datetime), or day(moment, string)."},
		`code("priority", row.id) == "x" ? 1 : 2`:      {`1:6: there is no code list "priority" | Write it as priority.csv, with the columns code and value, into a directory that the configuration names: codes: [codes].`},
		`row.rate in ["5"] ? 1 : 2`:                    {"1:10: in does not go with (decimal, list(string))"},
		`round(1, 200, "up")`:                          {"1:10: 200 digits after the point: want 0 to 100"},
	} {
		_, bad := Compile(in, Scope{Row: entries, Codes: codes.Lists{"status": {Name: "status"}}}, &dec)
		if len(bad) != len(want) {
			t.Errorf("%s: %+v, want %q", in, bad, want)
			continue
		}
		for i, m := range bad {
			got := fmt.Sprintf("%d:%d: %s", m.Line, m.Column, m.Text)
			if m.Remedy != "" {
				got += " | " + m.Remedy
			}
			if !strings.Contains(got, want[i]) {
				t.Errorf("%s:\n got %s\nwant %s", in, got, want[i])
			}
		}
	}
	// Columns that are not known yet may be anything; the rest is looked at.
	if _, bad := Compile(`round(row.a, 2, "up") + rond(row.b)`, Scope{}, &dec); len(bad) != 1 || bad[0].Remedy != "Did you mean round?" {
		t.Errorf("without columns: %+v", bad)
	}
	if _, bad := Condition(`row.id`, scope()); len(bad) != 1 || bad[0].Text != "a condition is true or false, this is a int" {
		t.Errorf("a condition: %+v", bad)
	}
}

// What has no value is told, with the values apart: not everybody may see them.
func TestFailures(t *testing.T) {
	want := change.Column{Name: "x", Type: "string", Kind: change.String}
	b := change.Get()
	defer b.Release()
	row := entry(b)
	row[2] = change.SpecialDecimal(change.NaN)
	row[5] = change.DateValue(change.PosInfinity)
	for in, says := range map[string]string{
		`string(row.rate)`:                    "row.rate is not finite",
		`decimal(row.comments)`:               "no number",
		`after(row.comments, "x")`:            "does not begin with the prefix",
		`div(1, row.id - 17, 2, "up")`:        "a division by zero",
		`coalesce(int(row.comments), row.id)`: "no whole number",
		`int(row.hours)`:                      "no whole number",
		`code("status", row.status_id)`:       "code list status (codes/status.csv) does not have it",
		`date(2026, 2, row.id + 13)`:          "there is no such date",
		`json("{")`:                           "no JSON",
		`json("{}").a`:                        "no such key: a",
		`row.spent_on - date(2026, 1, 1)`:     "the days to an infinite date",
		`[1,2,3,4,5,6,7,8,9].map(a, [1,2,3,4,5,6,7,8,9].map(b, [1,2,3,4,5,6,7,8,9].map(c, [1,2,3,4,5,6,7,8,9].map(d, [1,2,3,4,5,6,7,8,9].map(e, row.id + a))))).size()`: "cost limit",
	} {
		p, bad := Compile(in, Scope{Row: entries, Codes: codes.Lists{"status": {Name: "status", File: "codes/status.csv"}}}, &want)
		if len(bad) > 0 {
			t.Errorf("%s: %+v", in, bad)
			continue
		}
		_, err := p.Value(&Row{Batch: b, Of: row}, &want)
		f, ok := err.(*Failure) //nolint:errorlint // it is what is promised
		if !ok || !strings.Contains(f.What, says) || strings.Contains(f.What, "Große") {
			t.Errorf("%s: %v, want %s", in, err, says)
		}
	}
}

// Rounding that is one off in the last digit is a ledger that does not agree.
func TestRounding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		num, den := rapid.Int64().Draw(t, "num"), rapid.Int64Range(1, 1<<40).Draw(t, "den")
		if rapid.Bool().Draw(t, "negative") {
			den = -den
		}
		s, ds := rapid.IntRange(0, 12).Draw(t, "scale"), rapid.IntRange(0, 8).Draw(t, "of num")
		mode := rapid.SampledFrom(modeNames()).Draw(t, "mode")
		d := &Decimal{small: num, scale: ds}
		got := d.div(decimalOf(den), s, mode)
		// By what rounding means: the neighbours of the exact quotient.
		exact := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(num), pow10(s)), new(big.Int).Mul(big.NewInt(den), pow10(ds)))
		floor := new(big.Int).Div(exact.Num(), exact.Denom())
		ceil := new(big.Int).Set(floor)
		if !exact.IsInt() {
			ceil.Add(ceil, big.NewInt(1))
		}
		low, high := new(big.Rat).Sub(exact, new(big.Rat).SetInt(floor)), new(big.Rat).Sub(new(big.Rat).SetInt(ceil), exact)
		zero, away := floor, ceil // toward zero, and away from it
		if exact.Sign() < 0 {
			zero, away = ceil, floor
		}
		want := map[string]*big.Int{"floor": floor, "ceiling": ceil, "down": zero, "up": away}[mode]
		if want == nil {
			switch c := low.Cmp(high); {
			case c < 0:
				want = floor
			case c > 0:
				want = ceil
			case mode == "half_up":
				want = away
			case mode == "half_down":
				want = zero
			case floor.Bit(0) == 0:
				want = floor
			default:
				want = ceil
			}
		}
		if got.n().Cmp(want) != 0 || got.scale != s {
			t.Fatalf("%d×10^-%d / %d to %d digits, %s: %s×10^-%d, want %s", num, ds, den, s, mode, got.n(), got.scale, want)
		}
	})
}

// Small numbers take a way of their own, which is that of large ones.
func TestSmallNumbersAreLargeOnes(t *testing.T) {
	large := func(d *Decimal) *Decimal { return &Decimal{big: d.n(), scale: d.scale} }
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) *Decimal {
			n := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1000, 1000), rapid.SampledFrom([]int64{math.MinInt64, math.MaxInt64, 1 << 62})).Draw(t, name)
			return &Decimal{small: n, scale: rapid.IntRange(0, 25).Draw(t, name+"'s scale")}
		}
		a, b := draw("a"), draw("b")
		scale, mode := rapid.IntRange(0, 25).Draw(t, "digits"), rapid.SampledFrom(modeNames()).Draw(t, "mode")
		is := func(what string, x, y *Decimal) {
			if x.scale != y.scale || x.n().Cmp(y.n()) != 0 {
				t.Fatalf("%s is %s×10^-%d, by large numbers %s×10^-%d", what, x.n(), x.scale, y.n(), y.scale)
			}
		}
		is("a+b", a.add(b), large(a).add(large(b)))
		is("a*b", a.mul(b), large(a).mul(large(b)))
		is("-a", a.neg(), large(a).neg())
		is("round(a)", a.round(scale, mode), large(a).round(scale, mode))
		if a.cmp(b) != large(a).cmp(large(b)) || a.sign() != large(a).sign() {
			t.Fatal("their order, or a sign")
		}
		text := text(a)
		d, err := parseDecimal(text)
		if err != nil {
			t.Fatal(err)
		}
		is("the text of a", d, a)
	})
}

// Any text is a program or a mistake, and any program a value or a failure.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{`row.rate * 2`, `code("a", row.id)`, `json(row.payload).a.b[0]`, "row.`Billable Now`", `[1].map(x, x + row.id)`, `row`, `round(row.rate, -1, "")`, `date(0, 99, -1)`} {
		f.Add(s)
	}
	want := change.Column{Name: "x", Type: "string", Kind: change.String, Nullable: true}
	f.Fuzz(func(t *testing.T, s string) {
		p, bad := Compile(s, scope(), &want)
		if (p == nil) == (len(bad) == 0) {
			t.Fatal("neither a program nor a mistake")
		}
		if p == nil {
			return
		}
		b := change.Get()
		defer b.Release()
		_, err := p.Value(&Row{Batch: b, Of: entry(b)}, &want)
		if err != nil && strings.Contains(err.Error(), "internal error") {
			t.Fatal(err)
		}
	})
}
