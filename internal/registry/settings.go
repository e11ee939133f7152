// Settings: the requests about compatibility and mode.

package registry

import "net/http"

func (s *Server) check(r *http.Request) (any, error) {
	text, err := schemaOf(r)
	if err != nil {
		return nil, err
	}
	name := subject(r)
	level := s.store.level(name)
	old := s.store.versions(name, false)
	if r.PathValue("version") != "" {
		v, err := s.find(r, false)
		if err != nil {
			return nil, err
		}
		old = []version{v}
	}
	against, err := incompatible(level, text, old)
	if err != nil {
		return nil, fail(42201, "Invalid schema: %v", err)
	}
	out := map[string]any{"is_compatible": len(against) == 0}
	if flag(r, "verbose") {
		out["messages"] = append([]string{}, against...)
	}
	return out, nil
}

func (s *Server) getConfig(r *http.Request) (any, error) {
	name := subject(r)
	if _, ok := s.store.own(s.store.config, name); !ok && name != "" && !flag(r, "defaultToGlobal") {
		return nil, fail(40408, "Subject '%s' does not have subject-level compatibility configured", name)
	}
	return map[string]any{"compatibilityLevel": s.store.level(name)}, nil
}

func (s *Server) putConfig(r *http.Request) (any, error) {
	var q struct {
		Compatibility string `json:"compatibility"`
	}
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if !levels[q.Compatibility] {
		return nil, fail(42203, "Invalid compatibility level. Valid values are none, backward, forward, full, backward_transitive, forward_transitive, and full_transitive")
	}
	err := s.log.update(r.Context(), func() ([]record, error) {
		return []record{settingRecord("CONFIG", subject(r), recordValue{Compatibility: q.Compatibility})}, nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"compatibility": q.Compatibility}, nil
}

func (s *Server) deleteConfig(r *http.Request) (any, error) {
	name := subject(r)
	was := s.store.level(name)
	err := s.log.update(r.Context(), func() ([]record, error) {
		if _, ok := s.store.own(s.store.config, name); !ok && name != "" {
			return nil, errNoSubject(name)
		}
		return []record{settingRecord("CONFIG", name, recordValue{})}, nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"compatibilityLevel": was}, nil
}

func (s *Server) getMode(r *http.Request) (any, error) {
	name := subject(r)
	if _, ok := s.store.own(s.store.mode, name); !ok && name != "" && !flag(r, "defaultToGlobal") {
		return nil, fail(40409, "Subject '%s' does not have subject-level mode configured", name)
	}
	return map[string]any{"mode": s.store.modeOf(name)}, nil
}

func (s *Server) putMode(r *http.Request) (any, error) {
	var q struct {
		Mode string `json:"mode"`
	}
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if q.Mode != "READWRITE" && q.Mode != "READONLY" {
		return nil, fail(42204, "Invalid mode. This registry has READWRITE and READONLY.")
	}
	err := s.log.update(r.Context(), func() ([]record, error) {
		return []record{settingRecord("MODE", subject(r), recordValue{Mode: q.Mode})}, nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"mode": q.Mode}, nil
}

func (s *Server) deleteMode(r *http.Request) (any, error) {
	name := subject(r)
	was := s.store.modeOf(name)
	err := s.log.update(r.Context(), func() ([]record, error) {
		if _, ok := s.store.own(s.store.mode, name); !ok {
			return nil, errNoSubject(name)
		}
		return []record{settingRecord("MODE", name, recordValue{})}, nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"mode": was}, nil
}
