// Package law holds the tests of the project's own rules: who may import whom,
// and that what comments and documents cite is there. It has no code.
package law
