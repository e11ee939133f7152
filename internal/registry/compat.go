// Compat: whether a new schema can live with the old ones.

package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/twmb/avro"
)

// levels are Confluent's compatibility levels.
var levels = map[string]bool{
	"NONE": true, "BACKWARD": true, "BACKWARD_TRANSITIVE": true, "FORWARD": true,
	"FORWARD_TRANSITIVE": true, "FULL": true, "FULL_TRANSITIVE": true,
}

// compact checks a schema and gives its text without blanks, by which it is
// told from others.
func compact(schema string) (string, error) {
	text := []byte(strings.TrimSpace(schema))
	if !json.Valid(text) { // a bare primitive name is taken, as Confluent does
		text = mustJSON(string(text))
	}
	if _, err := avro.Parse(string(text)); err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return "", err
	}
	return b.String(), nil
}

// incompatible lists what is against a new schema at a level; old are the
// versions of the subject by rising version. Backward: the new one reads what
// the old ones wrote; forward: the old ones read what the new one writes.
func incompatible(level, schema string, old []version) ([]string, error) {
	if level == "NONE" || len(old) == 0 {
		return nil, nil
	}
	now, err := avro.Parse(anyPrecision(schema))
	if err != nil {
		return nil, fmt.Errorf("parsing the new schema: %w", err)
	}
	if !strings.HasSuffix(level, "_TRANSITIVE") {
		old = old[len(old)-1:]
	}
	var against []string
	for i := len(old) - 1; i >= 0; i-- {
		was, err := avro.Parse(anyPrecision(old[i].Schema))
		if err != nil {
			return nil, fmt.Errorf("parsing version %d of subject %s: %w", old[i].Version, old[i].Subject, err)
		}
		if strings.HasPrefix(level, "BACKWARD") || strings.HasPrefix(level, "FULL") {
			if err := avro.CheckCompatibility(was, now); err != nil {
				against = append(against, fmt.Sprintf("the new schema cannot read what version %d wrote: %v", old[i].Version, err))
			}
		}
		if strings.HasPrefix(level, "FORWARD") || strings.HasPrefix(level, "FULL") {
			if err := avro.CheckCompatibility(now, was); err != nil {
				against = append(against, fmt.Sprintf("version %d cannot read what the new schema writes: %v", old[i].Version, err))
			}
		}
	}
	return against, nil
}

// anyPrecision gives all decimals of a schema one precision. A decimal's octets
// do not depend on it, and Confluent's registry does not compare it: a column
// that is widened from numeric(14,2) to numeric(16,2) goes on. The scale gives
// the octets their meaning and must stay.
func anyPrecision(schema string) string {
	var v any
	d := json.NewDecoder(strings.NewReader(schema))
	d.UseNumber()
	if !strings.Contains(schema, "decimal") || d.Decode(&v) != nil {
		return schema
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if v["type"] == "bytes" && v["logicalType"] == "decimal" && v["precision"] != nil {
				v["precision"] = 1000 // the most that Postgres has
			}
			for _, e := range v {
				walk(e)
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(v)
	b, err := json.Marshal(v)
	if err != nil {
		return schema
	}
	return string(b)
}
