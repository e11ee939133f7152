// Secrets: which columns and tables look as if what they hold should not leave the
// database.

package draft

import (
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// secretWords are what a column of a secret is called; the second list must be
// the whole name, or its last words.
var (
	secretWords = []string{"password", "passwd", "pwd", "passphrase", "passcode", "secret", "salt", "otp", "totp", "mfa", "hash", "token", "credential", "credentials", "pin", "cvv", "cvc", "apikey", "privatekey", "passwort", "kennwort", "motdepasse", "mdp", "contrasena", "contraseña", "wachtwoord"}
	secretPairs = []string{"api_key", "private_key", "access_key", "secret_key", "encryption_key", "signing_key", "ssh_key", "auth_key", "session_key", "recovery_code", "recovery_codes", "backup_code", "backup_codes", "card_number", "security_code", "mot_de_passe"}
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

// settingTables are what tables are called, in the end, whose rows are settings.
var settingTables = []string{"setting", "config", "configuration", "conf", "preference", "option", "parameter", "param", "property"}

// HoldsSecrets says why a table may hold secrets whatever its columns are called;
// "": it does not look like it. It is called like what it keeps (tokens,
// api_keys); or it keeps who is logged in, or settings with name and value.
func HoldsSecrets(t *Table) string {
	name := singular(t.Name)
	w := words(name)
	textual := []change.Kind{change.String, change.Text}
	octets := []change.Kind{change.Bytes, change.JSON}
	switch {
	case secretName(name):
		return "it is called like a table of secrets"
	case (slices.Contains(w, "session") || slices.Contains(w, "sessions")) &&
		(t.has(octets) || t.has(textual, "data", "session_data", "sess", "payload", "key", "session_key", "sid", "session_id", "cookie")):
		return "it looks like a store of who is logged in"
	case len(w) > 0 && slices.Contains(settingTables, w[len(w)-1]) &&
		t.has(textual, "name", "key", "code", "setting", "option", "parameter", "param", "property") && t.has(append(octets, textual...), "value", "val"):
		return "each row is a setting, and any may be a password"
	}
	return ""
}

// has reports whether a column is of one of the kinds, and called like one of the
// names, or anything where none is given.
func (t *Table) has(kinds []change.Kind, names ...string) bool {
	return slices.ContainsFunc(t.Columns, func(col change.Column) bool {
		return slices.Contains(kinds, col.Kind) &&
			(len(names) == 0 || slices.ContainsFunc(t.names(col.Name), func(n string) bool { return slices.Contains(names, n) }))
	})
}
