// components.go: every source, transform and sink that this binary has. Adding
// one is one line here.

package main

import (
	_ "github.com/tallywire/tallywire/sinks/rest"
	_ "github.com/tallywire/tallywire/sinks/warehouse"
	_ "github.com/tallywire/tallywire/sources/postgres"
	_ "github.com/tallywire/tallywire/transforms/mapping"
)
