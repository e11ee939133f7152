// Package build tells which build this is.
package build

import "runtime/debug"

// version is set by the build of a release:
// -ldflags "-X github.com/tallywire/tallywire/internal/build.version=v1.2.3".
var version = ""

// Version is the release, that of the module when it was installed by go
// install, else "dev".
func Version() string {
	if version != "" {
		return version
	}
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" && b.Main.Version != "(devel)" {
		return b.Main.Version
	}
	return "dev"
}

// Commit is the revision that was built, "" when the build does not know.
func Commit() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}
