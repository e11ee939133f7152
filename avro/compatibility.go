// Compatibility: how a contract stands to what its subject in the registry has,
// and the step over one that old readers cannot take.

package avro

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/tallywire/tallywire/internal/problem"
)

// Standing is how a contract stands to the registry.
type Standing struct {
	Version int      // the last of its subject; 0: it has none
	Equals  int      // the one that has the contract's schema, which may be earlier; 0: none has
	Changes []string // of fields, since the last version
	Against []string // why the registry would refuse it; empty: it would not

	// Lifted is the global level where the subject's own is NONE and that is not:
	// what a Supersede leaves that was killed. The registry takes anything then, so
	// that Against is empty. "" also where we may not see levels.
	Lifted string
}

// ValueSubject is the subject of a topic's records (Confluent's TopicNameStrategy).
func ValueSubject(topic string) string { return topic + "-value" }

// KeySubject is that of their keys.
func KeySubject(topic string) string { return topic + "-key" }

// Standing compares a contract with its subject. Errors: TW-REGISTRY-UNAVAILABLE
// (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) Standing(ctx context.Context, c *Contract) (s Standing, err error) {
	subject, schema := ValueSubject(c.Topic), sr.Schema{Schema: c.Schema, Type: sr.TypeAvro}
	last, err := r.client.SchemaByVersion(ctx, subject, -1)
	if missing(err) {
		return s, nil
	} else if err != nil {
		return s, r.classify(ctx, err, "fetching the last schema of subject "+subject)
	}
	s.Version = last.Version
	found, err := r.client.LookupSchema(ctx, subject, schema)
	if err == nil {
		s.Equals = found.Version
	} else if !missing(err) {
		return s, r.classify(ctx, err, "looking for a schema of subject "+subject)
	}
	own, global, err := r.levels(ctx, subject)
	if err != nil && !problem.Has(err, ErrRegistryDenied) {
		return s, err
	}
	if lifted(own, global) {
		s.Lifted = global.String()
	}
	if s.Equals == s.Version {
		return s, nil
	}
	if was, err := parseContract(last.Schema.Schema); err == nil {
		s.Changes = changes(was, c)
	}
	if s.Equals > 0 { // the registry takes what it has without a check
		return s, nil
	}
	is, err := r.client.CheckCompatibility(sr.WithParams(ctx, sr.Verbose), subject, -1, schema)
	switch {
	case err != nil:
		return s, r.classify(ctx, err, "checking the compatibility of subject "+subject)
	case !is.Is && len(is.Messages) == 0:
		s.Against = []string{"it is not compatible with version " + fmt.Sprint(s.Version)}
	case !is.Is:
		s.Against = is.Messages
	}
	return s, nil
}

// RegisterContract registers the schemas of a contract's records. Errors: those of
// Register.
func (r *Registry) RegisterContract(ctx context.Context, c *Contract) (key, value int32, err error) {
	if key, err = r.Register(ctx, c.Topic+"-key", keySchema); err != nil {
		return 0, 0, err
	}
	value, err = r.Register(ctx, ValueSubject(c.Topic), c.Schema)
	return key, value, err
}

// Supersede registers a contract that is not compatible with what its subject
// has: the subject's level is NONE meanwhile, and afterwards what it was. One that
// was left at NONE gets the global level. tell gets, before anything is changed,
// what the level is and what sets it back if we do not live to do so. Errors:
// those of Register.
func (r *Registry) Supersede(ctx context.Context, c *Contract, tell func(note string)) (err error) {
	return r.lift(ctx, ValueSubject(c.Topic), tell, func() error {
		_, _, err := r.RegisterContract(ctx, c)
		return err
	})
}

// lift does something while the level of a subject is NONE, and sets it back.
func (r *Registry) lift(ctx context.Context, subject string, tell func(note string), do func() error) (err error) {
	own, global, err := r.levels(ctx, subject)
	if err != nil {
		return err
	}
	how := "curl -X DELETE " + r.levelURL(subject)
	back := func() error { return r.client.ResetCompatibility(ctx, subject)[0].Err }
	switch {
	case lifted(own, global):
		tell(fmt.Sprintf("subject %s: its level is NONE; it is the global one, %s, when its schema is registered", subject, global))
	case own == 0:
		tell(fmt.Sprintf("subject %s: its level is %s, the global one, and NONE until its schema is registered; if that is cut short, this sets it back: %s", subject, global, how))
	default:
		how = fmt.Sprintf(`curl -X PUT -H 'Content-Type: application/json' -d '{"compatibility": "%s"}' %s`, own, r.levelURL(subject))
		back = func() error {
			return r.client.SetCompatibility(ctx, sr.SetCompatibility{Level: own}, subject)[0].Err
		}
		tell(fmt.Sprintf("subject %s: its level is %s, and NONE until its schema is registered; if that is cut short, this sets it back: %s", subject, own, how))
	}
	if err := r.client.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatNone}, subject)[0].Err; err != nil {
		return r.classify(ctx, err, "setting the compatibility of subject "+subject)
	}
	defer func() {
		ctx = context.WithoutCancel(ctx)
		if no := back(); no != nil {
			no = r.classify(ctx, no, "setting the compatibility of subject "+subject+" back from NONE")
			if e := problem.Of(no); e != nil {
				no = e.WithRemedy("The registry takes anything for the subject until it is set back: %s", how)
			}
			err = errors.Join(err, no)
		}
	}()
	return do()
}

