// Package secret keeps what must not be seen: a Value is read from the
// environment or a file, never from the configuration's own text, and prints
// as its reference wherever it is formatted, logged or marshalled
// (invariant 13).
package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/tallywire/tallywire/internal/problem"
)

// ErrSecret is what is wrong with a secret; the text names where it is asked
// for, never what it holds.
var ErrSecret = problem.Define("TW-CONFIG-SECRET", problem.Halt,
	"A secret is missing, empty, or written into the configuration.",
	"Name it as env:NAME (and set the variable) or file:PATH (and put the secret into that file, readable by this user).")

// Value is one secret. The zero Value is empty. It holds its text behind a
// function, so that printers that walk structs by reflection do not see it.
type Value struct {
	ref    string // "env:NAME", "file:PATH", or "" when made by Of
	reveal func() string
}

// Of makes a Value of a text that is already in memory (for programs that make
// their own secrets, such as the demo, and for tests).
func Of(text string) Value { return Value{reveal: func() string { return text }} }

// Reveal gives the text. Hand it to the far side and to nothing else.
func (v Value) Reveal() string {
	if v.reveal == nil {
		return ""
	}
	return v.reveal()
}

// IsZero reports whether nothing was configured.
func (v Value) IsZero() bool { return v.reveal == nil }

// String is the reference, never the secret.
func (v Value) String() string {
	switch {
	case v.reveal == nil:
		return ""
	case v.ref == "":
		return "[secret]"
	}
	return "[secret " + v.ref + "]"
}

// Format makes every verb, %#v and %x included, print String.
func (v Value) Format(s fmt.State, _ rune) { writeString(s, v.String()) }

// LogValue is String.
func (v Value) LogValue() slog.Value { return slog.StringValue(v.String()) }

// MarshalJSON, MarshalYAML and MarshalText give String.
func (v Value) MarshalJSON() ([]byte, error) { return json.Marshal(v.String()) }
func (v Value) MarshalYAML() (any, error)    { return v.String(), nil }
func (v Value) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText resolves a reference with the process's environment.
func (v *Value) UnmarshalText(b []byte) error {
	r, err := Resolve(string(b), os.LookupEnv)
	if err != nil {
		return err
	}
	*v = r
	return nil
}

// Resolve reads what a reference names: "env:NAME" or "file:PATH" (one newline
// at the end is not part of it). The error is plain: its text says what is
// wrong and holds no part of a secret; the caller adds where it was asked for.
func Resolve(ref string, env func(string) (string, bool)) (Value, error) {
	text, err := read(ref, env)
	if err != nil {
		return Value{}, err
	}
	return Value{ref: ref, reveal: func() string { return text }}, nil
}

// Reference gives a Value that knows its reference and is not read: for static
// checks, where the secrets need not be at hand.
func Reference(ref string) (Value, error) {
	if !isRef(ref) {
		return Value{}, errLiteral
	}
	return Value{ref: ref, reveal: func() string { return "" }}, nil
}

var errLiteral = errors.New("want env:NAME or file:PATH; a secret itself does not belong into the configuration")

func isRef(s string) bool {
	name, ok := strings.CutPrefix(s, "env:")
	path, ok2 := strings.CutPrefix(s, "file:")
	return ok && name != "" || ok2 && path != ""
}

func read(ref string, env func(string) (string, bool)) (string, error) {
	if !isRef(ref) {
		return "", errLiteral
	}
	if name, ok := strings.CutPrefix(ref, "env:"); ok {
		text, ok := env(name)
		if !ok {
			return "", fmt.Errorf("the environment variable %s is not set", name)
		}
		if text == "" {
			return "", fmt.Errorf("the environment variable %s is empty", name)
		}
		return text, nil
	}
	path := strings.TrimPrefix(ref, "file:")
	b, err := os.ReadFile(path)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return "", fmt.Errorf("reading the file %s: %w", path, err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" {
		return "", fmt.Errorf("the file %s is empty", path)
	}
	return text, nil
}

// DSN is how to reach a Postgres: a reference as of Value, or the plain text
// of a DSN that holds no password.
type DSN struct{ Value }

// DSNOf makes a DSN of a text that is already in memory.
func DSNOf(text string) DSN { return DSN{Of(text)} }

// UnmarshalText reads a reference with the process's environment, or a plain DSN.
func (d *DSN) UnmarshalText(b []byte) error {
	r, err := ResolveDSN(string(b), os.LookupEnv)
	if err != nil {
		return err
	}
	*d = r
	return nil
}

var kvPassword = regexp.MustCompile(`(?i)(^|\s)(ssl)?password\s*=`)

// ResolveDSN is Resolve that also takes a plain DSN without a password.
func ResolveDSN(s string, env func(string) (string, bool)) (DSN, error) {
	if isRef(s) {
		v, err := Resolve(s, env)
		return DSN{v}, err
	}
	return plainDSN(s)
}

// ReferenceDSN is Reference for a DSN.
func ReferenceDSN(s string) (DSN, error) {
	if isRef(s) {
		v, err := Reference(s)
		return DSN{v}, err
	}
	return plainDSN(s)
}

func plainDSN(s string) (DSN, error) {
	hasPassword := kvPassword.MatchString(s)
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil { // its text would quote the DSN
			return DSN{}, errors.New("not a URL of the form postgres://user@host:port/database")
		}
		_, inUser := u.User.Password()
		hasPassword = inUser || u.Query().Has("password") || u.Query().Has("sslpassword")
	} else if !strings.Contains(s, "=") {
		return DSN{}, errors.New("want a DSN (postgres://user@host:port/database), env:NAME or file:PATH")
	}
	if hasPassword {
		return DSN{}, errors.New("a password stands in it: name the whole DSN as env:NAME or file:PATH")
	}
	return DSN{Value{ref: s, reveal: func() string { return s }}}, nil
}

// URL is where a server is: a reference as of Value, or the plain text of an
// address (host:port, or a URL) that holds no password.
type URL struct{ Value }

// URLOf makes a URL of a text that is already in memory.
func URLOf(text string) URL { return URL{Of(text)} }

// UnmarshalText reads a reference with the process's environment, or a plain
// address.
func (u *URL) UnmarshalText(b []byte) error {
	r, err := ResolveURL(string(b), os.LookupEnv)
	if err != nil {
		return err
	}
	*u = r
	return nil
}

// ResolveURL is Resolve that also takes a plain address without a password.
func ResolveURL(s string, env func(string) (string, bool)) (URL, error) {
	if isRef(s) {
		v, err := Resolve(s, env)
		return URL{v}, err
	}
	return plainURL(s)
}

// ReferenceURL is Reference for a URL.
func ReferenceURL(s string) (URL, error) {
	if isRef(s) {
		v, err := Reference(s)
		return URL{v}, err
	}
	return plainURL(s)
}

func plainURL(s string) (URL, error) {
	hasPassword := strings.Contains(s, "@")
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil { // its text would quote the URL
			return URL{}, errors.New("not a URL of the form scheme://host:port")
		}
		_, hasPassword = u.User.Password()
	}
	if hasPassword {
		return URL{}, errors.New("a password stands in it: name the whole URL as env:NAME or file:PATH")
	}
	return URL{Value{ref: s, reveal: func() string { return s }}}, nil
}

func writeString(w io.Writer, s string) {
	if _, err := io.WriteString(w, s); err != nil {
		return // a fmt.State reports no errors
	}
}
