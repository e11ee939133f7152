// Schemas: the requests about schemas, subjects and versions.

package registry

import (
	"net/http"
	"strconv"
)

// described is a version as the API shows it.
func described(v version) map[string]any {
	return map[string]any{"subject": v.Subject, "version": v.Version, "id": v.ID, "schema": v.Schema}
}

func numbers(vs []version) []int {
	out := []int{}
	for _, v := range vs {
		out = append(out, v.Version)
	}
	return out
}

func (s *Server) byID(r *http.Request) ([]version, error) {
	id, err := pathInt(r, "id", 40403, "schema id")
	if err != nil {
		return nil, errNoSchema
	}
	vs := s.store.usages(id)
	// Ids are given in order: one just above the newest that we know may have
	// been given by another registry this moment, so read on to the end.
	if newest := s.store.newest(); len(vs) == 0 && id > newest && id <= newest+1000 {
		if err := s.log.update(r.Context(), func() ([]record, error) { return []record{noop}, nil }); err != nil {
			return nil, err
		}
		vs = s.store.usages(id)
	}
	if len(vs) == 0 {
		return nil, errNoSchema
	}
	return vs, nil
}

func (s *Server) schemaByID(r *http.Request) (any, error) {
	vs, err := s.byID(r)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"schema": vs[0].Schema}
	if flag(r, "fetchMaxId") {
		out["maxId"] = s.store.newest()
	}
	return out, nil
}

func (s *Server) schemaTextByID(r *http.Request) (any, error) {
	vs, err := s.byID(r)
	if err != nil {
		return nil, err
	}
	return raw(vs[0].Schema), nil
}

func (s *Server) subjectsByID(r *http.Request) (any, error) {
	vs, err := s.byID(r)
	if err != nil {
		return nil, err
	}
	out, seen := []string{}, map[string]bool{}
	for _, v := range vs {
		if (!v.Deleted || flag(r, "deleted")) && !seen[v.Subject] {
			seen[v.Subject] = true
			out = append(out, v.Subject)
		}
	}
	return out, nil
}

func (s *Server) versionsByID(r *http.Request) (any, error) {
	vs, err := s.byID(r)
	if err != nil {
		return nil, err
	}
	out := []map[string]any{}
	for _, v := range vs {
		if !v.Deleted || flag(r, "deleted") {
			out = append(out, map[string]any{"subject": v.Subject, "version": v.Version})
		}
	}
	return out, nil
}

func (s *Server) listSchemas(r *http.Request) (any, error) {
	out := []map[string]any{}
	for _, name := range s.store.names(flag(r, "deleted")) {
		vs := s.store.versions(name, flag(r, "deleted"))
		if flag(r, "latestOnly") && len(vs) > 0 {
			vs = vs[len(vs)-1:]
		}
		for _, v := range vs {
			out = append(out, described(v))
		}
	}
	return out, nil
}

func (s *Server) listSubjects(r *http.Request) (any, error) {
	return s.store.names(flag(r, "deleted")), nil
}

func (s *Server) listVersions(r *http.Request) (any, error) {
	vs := s.store.versions(subject(r), flag(r, "deleted"))
	if len(vs) == 0 {
		return nil, errNoSubject(subject(r))
	}
	return numbers(vs), nil
}

// register gives a schema its id under a subject.
func (s *Server) register(r *http.Request) (any, error) {
	text, err := schemaOf(r)
	if err != nil {
		return nil, err
	}
	name, id := subject(r), 0
	err = s.log.update(r.Context(), func() ([]record, error) {
		live := s.store.versions(name, false)
		for _, v := range live {
			if v.Schema == text {
				id = v.ID
				return nil, nil
			}
		}
		if m := s.store.modeOf(name); m != "READWRITE" {
			return nil, fail(42205, "Subject %s is in mode %s.", name, m)
		}
		against, err := incompatible(s.store.level(name), text, live)
		if err != nil {
			return nil, fail(42201, "Invalid schema: %v", err)
		}
		if len(against) > 0 {
			return nil, fail(409, "Schema being registered is incompatible with an earlier schema for subject \"%s\": %s", name, against[0])
		}
		next := 1
		if all := s.store.versions(name, true); len(all) > 0 {
			next = all[len(all)-1].Version + 1
		}
		id = s.store.idFor(text)
		return []record{schemaRecord(version{Subject: name, Version: next, ID: id, Schema: text})}, nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": id}, nil
}

func (s *Server) lookup(r *http.Request) (any, error) {
	text, err := schemaOf(r)
	if err != nil {
		return nil, err
	}
	vs := s.store.versions(subject(r), flag(r, "deleted"))
	if len(vs) == 0 {
		return nil, errNoSubject(subject(r))
	}
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].Schema == text {
			return described(vs[i]), nil
		}
	}
	return nil, errNoSchema
}

