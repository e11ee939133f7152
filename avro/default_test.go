package avro

import (
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// withField is a contract with a field x.
func withField(attributes string) string {
	return strings.Replace(engagement, `"fields": [`, `"fields": [{"name": "x", "doc": "X.", "owner": "sales", "sensitivity": "internal", `+attributes+`},`, 1)
}

func decimalOf(precision, scale string) string {
	return `"type": {"type": "bytes", "logicalType": "decimal", "precision": ` + precision + `, "scale": ` + scale + `}`
}

// A default that is read as another value is in every record that its source
// says nothing for.
func TestDefaults(t *testing.T) {
	for attributes, want := range map[string]string{
		`"type": "string", "default": "none"`:                                                                "none",
		`"type": "string", "default": ""`:                                                                    "",
		`"type": "string", "values": ["a", "b"], "default": "b"`:                                             "b",
		`"type": "boolean", "default": false`:                                                                "f",
		`"type": "int", "default": -3`:                                                                       "-3",
		`"type": "long", "default": 9007199254740993`:                                                        "9007199254740993",
		`"type": "double", "default": 0.1`:                                                                   "0.1",
		`"type": "float", "default": 0.5`:                                                                    "0.5",
		`"type": {"type": "int", "logicalType": "date"}, "default": 20000`:                                   "2024-10-04",
		`"type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 1`:                          "1970-01-01 00:00:00.000001+00",
		`"type": {"type": "long", "logicalType": "local-timestamp-micros"}, "default": 1000000`:              "1970-01-01 00:00:01",
		decimalOf("9", "2") + `, "default": "\u0000"`:                                                        "0.00",
		decimalOf("9", "2") + `, "default": "\u00ff\u0085"`:                                                  "-1.23",
		decimalOf("9", "2") + `, "default": "\u00000"`:                                                       "0.48",
		decimalOf("30", "0") + `, "default": "\u0001\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000"`: "4722366482869645213696",
		`"type": ["null", "string"], "default": null`:                                                        "(none)",
	} {
		all, err := LoadCatalogue(contractDir(t, map[string]string{"a.avsc": withField(attributes)}))
		if err != nil {
			t.Errorf("%s: %v", attributes, err)
			continue
		}
		c := all["firm.partner"]
		f, _ := c.Field("x")
		if f.Default == nil {
			if want != "(none)" {
				t.Errorf("%s: it has none", attributes)
			}
			continue
		}
		b := change.Get()
		b.SpanString(change.String, "something before it")
		v := f.Default.Value(b)
		if got := string(b.AppendText(nil, v)); got != want || f.Default.String() != want || v.Kind() != c.Table.Columns[0].Kind || !c.Optional(0) {
			t.Errorf("%s: %s %q", attributes, v.Kind(), got)
		}
		// What the encoder says of it is what counts.
		enc, err := NewOfflineEncoder(c, c.Table)
		if err != nil {
			t.Fatal(err)
		}
		row := b.Row(3)
		row[0], row[1] = v, b.SpanString(change.String, "1")
		if _, err := enc.AppendValue(nil, b, &change.Change{Table: c.Table, Op: change.Create, New: row}); err != nil {
			t.Errorf("%s: %v", attributes, err)
		}
		b.Release()
	}
}

// What is no default is told when the contract is read, not with the first row
// that needs it.
func TestMistakesOfDefaults(t *testing.T) {
	for attributes, says := range map[string]string{
		`"type": "string", "default": 1`:                                                                       "field x: its default must be a text in quotes",
		`"type": "string", "default": null`:                                                                    "field x: its default is null, and it is never null",
		`"type": ["string", "null"], "default": "x"`:                                                           "field x: its default is not null, and it may be null",
		`"type": "string", "values": ["open", "done"], "default": "opne"`:                                      `field x: its default "opne" is none of open, done`,
		`"type": "boolean", "default": "true"`:                                                                 "must be true or false",
		`"type": "int", "default": 2147483648`:                                                                 "must be a whole number that an Avro int holds",
		`"type": "long", "default": 1.5`:                                                                       "must be a whole number that an Avro long holds",
		`"type": "double", "default": "1"`:                                                                     "must be a number that a double holds",
		`"type": "float", "default": 0.1`:                                                                      "must be a number that a float holds",
		`"type": {"type": "int", "logicalType": "date"}, "default": "2026-01-01"`:                              "must be the days since 1970-01-01, a whole number",
		`"type": {"type": "long", "logicalType": "timestamp-micros"}, "default": "2026-01-01"`:                 "must be the microseconds since 1970-01-01",
		decimalOf("9", "2") + `, "default": "0.00"`:                                                            `must be Avro's octets of the unscaled number; of 0.00 they are "\u0000"`,
		decimalOf("9", "2") + `, "default": -1.23`:                                                             `of -1.23 they are "\u0085"`,
		decimalOf("9", "2") + `, "default": 1.234`:                                                             `which has 2 digits after the point`,
		decimalOf("9", "2") + `, "default": ""`:                                                                `of 0 they are "\u0000"`,
		decimalOf("9", "2") + `, "default": "ĀĀ"`:                                                              `\u0000 to \u00ff each`,
		decimalOf("4", "2") + `, "default": "\u0027\u0010"`:                                                    "is 100.00, which numeric(4,2) cannot hold",
		`"type": "bytes", "default": "x"`:                                                                      "of a field that is bytea there is none",
		`"type": {"type": "string", "logicalType": "uuid"}, "default": "x"`:                                    "there is none",
		`"type": {"type": "long", "logicalType": "timestamp-micros"}, "fallback": "commit_time", "default": 0`: "it has a default and falls back to commit_time",
	} {
		dir := contractDir(t, map[string]string{"a.avsc": withField(attributes)})
		_, err := LoadCatalogue(dir)
		if text := problem.Format(err); !problem.Has(err, ErrContract) || !strings.Contains(text, says) || !strings.Contains(text, dir+"/a.avsc") {
			t.Errorf("%s: it does not say %q:\n%s", attributes, says, text)
		}
	}
	key := strings.Replace(engagement, `"name": "partner_id", "type": "string"`, `"name": "partner_id", "type": "string", "default": "1"`, 1)
	if _, err := LoadCatalogue(contractDir(t, map[string]string{"a.avsc": key})); err == nil || !strings.Contains(err.Error(), "field partner_id: of the key, it has no default") {
		t.Errorf("a key with a default: %v", err)
	}
}
