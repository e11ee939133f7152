// Package law holds the tests of the project's own rules: who may import whom,
// and that generated documents are fresh. It has no code.
package law
