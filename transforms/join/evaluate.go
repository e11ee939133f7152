// evaluate: from a left row and what it refers to, the row of the output.

package join

import (
	"math/big"
	"math/bits"

	"github.com/tallywire/tallywire/change"
)

// evaluate makes the output row of an item in the lookup's batch. waits: it
// names what is missing. Errors are TW-JOIN-OVERFLOW and name no value: it may
// be restricted (invariant 13).
func (l *lookup) evaluate(it *item) (row []change.Value, waits bool, err error) {
	p := l.p
	for _, r := range p.refs {
		if r.inForce != nil {
			it.rows[r.at] = l.inForce(it, r) // once: all that it is to agree with is here
		}
	}
	row = l.b.Row(len(p.fields))
	reason, waits := l.waiting(it)
	for i := range p.fields {
		f := &p.fields[i]
		switch f.kind {
		case outCopy:
			if v, ok := l.value(it, f.from); ok {
				row[i] = v
			}
		case outProduct:
			if waits {
				continue // never a sum that is not final, never 0
			}
			x, ok1 := l.value(it, f.from)
			y, ok2 := l.value(it, f.by)
			if !ok1 || !ok2 || x.IsNull() || y.IsNull() {
				continue
			}
			v, ok := product(l.b, x, y, &p.out.Columns[i])
			if !ok {
				return nil, false, ErrOverflow.New("field %s of %s: the product has more digits than the contract allows", p.out.Columns[i].Name, p.out.Topic)
			}
			row[i] = v
		}
	}
	if waits && p.waiting >= 0 {
		row[p.waiting] = l.b.Span(change.String, reason)
	}
	return row, waits, nil
}

// give makes c the change of the output that an item gives.
func (l *lookup) give(it *item, c *change.Change) (err error) {
	if l.p.joined != nil {
		return l.join(it, c)
	}
	row, waits, err := l.evaluate(it)
	if err != nil {
		return err
	}
	it.waits = waits
	c.Table, c.Op, c.Old, c.New = l.p.out, change.Update, nil, row
	return nil
}

// waiting says what the first missing thing is; the text is valid until the
// next call.
func (l *lookup) waiting(it *item) ([]byte, bool) {
	if l.p.joined != nil {
		return l.settle(it)
	}
	for _, r := range l.p.refs {
		if l.row(it, r) != nil {
			continue
		}
		t := append([]byte(nil), r.name...)
		if r.inForce != nil {
			t = append(append(append(t, " of "...), r.what...), ' ')
		} else {
			t = append(t, ' ')
		}
		if name, ok := l.on(it, r); !ok {
			t = append(t, "that is not named"...)
		} else {
			t = append(t, name...)
		}
		if r.inForce != nil {
			if day := it.left.vals[r.inForce.at]; !day.IsNull() {
				t = l.b.AppendText(append(t, " on "...), day)
			}
		}
		return t, true
	}
	for _, a := range l.p.agree {
		x, _ := l.value(it, a.a)
		y, _ := l.value(it, a.b)
		if l.same(x, y) {
			continue
		}
		tx, ty := l.b.AppendText(nil, x), l.b.AppendText(nil, y)
		// "currency EUR of project 17, the rate is in USD"
		col := l.p.column(a.a).Name
		t := append(append(append([]byte(nil), col...), ' '), tx...)
		if a.a.ref >= 0 {
			r := l.p.refs[a.a.ref]
			t = append(append(append(t, " of "...), r.name...), ' ')
			if name, ok := l.on(it, r); ok {
				t = append(t, name...)
			}
		}
		t = append(t, ", the "...)
		if a.b.ref >= 0 {
			t = append(t, short(l.p.refs[a.b.ref].name)...)
		} else {
			t = append(t, "entry"...)
		}
		return append(append(t, " is in "...), ty...), true
	}
	return nil, false
}

// short is the last word of a name: "rate" of "cost_rate".
func short(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '_' {
			return name[i+1:]
		}
	}
	return name
}

// product is x × y at the scale of the column, exact, or false.
func product(b *change.Batch, x, y change.Value, col *change.Column) (change.Value, bool) {
	xs, xok := small(x)
	ys, yok := small(y)
	if !finite(x) || !finite(y) {
		return change.Value{}, false
	}
	scale := scaleOf(x) + scaleOf(y)
	if up := int(col.Scale) - scale; xok && yok && up >= 0 && up < len(pow10) {
		if n, ok := mul(xs, ys); ok {
			if n, ok = mul(n, pow10[up]); ok {
				if int(col.Precision) < len(pow10) && (n >= pow10[col.Precision] || n <= -pow10[col.Precision]) {
					return change.Value{}, false
				}
				return change.DecimalValue(n, col.Scale), true
			}
		}
	}
	// The rare case: large numbers, or more digits behind the point than the
	// column has; those must be zeros.
	z := new(big.Int).Mul(bigOf(b, x), bigOf(b, y))
	ten := big.NewInt(10)
	for ; scale < int(col.Scale); scale++ {
		z.Mul(z, ten)
	}
	for ; scale > int(col.Scale); scale-- {
		var rest big.Int
		if z.QuoRem(z, ten, &rest); rest.Sign() != 0 {
			return change.Value{}, false
		}
	}
	if new(big.Int).Abs(z).Cmp(new(big.Int).Exp(ten, big.NewInt(int64(col.Precision)), nil)) >= 0 {
		return change.Value{}, false
	}
	return b.BigDecimal(z, col.Scale), true
}

func small(v change.Value) (int64, bool) {
	if v.Kind() == change.Int {
		return v.Int(), true
	}
	return v.Small()
}

func finite(v change.Value) bool { return v.Kind() == change.Int || v.Form() == change.Finite }

func scaleOf(v change.Value) int {
	if v.Kind() == change.Int {
		return 0
	}
	return int(v.Scale())
}

func bigOf(b *change.Batch, v change.Value) *big.Int {
	if v.Kind() == change.Int {
		return big.NewInt(v.Int())
	}
	return b.Unscaled(new(big.Int), v)
}

var pow10 = func() (p [19]int64) {
	p[0] = 1
	for i := 1; i < len(p); i++ {
		p[i] = p[i-1] * 10
	}
	return p
}()

// mul multiplies without overflow, or not at all.
func mul(a, b int64) (int64, bool) {
	abs := func(x int64) uint64 {
		if x < 0 {
			return -uint64(x)
		}
		return uint64(x)
	}
	hi, lo := bits.Mul64(abs(a), abs(b))
	if hi != 0 || lo > 1<<63-1 {
		return 0, false
	}
	if (a < 0) != (b < 0) {
		return -int64(lo), true
	}
	return int64(lo), true
}
