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
)

// Standing is how a contract stands to the registry.
type Standing struct {
	Version int      // the last of its subject; 0: it has none
	Same    bool     // the contract's schema is one of them
	Changes []string // of fields, since the last version
	Against []string // why the registry would refuse it; empty: it would not
}

// ValueSubject is the subject of a topic's records (Confluent's TopicNameStrategy).
func ValueSubject(topic string) string { return topic + "-value" }

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
	if _, err = r.client.LookupSchema(ctx, subject, schema); err == nil {
		s.Same = true
		return s, nil
	} else if !missing(err) {
		return s, r.classify(ctx, err, "looking for a schema of subject "+subject)
	}
	if was, err := parseContract(last.Schema.Schema); err == nil {
		s.Changes = changes(was, c)
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
// has: the subject's level is NONE meanwhile, and afterwards what it was. Errors:
// those of Register.
func (r *Registry) Supersede(ctx context.Context, c *Contract) (err error) {
	subject := ValueSubject(c.Topic)
	was := r.client.Compatibility(ctx, subject)[0]
	if was.Err != nil && !missing(was.Err) {
		return r.classify(ctx, was.Err, "asking for the compatibility of subject "+subject)
	}
	if err := r.client.SetCompatibility(ctx, sr.SetCompatibility{Level: sr.CompatNone}, subject)[0].Err; err != nil {
		return r.classify(ctx, err, "setting the compatibility of subject "+subject)
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		back := func() error { return r.client.ResetCompatibility(ctx, subject)[0].Err }
		if was.Err == nil {
			back = func() error {
				return r.client.SetCompatibility(ctx, sr.SetCompatibility{Level: was.Level}, subject)[0].Err
			}
		}
		if no := back(); no != nil {
			err = errors.Join(err, r.classify(ctx, no, "setting the compatibility of subject "+subject+" back from NONE"))
		}
	}()
	_, _, err = r.RegisterContract(ctx, c)
	return err
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
