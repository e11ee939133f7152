// plan: what is to be done about one change, by what is known of its key.

package rest

import (
	"strings"
	"time"
)

// call is one request to be made for an item.
type call struct {
	item   *item
	patch  *delivered // nil: create it
	result result
}

// plan decides about an item: a call, or an outcome without one, or neither
// (nothing to do, or a failure was noted).
func (w *write) plan(it *item) (*call, *outcome) {
	if w.held[it.id] {
		return nil, nil
	}
	if before, has := w.failed[it.id]; has {
		w.fail(it, before.Err, before.WaitsFor)
		return nil, nil
	}
	d := w.done[it.id]
	if d != nil && it.versioned && d.covers(it.version) {
		return nil, nil // delivered before: a replay
	}
	if it.gone {
		return w.planGone(it, d)
	}
	due := it.e.due(&it.row, &w.s.cfg)
	if len(it.row.missing) > 0 {
		w.fail(it, ErrRecord.New("%s lacks %s", it.id, strings.Join(it.row.missing, ", ")), "")
		return nil, nil
	}
	if !due && (d == nil || it.row.text("status") != "approved") {
		if d != nil {
			w.fail(it, ErrTimeFinal.New("%s was delivered as approved and is %s now", it.id, it.row.text("status")), "")
			return nil, nil
		}
		return nil, w.undecided(it)
	}
	for _, ref := range it.refs {
		if w.done[ref] == nil {
			w.fail(it, ErrWaits.New("%s waits for %s, which %s does not have yet", it.id, ref, w.s.store.sink), ref.String())
			return nil, nil
		}
	}
	it.want = it.e.build(&it.row, it.id.key, func(ref ident) string { return w.done[ref].externalID })
	if len(it.row.missing) > 0 {
		w.fail(it, ErrRecord.New("%s lacks %s", it.id, strings.Join(it.row.missing, ", ")), "")
		return nil, nil
	}
	switch {
	case d == nil:
		return &call{item: it}, nil
	case equal(d.digest, it.want.digest):
		return nil, &outcome{id: it.id, deliver: d.at(it.version)} // nothing to send: a new version, or new topics
	case it.e.final:
		w.fail(it, ErrTimeFinal.New("%s was delivered as approved and has been changed since", it.id), "")
		return nil, nil
	}
	return &call{item: it, patch: d}, nil
}

// planGone: what was never delivered needs nothing; master records are blocked.
func (w *write) planGone(it *item, d *delivered) (*call, *outcome) {
	switch {
	case d == nil:
		return nil, w.undecided(it)
	case it.e.final:
		w.fail(it, ErrTimeFinal.New("%s was delivered as approved and has been deleted since", it.id), "")
		return nil, nil
	}
	it.want = it.e.want(d.number, append([]property(nil), it.e.gone...))
	if equal(d.digest, it.want.digest) {
		return nil, &outcome{id: it.id, deliver: d.at(it.version)}
	}
	return &call{item: it, patch: d}, nil
}

// undecided: nothing is to be delivered of a key of which nothing was. If a
// create is still on its way it may yet arrive: then this has to wait. A record
// that is older than what is on its way has no say: after a crash the records
// before that one come again, and it will.
func (w *write) undecided(it *item) *outcome {
	in := w.open[it.id]
	if in == nil || it.versioned && in.version.covers(it.version) {
		return nil
	}
	if left := time.Until(in.safeFrom); left > 0 {
		w.hold(it.id, ErrUnknown.New("%s may still arrive at %s", it.id, w.s.cfg.URL).WithDelay(left))
	}
	return nil
}

// at is d with another version.
func (d *delivered) at(v version) *delivered {
	c := *d
	c.version = v
	return &c
}
