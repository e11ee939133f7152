package seal

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

func of(t *testing.T, fills ...byte) *Ring {
	t.Helper()
	var keys []secret.Value
	for _, b := range fills {
		keys = append(keys, secret.Of(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32))+"\n"))
	}
	r, err := New(keys, "encryption.keys")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRing(t *testing.T) {
	old, now := of(t, 1), of(t, 2, 1)
	sealed, id := old.Seal([]byte("head"), []byte("82.50"), []byte("about"))
	sealed = sealed[4:]
	if bytes.Contains(sealed, []byte("82.50")) {
		t.Error("it can be read")
	}
	if again, _ := old.Seal(nil, []byte("82.50"), []byte("about")); bytes.Equal(again, sealed) {
		t.Error("the same twice: equal values can be told")
	}
	if plain, err := now.Open(id, sealed, []byte("about")); err != nil || string(plain) != "82.50" {
		t.Errorf("%q, %v", plain, err)
	}
	if _, other := now.Seal(nil, nil, nil); other == id {
		t.Error("the former key still seals")
	}
	altered := bytes.Clone(sealed)
	altered[len(altered)-1]++
	for name, c := range map[string]struct {
		ring   *Ring
		sealed []byte
		about  string
	}{
		"altered":  {now, altered, "about"},
		"moved":    {now, sealed, "another"},
		"cut":      {now, sealed[:5], "about"},
		"no ring":  {nil, sealed, "about"},
		"key gone": {of(t, 3), sealed, "about"},
	} {
		if plain, err := c.ring.Open(id, c.sealed, []byte(c.about)); !problem.Has(err, ErrSealed) || plain != nil {
			t.Errorf("%s: %q, %v", name, plain, err)
		}
	}
}

func TestKeys(t *testing.T) {
	if r, err := New(nil, "x"); r != nil || err != nil {
		t.Error(r, err)
	}
	for _, bad := range []string{"secret", base64.StdEncoding.EncodeToString(make([]byte, 16))} {
		_, err := New([]secret.Value{secret.Of(base64.StdEncoding.EncodeToString(make([]byte, 32))), secret.Of(bad)}, "encryption.keys")
		// Remedy: TW-SEAL-KEY
		if !problem.Has(err, ErrKey) || !strings.Contains(problem.Format(err), "encryption.keys[1]") || strings.Contains(problem.Format(err), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