// find gives the version that the path names: a number, latest or -1.
func (s *Server) find(r *http.Request, deleted bool) (version, error) {
	name, want := subject(r), r.PathValue("version")
	vs := s.store.versions(name, deleted)
	if len(vs) == 0 {
		return version{}, errNoSubject(name)
	}
	if want == "latest" || want == "-1" {
		return vs[len(vs)-1], nil
	}
	n, err := strconv.Atoi(want)
	if err != nil || n < 1 || n > 1<<31-1 {
		return version{}, fail(42202, "The specified version '%s' is not a valid version id. Allowed values are between [1, 2^31-1] and the string \"latest\"", want)
	}
	for _, v := range vs {
		if v.Version == n {
			return v, nil
		}
	}
	return version{}, errNoVersion(n)
}

func (s *Server) getVersion(r *http.Request) (any, error) {
	v, err := s.find(r, flag(r, "deleted"))
	if err != nil {
		return nil, err
	}
	return described(v), nil
}

func (s *Server) getVersionText(r *http.Request) (any, error) {
	v, err := s.find(r, flag(r, "deleted"))
	if err != nil {
		return nil, err
	}
	return raw(v.Schema), nil
}

func (s *Server) deleteSubject(r *http.Request) (any, error) {
	name := subject(r)
	permanent := flag(r, "permanent")
	var gone []version
	err := s.log.update(r.Context(), func() ([]record, error) {
		all, live := s.store.versions(name, true), s.store.versions(name, false)
		switch {
		case len(all) == 0:
			return nil, errNoSubject(name)
		case permanent && len(live) > 0:
			return nil, fail(40405, "Subject '%s' was not deleted first before being permanently deleted", name)
		case permanent:
			gone = all
			var rs []record
			for _, v := range all {
				if err := s.mayVanish(v); err != nil {
					return nil, err
				}
				rs = append(rs, schemaTombstone(v))
			}
			return rs, nil
		case len(live) == 0:
			return nil, fail(40404, "Subject '%s' was soft deleted. Set permanent=true to delete permanently", name)
		}
		gone = live
		return []record{deleteSubjectRecord(name, live[len(live)-1].Version)}, nil
	})
	if err != nil {
		return nil, err
	}
	return numbers(gone), nil
}

func (s *Server) deleteVersion(r *http.Request) (any, error) {
	permanent := flag(r, "permanent")
	var gone version
	err := s.log.update(r.Context(), func() ([]record, error) {
		v, err := s.find(r, true)
		if err != nil {
			return nil, err
		}
		gone = v
		switch {
		case permanent && !v.Deleted:
			return nil, fail(40407, "Subject '%s' Version %d was not deleted first before being permanently deleted", v.Subject, v.Version)
		case permanent:
			if err := s.mayVanish(v); err != nil {
				return nil, err
			}
			return []record{schemaTombstone(v)}, nil
		case v.Deleted:
			return nil, fail(40406, "Subject '%s' Version %d was soft deleted. Set permanent=true to delete permanently", v.Subject, v.Version)
		}
		v.Deleted = true
		return []record{schemaRecord(v)}, nil
	})
	if err != nil {
		return nil, err
	}
	return gone.Version, nil
}

// mayVanish keeps the newest id on the topic: the next one is counted from it,
// and an id must never name two schemas.
func (s *Server) mayVanish(v version) error {
	if v.ID == s.store.newest() {
		return fail(42205, "Schema %d is the newest: it can be deleted for good once another schema is registered.", v.ID)
	}
	return nil
}
