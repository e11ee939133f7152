package postgres

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
)

func TestPatterns(t *testing.T) {
	c := Config{Tables: []string{"public.*", "!public.audit_*", "hr.person", "x*.t*e"}}
	for table, w := range map[string]string{
		"public.a": "true false", "public.audit_log": "false false", "hr.person": "true true", "hr.persons": "false false",
		"xyz.time": "true false", "xyz.times": "false false", "public2.a": "false false",
	} {
		schema, name, _ := strings.Cut(table, ".")
		s, n := c.selects(schema, name)
		if g := fmt.Sprint(s, n); g != w {
			t.Errorf("%s: %s, want %s", table, g, w)
		}
	}
}

func TestPositionJSON(t *testing.T) {
	p := position{System: 7711381119221907572, Timeline: 2, Slot: "s", LSN: 0x16_B374D848, Tx: &txPart{Final: 1, Delivered: 4096, Hash: 0xFEDCBA9876543210, Binary: true}}
	r := p.resume()
	const want = `{"system_identifier":"7711381119221907572","timeline":2,"slot":"s","lsn":"16/B374D848","tx":{"final_lsn":"0/1","delivered":4096,"hash":"fedcba9876543210","binary":true}}`
	if string(r) != want {
		t.Errorf("%s, want %s", r, want)
	}
	q, err := parsePosition(r)
	if err != nil || !bytes.Equal(q.resume(), r) {
		t.Errorf("read back as %+v (%v)", q, err)
	}
	for _, bad := range []string{"x", `{"lsn":"zz"}`, `{"unknown":1}`} {
		if _, err := parsePosition([]byte(bad)); err == nil {
			t.Errorf("%s is taken for a position", bad)
		}
	}
}

// If this failed, a delivery that does not exist would run as another.
func TestDeliveryIsOneOfTwo(t *testing.T) {
	for delivery, ok := range map[string]bool{"exactly-once": true, "at-least-once": true, "": false, "at-most-once": false} {
		c := Default("psa")
		if err := c.DSN.UnmarshalText([]byte("host=127.0.0.1")); err != nil {
			t.Fatal(err)
		}
		c.Delivery = delivery
		err := c.Validate() // Remedy: TW-PG-CONFIG
		if ok != (err == nil) || !ok && (!problem.Has(err, errConfig) || !strings.Contains(err.Error(), "delivery: ")) {
			t.Errorf("delivery %q: %v", delivery, err)
		}
	}
}
