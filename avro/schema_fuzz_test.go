package avro

import (
	"testing"

	"github.com/tallywire/tallywire/change"
)

// FuzzSchema: whatever schema a registry hands out, and whatever lies under it,
// neither compiling nor reading panics, runs away or grows without bound.
func FuzzSchema(f *testing.F) {
	all, err := Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(all["ps.cost_rate"].Schema, []byte{2, '1', 2, '2', 0, 0, 2, 1, 6, 'E', 'U', 'R', 0})
	f.Add(`{"type":"record","name":"r","fields":[{"name":"after","type":["null","r"]},{"name":"before","type":["null",{"type":"record","name":"v","fields":[]}]},{"name":"op","type":"string"}]}`, []byte{0, 0, 2, 'd'})
	f.Add(`{"type":"record","name":"e","fields":[{"name":"before","type":["null",{"type":"record","name":"v","fields":[{"name":"a","type":{"type":"array","items":"null"}}]}]},{"name":"after","type":["null","v"]},{"name":"op","type":"string"},{"name":"x","type":{"type":"array","items":{"type":"map","values":"null"}}}]}`, []byte{0, 2, 2, 'c', 2, 2, 0, 0, 0, 0})
	f.Add(`{"type":"record","name":"l","fields":[{"name":"before","type":["null","int"]},{"name":"op","type":"string"},{"name":"after","type":"null"},{"name":"n","type":["null","l"]}]}`, []byte{0, 2, 'c', 2})
	f.Fuzz(func(t *testing.T, schema string, p []byte) {
		n, err := parseSchema(schema)
		if err != nil {
			return
		}
		prog, err := compileProgram(n, n, "a.b.c", nil)
		if err != nil {
			return
		}
		b := change.Get()
		defer b.Release()
		r := reader{p: p, work: 16*len(p) + 1024}
		var c change.Change
		if prog.raw {
			prog.readEnvelope(&r, b, &c, &Headers{Unchanged: []byte(`a,b\,c`), Unknown: []byte("b"), Text: []byte(`{"a":"x"}`)})
		} else {
			c.New = prog.readRow(&r, b, prog.after)
		}
		if b.Size() > 1<<20+64*len(p)+64*len(schema) {
			t.Fatalf("%d octets under a schema of %d became %d", len(p), len(schema), b.Size())
		}
		if r.bad == "" {
			for _, v := range c.New {
				b.AppendText(nil, v)
			}
		}
	})
}
