// Package problem is the one kind of error that a user sees: a stable code,
// the object it is about, and what to do next; and the class by which the
// engine decides between retry, reject and halt.
package problem

import (
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"
)

// Class is what the engine does about an error.
type Class uint8

const (
	// Retry: an outage or a throttle. The same work is tried again after a
	// while; nothing is skipped.
	Retry Class = iota + 1
	// Reject: this one record is bad. It is parked, and later records of its
	// key wait behind it or replace it.
	Reject
	// Halt: going on would lose or corrupt data, or cannot succeed without a
	// person. The component stops and says why.
	Halt
)

func (c Class) String() string {
	switch c {
	case Retry:
		return "retry"
	case Reject:
		return "reject"
	case Halt:
		return "halt"
	}
	return "unclassified"
}

// Code is one entry of the catalogue (docs/errors.md is generated from it).
type Code struct {
	ID      string // "TW-PG-SLOT-IN-USE"; never changes once released
	Class   Class
	Meaning string // one sentence
	Remedy  string // what to do next, one or two sentences
}

var (
	mu        sync.Mutex
	catalogue = map[string]Code{}
)

// Define enters a code into the catalogue; call it from package variables.
func Define(id string, class Class, meaning, remedy string) Code {
	mu.Lock()
	defer mu.Unlock()
	if _, dup := catalogue[id]; dup {
		panic("BUG: problem code defined twice: " + id)
	}
	c := Code{id, class, meaning, remedy}
	catalogue[id] = c
	return c
}

// All lists the catalogue in order of ID.
func All() []Code {
	mu.Lock()
	defer mu.Unlock()
	out := make([]Code, 0, len(catalogue))
	for _, c := range catalogue {
		out = append(out, c)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Error is an occurrence of a Code.
type Error struct {
	Code
	Text  string        // what happened, with the identifiers that a person needs; never a secret or a restricted field
	Where string        // the place in the configuration or the object, when Text does not say it; may be empty
	Fix   string        // the remedy in this very case; empty: Code.Remedy
	After time.Duration // Retry: not before this long; 0: the engine's backoff
	Err   error         // cause, may be nil
}

// New makes an occurrence. The text is formatted as by fmt.Errorf; %w works.
func (c Code) New(format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: c, Text: err.Error(), Err: errors.Unwrap(err)}
}

// WithRemedy gives the remedy of this very case.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// WithDelay says how long to wait before the next try (Retry-After).
func (e *Error) WithDelay(d time.Duration) *Error {
	e.After = d
	return e
}

// At says where: "tallywire.yml:12:5: sources.psa.dsn".
func (e *Error) At(format string, args ...any) *Error {
	e.Where = fmt.Sprintf(format, args...)
	return e
}

// WhatToDo is the remedy.
func (e *Error) WhatToDo() string {
	if e.Fix != "" {
		return e.Fix
	}
	return e.Remedy
}

func (e *Error) Error() string {
	if e.Where != "" {
		return e.ID + ": " + e.Where + ": " + e.Text
	}
	return e.ID + ": " + e.Text
}

func (e *Error) Unwrap() error { return e.Err }

// Is matches another occurrence of the same code: errors.Is(err, SlotInUse.New("")).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.ID == e.ID
}

// Of finds the Error in a chain, or nil.
func Of(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Has reports whether the chain holds an occurrence of c: as its outermost
// problem, which alone decides about the class, or as a cause of it.
func Has(err error, c Code) bool { return errors.Is(err, &Error{Code: c}) }
