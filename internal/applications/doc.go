// Package applications holds the tests that real applications' databases fill
// contracts by configuration alone: Redmine and Tryton, installed as Debian has
// them, with data that was entered through their own code, half of it while it
// is captured. The warehouse must equal SQL over the applications' own tables to
// the last digit. It has no code; `make applications` runs it.
package applications
