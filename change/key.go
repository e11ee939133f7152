// Key: the one canonical text of a row's key. Partitioning, parked records,
// state and sinks all speak of a row by it.

package change

// keySep stands between the values of a key of several columns; a value that
// holds it (or keyEsc) has keyEsc put before it, so that different keys never
// have the same text. A key of one column is the value's text as it is.
const (
	keySep = 0x1F
	keyEsc = 0x1E
)

// AppendKey appends the canonical text of the key of c: its New row's, or its
// Old row's for a delete. A table without a key, and a change without rows
// (truncate), give nothing.
func AppendKey(dst []byte, b *Batch, c *Change) []byte {
	return AppendKeyRow(dst, b, c.Table, c.Row())
}

// AppendKeyRow appends the canonical text of the key of a row of t: the texts
// of the key's values in key order, joined by 0x1F.
func AppendKeyRow(dst []byte, b *Batch, t *Table, row []Value) []byte {
	if row == nil {
		return dst
	}
	if len(t.Key) == 1 {
		return b.AppendText(dst, row[t.Key[0]])
	}
	for i, at := range t.Key {
		if i > 0 {
			dst = append(dst, keySep)
		}
		from := len(dst)
		dst = b.AppendText(dst, row[at])
		dst = escapeKey(dst, from)
	}
	return dst
}

// AppendParts appends the text of a key of these values, equal numbers with one
// text: what names a row of another table has the text of that row's key.
func AppendParts(dst []byte, b *Batch, parts ...Value) []byte {
	if len(parts) == 1 {
		return b.AppendByValue(dst, parts[0])
	}
	for i, v := range parts {
		if i > 0 {
			dst = append(dst, keySep)
		}
		from := len(dst)
		dst = b.AppendByValue(dst, v)
		dst = escapeKey(dst, from)
	}
	return dst
}

// escapeKey escapes dst[from:] in place.
func escapeKey(dst []byte, from int) []byte {
	n := 0
	for _, c := range dst[from:] {
		if c == keySep || c == keyEsc {
			n++
		}
	}
	if n == 0 {
		return dst
	}
	end := len(dst)
	for range n {
		dst = append(dst, 0)
	}
	for r, w := end-1, len(dst)-1; r >= from; r-- {
		dst[w] = dst[r]
		w--
		if dst[r] == keySep || dst[r] == keyEsc {
			dst[w] = keyEsc
			w--
		}
	}
	return dst
}

// SplitKey undoes the joining of AppendKeyRow for a key of n columns: it
// appends the text of each value to parts. ok is false when key is not a key
// of n columns. The parts are copies only where an escape had to be undone.
func SplitKey(parts [][]byte, key []byte, n int) (_ [][]byte, ok bool) {
	if n == 1 {
		return append(parts, key), true
	}
	var part []byte
	start, own, count := 0, false, 0
	finish := func(end int) {
		if !own {
			part = key[start:end:end]
		}
		parts = append(parts, part)
		part, own, start = nil, false, end+1
		count++
	}
	for i := 0; i < len(key); i++ {
		switch key[i] {
		case keySep:
			finish(i)
		case keyEsc:
			if i+1 == len(key) {
				return parts, false
			}
			if !own {
				part, own = append([]byte(nil), key[start:i]...), true
			}
			i++
			part = append(part, key[i])
		default:
			if own {
				part = append(part, key[i])
			}
		}
	}
	finish(len(key))
	return parts, count == n
}
