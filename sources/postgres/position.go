// The resume token of a Postgres source: where replication goes on, told as
// readable JSON.

package postgres

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pglogrepl"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
)

// position is what a Resume of ours holds. LSN is a commit boundary: the end
// of the last commit delivered whole (or of WAL known to hold nothing for us);
// a transaction whose commit record begins before it is not sent again
// (invariant 2; row LSNs are compared with nothing).
type position struct {
	System   decimal `json:"system_identifier"`
	Timeline int32   `json:"timeline"`
	Slot     string  `json:"slot"`
	LSN      lsn     `json:"lsn"`
	State    string  `json:"state,omitempty"`   // "loading", or "" when streaming
	Attempt  uint64  `json:"attempt,omitempty"` // of the load, from 1
	Tx       *txPart `json:"tx,omitempty"`      // when it lies inside a transaction

	// XID is the last transaction that was delivered whole, in 64 bits; 0: none
	// was, or an older version delivered it.
	XID decimal `json:"xid,omitempty"`

	// Publication is the OID of the one that it was captured through; 0: an older
	// version did.
	Publication decimal `json:"publication,omitempty"`
}

const loading = "loading"

// txPart is how far a split transaction was delivered. On resume the same
// prefix must come again, told by its hash (A9).
type txPart struct {
	Final     lsn    `json:"final_lsn"`
	Delivered uint64 `json:"delivered"` // changes, counted before any filter
	Hash      hash   `json:"hash"`      // XXH64 of their wire bytes
	Binary    bool   `json:"binary"`    // as they were sent; the bytes differ in text
}

// lsn prints as Postgres does, "16/B374D848".
type lsn uint64

func (l lsn) String() string               { return pglogrepl.LSN(l).String() }
func (l lsn) MarshalText() ([]byte, error) { return []byte(l.String()), nil }
func (l *lsn) UnmarshalText(b []byte) error {
	v, err := pglogrepl.ParseLSN(string(b))
	*l = lsn(v)
	return err
}

// decimal is a decimal string in JSON: it does not fit the 53 bits of a double.
type decimal uint64

func (s decimal) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(s), 10), nil }

func (s *decimal) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 10, 64)
	*s = decimal(v)
	return err
}

type hash uint64

func (h hash) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(h)), nil }
func (h *hash) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 16, 64)
	*h = hash(v)
	return err
}

func (p position) resume() pipeline.Resume {
	b, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a position that is no JSON: " + err.Error())
	}
	return b
}

// Beside implements pipeline.Besider: behind all that is delivered, since LSN is
// the end of a commit, and before the next one, whose record begins there or
// later. Rows of a load share that form of Pos, with lower ordinals.
func (s *Source) Beside(r pipeline.Resume, n uint64) (change.Pos, bool) {
	p, err := parsePosition(r)
	if err != nil || p == nil || p.State == loading || p.Tx != nil {
		return change.Pos{}, false
	}
	return change.Pos{System: uint64(p.System), Timeline: uint32(p.Timeline), LSN: uint64(p.LSN), Kind: change.PosSnapshot, Ordinal: 1<<62 + n}, true
}

// parsePosition gives nil for no position.
func parsePosition(r pipeline.Resume) (*position, error) {
	if len(r) == 0 {
		return nil, nil
	}
	var p position
	d := json.NewDecoder(bytes.NewReader(r))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, &problem.Error{
			Code: ErrProtocol, Err: err,
			Text: fmt.Sprintf("reading the stored position %q: %v", r, err),
			Fix:  "The position was written by another version or by hand; run the version that wrote it, or start the source over.",
		}
	}
	return &p, nil
}
