package registry

import "testing"

// FuzzApply: whatever another writer puts on the schema topic, the registry
// that follows it does not fall over.
func FuzzApply(f *testing.F) {
	v := version{Subject: "s", Version: 1, ID: 1, Schema: `"string"`}
	for _, r := range []record{
		schemaRecord(v), schemaTombstone(v), deleteSubjectRecord("s", 1), noop,
		settingRecord("CONFIG", "", recordValue{Compatibility: "FULL"}), settingRecord("MODE", "s", recordValue{Mode: "READONLY"}),
	} {
		f.Add(r.key, r.value)
	}
	f.Fuzz(func(t *testing.T, key, value []byte) {
		s := newStore()
		first := schemaRecord(v)
		if err := s.apply(first.key, first.value); err != nil {
			t.Fatal(err)
		}
		if err := s.apply(key, value); err != nil {
			if len(s.versions("s", true)) != 1 {
				t.Fatal("a record that was refused changed something")
			}
		}
		s.usages(s.newest())
		s.names(true)
	})
}

// FuzzRegister: whatever a client sends as a schema is taken or refused, and
// what is taken can be compared with itself.
func FuzzRegister(f *testing.F) {
	f.Add(`{"type":"record","name":"r","fields":[{"name":"a","type":["null","r"],"default":null}]}`)
	f.Add("string")
	f.Add(` [ "null", {"type":"map","values":"long"} ] `)
	f.Fuzz(func(t *testing.T, schema string) {
		text, err := compact(schema)
		if err != nil {
			return
		}
		again, err := compact(text)
		if err != nil || again != text {
			t.Fatalf("%q became %q, then %q (%v)", schema, text, again, err)
		}
		against, err := incompatible("FULL_TRANSITIVE", text, []version{{Subject: "s", Version: 1, Schema: text}})
		if err != nil || len(against) > 0 {
			t.Fatalf("%q is not compatible with itself: %v, %v", text, against, err)
		}
	})
}
