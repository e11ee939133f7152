// Names: what is compared when a table or column is compared with what it may
// be called.

package draft

import (
	"slices"
	"strings"
	"unicode"

	"github.com/tallywire/tallywire/change"
)

// words takes a name apart, in lower case: timeEntry, TIME_ENTRY and
// "Time Entry" are the same.
func words(name string) []string {
	var out []string
	var word []rune
	end := func() {
		if len(word) > 0 {
			out, word = append(out, string(word)), nil
		}
	}
	lower := false
	for _, r := range name {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			end()
			lower = false
			continue
		case unicode.IsUpper(r) && lower:
			end()
		}
		lower = unicode.IsLower(r) || unicode.IsDigit(r)
		word = append(word, unicode.ToLower(r))
	}
	end()
	return out
}

// singular is the name of a table in lower case with underscores, its last word
// made singular.
func singular(name string) string {
	w := words(name)
	if len(w) == 0 {
		return ""
	}
	last := &w[len(w)-1]
	switch s := *last; {
	case s == "people":
		*last = "person"
	case strings.HasSuffix(s, "ies") && len(s) > 4:
		*last = s[:len(s)-3] + "y"
	case strings.HasSuffix(s, "sses"), strings.HasSuffix(s, "xes"):
		*last = s[:len(s)-2]
	case strings.HasSuffix(s, "s") && !strings.HasSuffix(s, "ss") && !strings.HasSuffix(s, "us") && len(s) > 2:
		*last = s[:len(s)-1]
	}
	return strings.Join(w, "_")
}

// secretWords are what a column of a secret is called; the second list must be
// the whole name, or its last words.
var (
	secretWords = []string{"password", "passwd", "pwd", "passphrase", "passcode", "secret", "salt", "otp", "totp", "mfa", "hash", "token", "credential", "credentials", "pin", "cvv", "cvc", "apikey", "privatekey"}
	secretPairs = []string{"api_key", "private_key", "access_key", "secret_key", "encryption_key", "signing_key", "ssh_key", "auth_key", "session_key", "recovery_code", "recovery_codes", "backup_code", "backup_codes", "card_number", "security_code"}
)

// IsSecret reports whether a column is called like a secret, and of a type that
// can hold one. It errs on the side of yes: what is left out can be taken in
// again, what went out cannot be called back.
func IsSecret(col *change.Column) bool {
	switch col.Kind {
	case change.Bool, change.Date, change.Time, change.TimeTZ, change.Timestamp, change.TimestampTZ, change.Interval:
		return false // when it was changed, whether it must be
	}
	return secretName(col.Name)
}

func secretName(name string) bool {
	w := words(name)
	for _, x := range w {
		if slices.Contains(secretWords, x) || strings.Contains(x, "password") || strings.Contains(x, "passwd") || strings.Contains(x, "secret") || strings.HasSuffix(x, "token") || strings.HasSuffix(x, "tokens") {
			return true
		}
	}
	name = strings.Join(w, "_")
	for _, p := range secretPairs {
		if name == p || strings.HasSuffix(name, "_"+p) || strings.HasPrefix(name, p+"_") {
			return true
		}
	}
	return false
}

// HoldsSecrets reports whether a table is called like what it keeps: tokens,
// api_keys. Its columns may be called anything.
func HoldsSecrets(table string) bool { return secretName(singular(table)) }
