// Package registry is the embedded schema registry: Confluent's REST API over
// the compacted topic _schemas, in Confluent's own record format, so that their
// registry can take the topic over. store.go is the state that the topic's
// records add up to.
package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
	"sync"
)

// Topic is where the registry keeps its schemas.
const Topic = "_schemas"

// recordKey and recordValue are Confluent's; the order of the key's fields is
// part of the key's octets, by which the topic is compacted.
type recordKey struct {
	KeyType string  `json:"keytype"`
	Subject *string `json:"subject,omitempty"`
	Version int     `json:"version,omitempty"`
	Magic   int     `json:"magic"`
}

type recordValue struct {
	Subject       string `json:"subject,omitempty"`
	Version       int    `json:"version,omitempty"`
	ID            int    `json:"id,omitempty"`
	Schema        string `json:"schema,omitempty"`
	SchemaType    string `json:"schemaType,omitempty"`
	Deleted       *bool  `json:"deleted,omitempty"`
	Compatibility string `json:"compatibilityLevel,omitempty"`
	Mode          string `json:"mode,omitempty"`
}

// version is one schema of a subject.
type version struct {
	Subject string
	Version int
	ID      int
	Schema  string
	Deleted bool
}

// store is changed by apply alone, in the order of the topic.
type store struct {
	mu       sync.RWMutex
	subjects map[string][]*version // by rising version; hard-deleted ones are gone
	byID     map[int][]*version
	ids      map[string]int    // schema text → id
	config   map[string]string // subject, "" global → level
	mode     map[string]string
	lastID   int
}

func newStore() *store {
	return &store{
		subjects: map[string][]*version{}, byID: map[int][]*version{}, ids: map[string]int{},
		config: map[string]string{}, mode: map[string]string{},
	}
}

// apply takes one record of the topic. What it does not understand is an error
// for the log: another registry's newer kinds of record must not stop this one.
func (s *store) apply(key, value []byte) error {
	var k recordKey
	if err := json.Unmarshal(key, &k); err != nil {
		return fmt.Errorf("reading a record's key: %w", err)
	}
	var v recordValue
	if value != nil && k.KeyType != "NOOP" {
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("reading the value of a %s record: %w", k.KeyType, err)
		}
	}
	subject := ""
	if k.Subject != nil {
		subject = *k.Subject
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch k.KeyType {
	case "NOOP":
	case "SCHEMA":
		s.remove(subject, k.Version)
		if value != nil {
			s.add(&version{Subject: subject, Version: k.Version, ID: v.ID, Schema: v.Schema, Deleted: v.Deleted != nil && *v.Deleted})
		}
	case "DELETE_SUBJECT":
		if value == nil {
			return nil
		}
		for _, x := range s.subjects[subject] {
			if x.Version <= v.Version {
				x.Deleted = true
			}
		}
	case "CONFIG":
		set(s.config, subject, v.Compatibility)
	case "MODE":
		set(s.mode, subject, v.Mode)
	default:
		return fmt.Errorf("a record of the unknown kind %q", k.KeyType)
	}
	return nil
}

func set(m map[string]string, k, v string) {
	if v == "" {
		delete(m, k)
	} else {
		m[k] = v
	}
}

func (s *store) add(v *version) {
	s.subjects[v.Subject] = append(s.subjects[v.Subject], v)
	list := s.subjects[v.Subject]
	sort.Slice(list, func(i, j int) bool { return list[i].Version < list[j].Version })
	s.byID[v.ID] = append(s.byID[v.ID], v)
	if _, ok := s.ids[v.Schema]; !ok {
		s.ids[v.Schema] = v.ID
	}
	s.lastID = max(s.lastID, v.ID)
}

func (s *store) remove(subject string, n int) {
	list := s.subjects[subject]
	for i, v := range list {
		if v.Version != n {
			continue
		}
		s.subjects[subject] = append(list[:i:i], list[i+1:]...)
		if len(s.subjects[subject]) == 0 {
			delete(s.subjects, subject)
		}
		same := s.byID[v.ID]
		for j := range same {
			if same[j] == v {
				same = append(same[:j:j], same[j+1:]...)
				break
			}
		}
		if s.byID[v.ID] = same; len(same) == 0 {
			delete(s.byID, v.ID)
			delete(s.ids, v.Schema)
		}
		return
	}
}

// versions copies the versions of a subject.
func (s *store) versions(subject string, deleted bool) []version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []version
	for _, v := range s.subjects[subject] {
		if deleted || !v.Deleted {
			out = append(out, *v)
		}
	}
	return out
}

// names lists the subjects that have a version.
func (s *store) names(deleted bool) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := []string{}
	for name, list := range s.subjects {
		for _, v := range list {
			if deleted || !v.Deleted {
				out = append(out, name)
				break
			}
		}
	}
	sort.Strings(out)
	return out
}

// usages copies the versions that carry an id, deleted ones too.
func (s *store) usages(id int) []version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []version
	for _, v := range s.byID[id] {
		out = append(out, *v)
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Subject < out[j].Subject || out[i].Subject == out[j].Subject && out[i].Version < out[j].Version
	})
	return out
}

// level is the compatibility level that holds for a subject.
func (s *store) level(subject string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if l, ok := s.config[subject]; ok {
		return l
	}
	if l, ok := s.config[""]; ok {
		return l
	}
	return "BACKWARD"
}

// modeOf is the mode that holds for a subject.
func (s *store) modeOf(subject string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if m, ok := s.mode[subject]; ok {
		return m
	}
	if m, ok := s.mode[""]; ok {
		return m
	}
	return "READWRITE"
}

func (s *store) own(m map[string]string, subject string) (string, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := m[subject]
	return v, ok
}

// idFor gives the id of a schema text: its old one, or the next.
func (s *store) idFor(schema string) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if id, ok := s.ids[schema]; ok {
		return id
	}
	return s.lastID + 1
}

func (s *store) newest() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lastID
}

// record is one record to write.
type record struct{ key, value []byte }

func schemaRecord(v version) record {
	return record{
		mustJSON(recordKey{"SCHEMA", &v.Subject, v.Version, 1}),
		mustJSON(recordValue{Subject: v.Subject, Version: v.Version, ID: v.ID, Schema: v.Schema, Deleted: &v.Deleted}),
	}
}

func schemaTombstone(v version) record {
	return record{key: mustJSON(recordKey{"SCHEMA", &v.Subject, v.Version, 1})}
}

func deleteSubjectRecord(subject string, last int) record {
	return record{
		mustJSON(recordKey{KeyType: "DELETE_SUBJECT", Subject: &subject}),
		mustJSON(recordValue{Subject: subject, Version: last}),
	}
}

// settingRecord is a CONFIG or MODE record; their keys name a null subject for
// the global setting. A zero value removes the setting.
func settingRecord(kind, subject string, v recordValue) record {
	name := []byte("null")
	if subject != "" {
		name = mustJSON(subject)
	}
	r := record{key: []byte(`{"keytype":"` + kind + `","subject":` + string(name) + `,"magic":0}`)}
	if v != (recordValue{}) {
		r.value = mustJSON(v)
	}
	return r
}

var noop = record{key: []byte(`{"keytype":"NOOP","magic":0}`)}

func mustJSON(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("BUG: writing JSON: " + err.Error())
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}
