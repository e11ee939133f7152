package config

import (
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

// What can be wrong with a configuration. Each names file, line, column and path.
var (
	ErrFile = problem.Define("TW-CONFIG-FILE", problem.Halt,
		"The configuration file cannot be read.",
		"Name an existing file with -c; examples/demo/tallywire.yml is one to start from.")
	ErrSyntax = problem.Define("TW-CONFIG-SYNTAX", problem.Halt,
		"The configuration is not YAML.",
		"Mend the line that is named: indentation by spaces, a space after each colon, quotes closed.")
	ErrKey = problem.Define("TW-CONFIG-KEY", problem.Halt,
		"The configuration has a key that does not exist, or has it twice.",
		"Correct or remove it; docs/config.md lists every key.")
	ErrType = problem.Define("TW-CONFIG-TYPE", problem.Halt,
		"A value in the configuration is of another type than its key takes.",
		"Write it as docs/config.md says.")
	ErrValue = problem.Define("TW-CONFIG-VALUE", problem.Halt,
		"A value in the configuration is missing or out of range.",
		"Write one that docs/config.md allows.")
	// ErrSecret is secret.ErrSecret: a secret is missing or stands in the text.
	ErrSecret = secret.ErrSecret
)
