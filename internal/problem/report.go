// report.go: how an error is shown to a person, and to a program.

package problem

import (
	"fmt"
	"strings"
)

// Report is an error for a program: what `--output json` prints.
type Report struct {
	Code   string `json:"code,omitempty"`
	Class  string `json:"class,omitempty"`
	What   string `json:"what"`
	Where  string `json:"where,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// Reports takes an error apart: one Report for each joined error.
func Reports(err error) []Report {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok && error(Of(err)) != err { //nolint:errorlint // the very same, not one like it
		var out []Report
		for _, e := range j.Unwrap() {
			out = append(out, Reports(e)...)
		}
		return out
	}
	e := Of(err)
	if e == nil {
		return []Report{{What: err.Error()}}
	}
	what := e.Text
	// What was being done, wrapped around the problem, is kept.
	if whole := err.Error(); err != error(e) && //nolint:errorlint // the very same
		strings.HasSuffix(whole, e.Error()) {
		what = strings.TrimSuffix(whole, e.Error()) + what
	}
	return []Report{{Code: e.ID, Class: e.Class.String(), What: what, Where: e.Where, Remedy: e.WhatToDo()}}
}

// Format is Reports as text: code and what happened, where, and what to do.
func Format(err error) string {
	var b strings.Builder
	for _, r := range Reports(err) {
		if r.Code != "" {
			fmt.Fprintf(&b, "%s: %s\n", r.Code, r.What)
		} else {
			fmt.Fprintf(&b, "%s\n", r.What)
		}
		if r.Where != "" {
			fmt.Fprintf(&b, "  where   %s\n", r.Where)
		}
		if r.Remedy != "" {
			fmt.Fprintf(&b, "  remedy  %s\n", r.Remedy) // its lines as they are: they are copied
		}
	}
	return b.String()
}
