// Index: what of a sink is parked in the partitions owned here, by key.

package parked

import (
	"github.com/tallywire/tallywire/internal/control"
	"github.com/tallywire/tallywire/internal/obs"
)

// Index is what is parked in the partitions owned here. The zero value is
// empty. Not safe for concurrent use.
type Index struct {
	refs    map[string]bool // AppendKey → waits
	waiting int64
}

// Len is how many records are parked, those that wait included.
func (x *Index) Len() int { return len(x.refs) }

// Waiting is how many of them wait for another record.
func (x *Index) Waiting() int64 { return x.waiting }

// Has reports whether a record is parked, by AppendKey.
func (x *Index) Has(key string) bool {
	_, is := x.refs[key]
	return is
}

// Add puts p in, in place of an older one of its key.
func (x *Index) Add(p *control.Parked) {
	k := string(AppendKey(nil, p.Topic, p.RecordKey))
	x.Remove(k)
	if x.refs == nil {
		x.refs = map[string]bool{}
	}
	x.refs[k] = p.WaitsFor != ""
	if p.WaitsFor != "" {
		x.waiting++
	}
}

// Remove takes a record out, by AppendKey.
func (x *Index) Remove(key string) {
	if x.refs[key] {
		x.waiting--
	}
	delete(x.refs, key)
}

// Show sets the component's gauges.
func (x *Index) Show(comp *obs.Component) {
	comp.Parked(int64(len(x.refs)) - x.waiting)
	comp.Waiting(x.waiting)
}
