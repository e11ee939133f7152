// Package seal keeps what may not be read beside what may: octets are sealed
// with AES-256 in Galois/Counter Mode (NIST SP 800-38D), a random nonce ahead of
// each.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

// What a key, or what was sealed with one, can be.
var (
	ErrKey = problem.Define("TW-SEAL-KEY", problem.Halt,
		"A key of `encryption.keys` is not one.",
		"Make one with `openssl rand -base64 32`, and name it as env:NAME or file:PATH.")
	ErrSealed = problem.Define("TW-SEALED", problem.Reject,
		"A parked record was sealed with a key that the configuration does not have, or was altered.",
		"Add the key that it was sealed with to `encryption.keys`, behind the one that is used now, restart, and retry it; or change the row at its source again: the new record replaces this one.")
)

const keyOctets = 32

// Ring seals with its first key and opens with any. Safe for concurrent use.
type Ring struct{ keys []key }

type key struct {
	id   string
	aead cipher.AEAD
}

// New makes a ring of keys of 32 octets in base64; nil of none. Errors name the
// place below path.
func New(keys []secret.Value, path string) (*Ring, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	r := &Ring{}
	for i, k := range keys {
		if k.Reveal() == "" { // the configuration was read without its secrets
			continue
		}
		octets, err := base64.StdEncoding.DecodeString(strings.TrimSpace(k.Reveal()))
		if err != nil || len(octets) != keyOctets {
			return nil, ErrKey.New("it is not %d octets in base64", keyOctets).At("%s[%d]", path, i)
		}
		block, err := aes.NewCipher(octets)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(append([]byte("tallywire key id\x00"), octets...))
		r.keys = append(r.keys, key{hex.EncodeToString(sum[:6]), aead})
	}
	if len(r.keys) == 0 {
		return nil, nil
	}
	return r, nil
}

// Seal appends plain, sealed, to dst, and gives the id of the key. What is about
// it has to be given again to open it.
func (r *Ring) Seal(dst, plain, about []byte) (out []byte, id string) {
	k := &r.keys[0]
	nonce := make([]byte, k.aead.NonceSize())
	_, _ = rand.Read(nonce) // it never fails
	return k.aead.Seal(append(dst, nonce...), nonce, plain, about), k.id
}

// Open gives what Seal was given. A nil ring opens nothing.
func (r *Ring) Open(id string, sealed, about []byte) ([]byte, error) {
	if r != nil {
		for i := range r.keys {
			k := &r.keys[i]
			if k.id != id {
				continue
			}
			n := k.aead.NonceSize()
			if len(sealed) < n {
				return nil, ErrSealed.New("%d octets, which is less than a nonce", len(sealed))
			}
			plain, err := k.aead.Open(nil, sealed[:n], sealed[n:], about)
			if err != nil {
				return nil, ErrSealed.New("it does not open with its key %s: it was altered, or moved", id)
			}
			return plain, nil
		}
	}
	return nil, ErrSealed.New("it was sealed with the key %s, which is not there", id)
}
