package change

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// Lost if this fails: after an upgrade a table goes on in another topic, and its rows
// of before are in the old one.
func TestTopicNamesStay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-zA-Z0-9_-]{1,63}`)
		schema, table := name.Draw(t, "schema"), name.Draw(t, "table")
		if strings.Contains(schema+"."+table, "_x") {
			t.Skip("like an escape")
		}
		if got, want := TopicName("psa", schema, table), "psa."+schema+"."+table; got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	})
	for _, s := range []string{"_x", "_xA_", "_x00e9_", "_x00E9", "a_x00E_9", "_x00E9a_", "_x10000_", "__x__"} {
		if got, want := TopicName("psa", s, s), "psa."+s+"."+s; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTopicNames(t *testing.T) {
	for _, c := range [][2]string{
		{"grö", "gr_x00F6_"},
		{"order items", "order_x0020_items"},
		{"a.b", "a_x002E_b"},
		{"😀", "_xD83D__xDE00_"},
		{"_x0041_", "_x005F_x0041_"},
		{"_x0041_x0042_", "_x005F_x0041_x005F_x0042_"},
		{"_x0041ö", "_x005F_x0041_x00F6_"},
		{"_x005F_x0041_", "_x005F_x005F_x005F_x0041_"},
		{"ö_x0041_", "_x00F6__x005F_x0041_"},
		{"a\xffb", "a_xDCFF_b"},
		{"\ufffd", "_xFFFD_"},
	} {
		if got := TopicName("psa", "public", c[0]); got != "psa.public."+c[1] {
			t.Errorf("%q is %q, want %q", c[0], got, c[1])
		}
		there(t, "psa", c[0], c[0])
	}
	for _, s := range []string{"", "psa", "psa.public", "psa.public.a.b", "psa.public.grö", "psa.public._x0041_", "psa.public._xD83D_", "psa.public._xDC41_", "psa.public._xDE00__xD83D_", "psa.public._x005F_"} {
		if _, _, _, ok := ParseTopicName(s); ok {
			t.Errorf("%q is taken for the topic of a table", s)
		}
	}
}

// there goes to the topic and back.
func there(t interface {
	Helper()
	Fatalf(string, ...any)
}, source, schema, table string,
) {
	t.Helper()
	topic := TopicName(source, schema, table)
	if why := TopicLegal(topic); why != "" && len(topic) <= TopicNameOctets && source != "" {
		t.Fatalf("%q.%q: %s", schema, table, why)
	}
	a, b, c, ok := ParseTopicName(topic)
	if !ok || a != source || b != schema || c != table {
		t.Fatalf("%q.%q is %q, and that %q.%q (%v)", schema, table, topic, b, c, ok)
	}
}

// Lost if this fails: two tables share a topic, or a broker refuses one.
func TestTopicNamesThereAndBack(t *testing.T) {
	piece := rapid.OneOf(rapid.String(), rapid.StringMatching(`[_xAF0-]{0,12}`), rapid.SampledFrom([]string{"_x0041_", "_x0041", "_x", "x0041_", "_", ".", "ö", "😀", "_xD83D_", "_xDE00_", "\xff", "\x80", "_x005F_"}))
	name := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(piece, 1, 6).Draw(t, "pieces"), "") })
	rapid.Check(t, func(t *rapid.T) {
		there(t, "psa", name.Draw(t, "schema"), name.Draw(t, "table"))
	})
}

// What is taken for a table's topic is what that table has.
func FuzzParseTopicName(f *testing.F) {
	for _, s := range []string{"psa.public.a", "psa.a_x002E_b._xD83D__xDE00_", "psa.x._x005F_x0041_", "psa.x._xDCFF_", "a..b"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, topic, table string) {
		if source, schema, table, ok := ParseTopicName(topic); ok && TopicName(source, schema, table) != topic {
			t.Errorf("%q is %q of %q", topic, table, schema)
		}
		there(t, "psa", table, topic)
	})
}

func TestTopicLegal(t *testing.T) {
	for topic, want := range map[string]string{
		"psa.public.a-b_C9": "", "": "is no name", "..": "is no name", "psa.public.grö": `has 'ö'`, "psa.public.a b": `has ' '`,
		strings.Repeat("a", TopicNameOctets): "", strings.Repeat("a", TopicNameOctets+1): "has 250 octets",
	} {
		if got := TopicLegal(topic); (want == "") != (got == "") || !strings.Contains(got, want) || !utf8.ValidString(got) {
			t.Errorf("%q: %q, want %q", topic, got, want)
		}
	}
	if TopicFold("psa.a.b_c") != TopicFold("psa.a_b.c") || TopicFold("psa.a.b-c") == TopicFold("psa.a_b.c") {
		t.Error("names that Kafka refuses beside each other")
	}
}