// unchecked has the registry take any schema for subjects.
func (r *Registry) unchecked(ctx context.Context, subjects ...string) error {
	for _, is := range r.client.Compatibility(ctx, subjects...) {
		if is.Err == nil && is.Level == sr.CompatNone {
			continue
		}
		if err := r.client.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatNone}, is.Subject)[0].Err; err != nil {
			return r.classify(ctx, err, "setting the compatibility of subject "+is.Subject)
		}
	}
	return nil
}

// Schema is one of a subject.
type Schema struct {
	Subject string
	Version int
	ID      int32
	Text    string
}

// Schemas lists those of the subjects of a topic, the oldest of each first. Errors:
// TW-REGISTRY-UNAVAILABLE (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) Schemas(ctx context.Context, topic string) (all []Schema, err error) {
	for _, subject := range []string{KeySubject(topic), ValueSubject(topic)} {
		of, err := r.client.Schemas(ctx, subject)
		if err != nil && !missing(err) {
			return nil, r.classify(ctx, err, "listing the schemas of subject "+subject)
		}
		for _, s := range of {
			all = append(all, Schema{subject, s.Version, int32(s.ID), s.Schema.Schema})
		}
	}
	return all, nil
}

// Adopt registers the schemas of topic from for topic to, unchecked, and gives their
// ids. Of a subject that takes one it has not, anew takes out the former ones first:
// from then on later schemas are held against the new ones alone. The former are still
// read by their ids. It may be done again when it was cut short: a subject that was
// left at NONE gets the global level. Errors: those of Register.
func (r *Registry) Adopt(ctx context.Context, from, to string, anew bool, tell func(note string)) (ids []int32, err error) {
	all, err := r.Schemas(ctx, from)
	if err != nil {
		return nil, err
	}
	for _, kind := range []func(string) string{KeySubject, ValueSubject} {
		subject := kind(to)
		var lacks []Schema
		for _, s := range all {
			if s.Subject != kind(from) {
				continue
			}
			ids = append(ids, s.ID)
			_, err := r.client.LookupSchema(ctx, subject, sr.Schema{Schema: s.Text, Type: sr.TypeAvro})
			switch {
			case missing(err):
				lacks = append(lacks, s)
			case err != nil:
				return nil, r.classify(ctx, err, "looking for a schema of subject "+subject)
			}
		}
		if len(lacks) == 0 {
			// Who registered them may not have lived to set the level back.
			own, global, err := r.levels(ctx, subject)
			if err != nil {
				return nil, err
			}
			if lifted(own, global) {
				if err := r.lift(ctx, subject, tell, func() error { return nil }); err != nil {
					return nil, err
				}
			}
			continue
		}
		if anew {
			if err := r.Forget(ctx, subject); err != nil {
				return nil, err
			}
		}
		if err := r.lift(ctx, subject, tell, func() error {
			for _, s := range lacks {
				id, err := r.Register(ctx, subject, s.Text)
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// levels are a subject's own level, 0: it has none, and the global one. Errors:
// TW-REGISTRY-UNAVAILABLE (retry), TW-REGISTRY-DENIED (halt).
func (r *Registry) levels(ctx context.Context, subject string) (own, global sr.CompatibilityLevel, err error) {
	both := r.client.Compatibility(ctx, subject, sr.GlobalSubject)
	for _, l := range both {
		if l.Err != nil && !missing(l.Err) {
			return 0, 0, r.classify(ctx, l.Err, "asking for the compatibility of subject "+subject)
		}
	}
	return both[0].Level, both[1].Level, nil
}

// lifted: nothing that is given to the subject is checked, and that is not the
// firm's rule.
func lifted(own, global sr.CompatibilityLevel) bool {
	return own == sr.CompatNone && global != 0 && global != sr.CompatNone
}

func (r *Registry) levelURL(subject string) string { return r.url + "/config/" + subject }

// SetsBack is the command that gives the subject of a topic's records the global
// level again. The registry's user and password are not in it.
func (r *Registry) SetsBack(topic string) string {
	return "curl -X DELETE " + r.levelURL(ValueSubject(topic))
}

// missing: the registry says that there is no such thing.
func missing(err error) bool {
	re := (*sr.ResponseError)(nil)
	return errors.As(err, &re) && re.StatusCode == http.StatusNotFound
}

// changes are the differences of two contracts that a reader would notice.
func changes(was, now *Contract) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for i, f := range now.Fields {
		is := &now.Table.Columns[i]
		j := was.Table.Column(f.Name)
		if j < 0 {
			say("+ %s: %s", f.Name, is.Type)
			continue
		}
		had, old := &was.Table.Columns[j], was.Fields[j]
		switch {
		case had.Type != is.Type || had.Scale != is.Scale || had.Precision != is.Precision:
			say("~ %s: %s was %s", f.Name, is.Type, had.Type)
		case is.Nullable && !had.Nullable:
			say("~ %s: may be null", f.Name)
		case !is.Nullable && had.Nullable:
			say("~ %s: is never null", f.Name)
		}
		if !slices.Equal(f.Values, old.Values) {
			say("~ %s: of %s, was of %s", f.Name, list(f.Values), list(old.Values))
		}
		if a, b := said(old.Default), said(f.Default); a != b {
			say("~ %s: %s by default, was %s", f.Name, b, a)
		}
		if f.Sensitivity != old.Sensitivity {
			say("~ %s: %s, was %s", f.Name, f.Sensitivity, old.Sensitivity)
		}
	}
	for _, f := range was.Fields {
		if now.Table.Column(f.Name) < 0 {
			say("- %s", f.Name)
		}
	}
	return out
}

func said(d *Default) string {
	if d == nil {
		return "nothing"
	}
	return fmt.Sprintf("%q", d)
}

func list(values []string) string {
	if values == nil {
		return "any text"
	}
	return strings.Join(values, "|")
}
