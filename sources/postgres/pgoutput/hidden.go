// Hidden cells: what a column holds does not leave the source, or not as it is.

package pgoutput

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"

	"github.com/tallywire/tallywire/change"
)

// Nothing passes over the cells of a column that is left out.
func Nothing() Coder { return Coder{code: asNothing} }

// Mask is what Masked puts in the place of a value.
const Mask = "***"

// Masked gives Mask for each value, and null for null.
func Masked() Coder { return Coder{code: asMasked} }

// Hashed gives the HMAC-SHA-256 of each value's text under salt (RFC 2104), in 64
// hexadecimal digits, and null for null: equal values stay equal, in all tables. The
// text is that of change.Batch.AppendText, whatever the form of the cell.
func Hashed(c Coder, salt []byte) Coder { return Coder{code: asHashed, elem: &c, salt: salt} }

// HiddenColumn is a column as Masked and Hashed give it.
func HiddenColumn(c change.Column) change.Column {
	return change.Column{Name: c.Name, Nullable: c.Nullable, Kind: change.String, Type: "text", TypeID: 25, Precision: -1, Scale: -1}
}

func (c *Coder) hidden(b *change.Batch, p []byte, at int, binary bool) (v change.Value, err error) {
	switch c.code {
	case asNothing:
		return change.Value{}, nil
	case asMasked:
		return b.SpanString(change.String, Mask), nil
	}
	if binary {
		v, err = c.elem.DecodeBinary(b, p, at)
	} else {
		v, err = c.elem.DecodeText(b, p, at)
	}
	if err != nil {
		return v, err
	}
	mac := hmac.New(sha256.New, c.salt)
	mac.Write(b.AppendText(nil, v))
	return b.Span(change.String, hex.AppendEncode(nil, mac.Sum(nil))), nil
}
