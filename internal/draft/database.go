// Package draft writes a first configuration for a database that nobody has
// described: which tables are captured, and which rules fill which contracts.
// It guesses by names, types and foreign keys, and says what it guessed and why.
// It sees no row. database.go is what it is told.
package draft

import (
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// Database is what the catalog of a database says.
type Database struct {
	Source string // the name that it gets as a source
	Name   string
	Server string // "PostgreSQL 17.2"
	Tables []*Table
	Others []Other

	// Problems are what capture lacks: settings, rights.
	Problems []*problem.Error
}

// Other is what may look like a table of the firm, and has no changes to capture.
type Other struct {
	Name   string // schema.name
	Why    string // "it is a view"
	Remedy string
}

// Table is one table.
type Table struct {
	*change.Table
	Rows        int64 // as the server estimates, -1: it does not
	Partitioned bool
	Left        *problem.Error    // why it cannot be captured; nil: it can
	Grants      []string          // the statements without which the role may not read it
	Secrets     []string          // columns that look like secrets, and are to be left out
	Without     []string          // columns that the publication leaves out
	Bound       string            // why the table stays out for its secrets; "": they can be left out
	Hidden      map[string]bool   // columns that are not captured, or must not be
	References  map[string]string // by column: the table, schema.name, that its foreign key leads to
	Distinct    map[string]int64  // by column, of some: how many values it has, about
}

// Full is schema.name.
func (t *Table) Full() string { return t.Schema + "." + t.Name }

// Taken reports whether it is captured, without its secrets.
func (t *Table) Taken() bool { return t.Left == nil && t.Bound == "" }
