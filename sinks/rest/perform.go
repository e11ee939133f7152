// perform: a chunk of calls, its intents before, its results after; and the
// settling of what stayed unknown.

package rest

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// result is what a call came to: one of the four.
type result struct {
	deliver *delivered     // done
	reject  *problem.Error // refused
	unknown *callError     // may have been done
	notSent *callError     // was not done
}

// perform makes the calls, records what came of them together with outs, and
// gives back the items that are to be planned again.
func (w *write) perform(ctx context.Context, calls []*call, outs []outcome) (again []*item) {
	var creates []*call
	for _, c := range calls {
		c.item.tries++
		if c.patch == nil {
			creates = append(creates, c)
		}
	}
	sendBy := time.Now().Add(w.s.window) // taken before the intents: theirs is not earlier
	if err := w.s.store.begin(ctx, creates, w.s.window); err != nil {
		w.stop(err)
		return nil
	}
	var g errgroup.Group
	g.SetLimit(w.s.cfg.Concurrency)
	for _, c := range calls {
		g.Go(func() error {
			return outage.Guard(func() error {
				if w.stopped() {
					c.result = result{notSent: &callError{fate: notSent}}
					return nil
				}
				if c.patch == nil {
					c.result = w.create(ctx, c.item, sendBy)
				} else {
					c.result = w.patch(ctx, c.item, c.patch.externalID, c.patch.etag)
				}
				if e := c.result.notSent; e != nil {
					w.stop(e.problem(w.s.cfg.URL))
				}
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil { // a panic: what became of its call is found out by the next start
		w.stop(err)
		return nil
	}
	var open []ident
	for _, c := range calls {
		it, r := c.item, c.result
		out := outcome{id: it.id}
		switch {
		case r.deliver != nil:
			r.deliver.version = it.version
			out.deliver, out.settled = r.deliver, c.patch == nil
			w.done[it.id] = r.deliver
			delete(w.open, it.id)
		case r.reject != nil:
			out.settled = c.patch == nil
			w.fail(it, r.reject, "")
			delete(w.open, it.id)
		case r.unknown != nil && c.patch == nil:
			out.unknown = true
			w.open[it.id] = &intent{version: it.version, digest: it.want.digest, ref: it.want.ref, safeFrom: time.Now().Add(w.s.cfg.SettleAfter)}
			open = append(open, it.id)
			again = append(again, it)
		case r.unknown != nil:
			again = append(again, it) // planned with the old entity tag: a repeat is refused, and settled by reading
		default:
			// Not sent, this time. An earlier request may still be open.
			out.settled = c.patch == nil && w.open[it.id] == nil
		}
		if it.tries >= maxTries && r.unknown != nil {
			w.hold(it.id, ErrUnknown.New("the outcome of %s is unknown: %v", it.id, r.unknown).WithDelay(r.unknown.after))
		}
		outs = append(outs, out)
	}
	if err := w.s.store.finish(ctx, outs); err != nil {
		w.stop(err)
		return nil
	}
	w.readBack(ctx, open)
	return again
}

// problem is e as the engine sees it.
func (e *callError) problem(url string) error {
	var p *problem.Error
	if !errors.As(e.err, &p) {
		p = ErrOutage.New("calling %s: %v", url, e)
	}
	if e.after > 0 {
		return p.WithDelay(e.after)
	}
	return p
}

// harmless reports whether a second create of the same record is refused.
func (w *write) harmless(e *entity) bool { return !e.final || w.s.cfg.UniqueReference }

// readBack finds out what became of open intents, by reading the far side
// (invariants 11 and 14). What is found there was delivered. What is not found
// may be sent again at once where a repeat is harmless; elsewhere only when the
// far side cannot be working on it any more. Until then, and when the far side
// could not be read, its key is held.
func (w *write) readBack(ctx context.Context, ids []ident) {
	if len(ids) == 0 {
		return
	}
	now := time.Now() // before the look-ups: what arrives after them is not safe
	found := make([]object, len(ids))
	failed := make([]*callError, len(ids))
	var g errgroup.Group
	g.SetLimit(w.s.cfg.Concurrency)
	for i, id := range ids {
		g.Go(func() error {
			return outage.Guard(func() error {
				if e := entities[id.entity]; e != nil && !w.stopped() {
					found[i], failed[i] = w.find(ctx, e, w.open[id].ref)
				} else {
					failed[i] = &callError{fate: unknown, err: errors.New("not looked at")}
				}
				if f := failed[i]; f != nil && f.fate != unknown {
					w.stop(f.problem(w.s.cfg.URL))
				}
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil { // a panic
		w.stop(err)
		return
	}
	var outs []outcome
	for i, id := range ids {
		in, e := w.open[id], entities[id.entity]
		switch {
		case failed[i] != nil:
			w.hold(id, ErrUnknown.New("it is not known whether %s arrived: %v", id, failed[i]).WithDelay(failed[i].after))
		case found[i] != nil:
			d := e.read(found[i])
			d.version = in.version
			holder, err := w.claim(ctx, id, d.externalID)
			if err != nil {
				w.stop(err)
				return
			}
			out := outcome{id: id, settled: true}
			// When the number is that of another key's record, this one was
			// not made, and making it will be refused.
			if holder == id.key {
				out.deliver, w.done[id] = d, d
			}
			delete(w.open, id)
			outs = append(outs, out)
		case in.safeFrom.Before(now):
			delete(w.open, id)
			outs = append(outs, outcome{id: id, settled: true})
		case !w.harmless(e):
			w.hold(id, ErrUnknown.New("%s may still arrive at %s", id, w.s.cfg.URL).WithDelay(time.Until(in.safeFrom)))
		}
	}
	if err := w.s.store.finish(ctx, outs); err != nil {
		w.stop(err)
	}
}

// maxReads is how often a look-up is tried: reading twice shows nothing.
const maxReads = 3

// find reads the one record with this reference; nil when there is none.
func (w *write) find(ctx context.Context, e *entity, ref string) (o object, cerr *callError) {
	for range maxReads {
		if o, cerr = w.s.client.do(ctx, request{method: "GET", path: e.query(&w.s.cfg, ref)}); cerr == nil || cerr.fate != unknown {
			break
		}
	}
	if cerr != nil {
		return nil, cerr
	}
	protocol := func(what string) *callError {
		return &callError{fate: broken, err: ErrProtocol.New("looking up %s in %s: %s", ref, e.set, what)}
	}
	var list []object
	if err := json.Unmarshal(o["value"], &list); err != nil {
		return nil, protocol("the answer has no list of values")
	}
	if len(list) == 0 {
		return nil, nil
	}
	if list[0].text("id") == "" {
		return nil, protocol("a record without id")
	}
	return list[0], nil
}

// read is what the far side has, as it is recorded.
func (e *entity) read(o object) *delivered {
	return &delivered{digest: e.digestOf(o), externalID: o.text("id"), number: o.text("number"), etag: o.text("@odata.etag")}
}

// claim makes an external id this key's and gives the key that it belongs to:
// this one, unless another had it.
func (w *write) claim(ctx context.Context, id ident, externalID string) (string, error) {
	x := ident{id.entity, externalID}
	holder, err := w.s.store.holder(ctx, id.entity, externalID)
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if holder == "" {
		holder = w.taken[x]
	}
	if holder == "" {
		holder = id.key
		w.taken[x] = id.key
	}
	return holder, nil
}

// create posts an item, whose intent is committed.
func (w *write) create(ctx context.Context, it *item, sendBy time.Time) result {
	o, cerr := w.s.client.do(ctx, request{method: "POST", path: it.e.page(&w.s.cfg), body: it.e.body(it.want), sendBy: sendBy})
	switch {
	case cerr == nil && o.text("id") != "":
		d := it.e.read(o)
		d.digest = it.want.digest
		w.mu.Lock()
		w.taken[ident{it.id.entity, d.externalID}] = it.id.key
		w.mu.Unlock()
		return result{deliver: d}
	case cerr == nil:
		return result{unknown: &callError{fate: unknown, err: errors.New("the answer names no id")}}
	case exists(cerr):
		return w.adopt(ctx, it, cerr)
	}
	return w.refusal(it, cerr)
}

// refusal turns what a request came to into a result.
func (w *write) refusal(it *item, e *callError) result {
	switch e.fate {
	case unknown:
		return result{unknown: e}
	case refused:
		return result{reject: ErrRejected.New("%s was refused: %s (%s)", it.id, e.text, e.code)}
	}
	return result{notSent: e}
}

// adopt takes over a record that is there under our number or reference: made
// by a request of ours whose answer was lost, or, for a master record, by
// hand. A time entry with another content is not ours to touch.
func (w *write) adopt(ctx context.Context, it *item, cerr *callError) result {
	o, ferr := w.find(ctx, it.e, it.want.ref)
	if ferr != nil {
		return w.refusal(it, ferr)
	}
	if o == nil {
		return w.refusal(it, cerr) // another property is taken
	}
	d := it.e.read(o)
	holder, err := w.claim(ctx, it.id, d.externalID)
	switch {
	case err != nil:
		return result{notSent: &callError{fate: notSent, err: err}}
	case holder != it.id.key:
		return result{reject: ErrConflict.New("%s has the number %s of %s/%s", it.id, it.want.ref, it.id.entity, holder)}
	case it.e.same(it.want, o):
		d.digest = it.want.digest
		return result{deliver: d}
	case it.e.final:
		return result{reject: ErrConflict.New("%s is there with another content", it.id)}
	}
	return w.patch(ctx, it, d.externalID, d.etag)
}

// maxStale is how often a PATCH follows changes that others make meanwhile.
const maxStale = 5

// patch changes a record that replaces exactly the version that etag names. A
// request of ours whose answer was lost has changed the tag: the repeat is
// refused, and reading shows that it was done.
func (w *write) patch(ctx context.Context, it *item, id, etag string) result {
	path := it.e.page(&w.s.cfg) + "(" + id + ")"
	for range maxStale {
		o, cerr := w.s.client.do(ctx, request{method: "PATCH", path: path, body: it.e.body(it.want), etag: etag})
		if cerr == nil {
			if o.text("id") == "" { // 204
				if o, cerr = w.s.client.do(ctx, request{method: "GET", path: path}); cerr != nil {
					return w.refusal(it, cerr)
				}
			}
			return w.patched(it, o)
		}
		switch {
		case cerr.status == 404:
			return result{reject: ErrGone.New("%s is not there any more under the id %s", it.id, id)}
		case exists(cerr):
			return result{reject: ErrConflict.New("%s: %s (%s)", it.id, cerr.text, cerr.code)}
		case cerr.fate != refused || cerr.status != 409 && cerr.status != 412:
			return w.refusal(it, cerr)
		}
		if o, cerr = w.s.client.do(ctx, request{method: "GET", path: path}); cerr != nil {
			if cerr.status == 404 {
				return result{reject: ErrGone.New("%s is not there any more under the id %s", it.id, id)}
			}
			return w.refusal(it, cerr)
		}
		if it.e.same(it.want, o) {
			return w.patched(it, o)
		}
		etag = o.text("@odata.etag")
	}
	return result{unknown: &callError{fate: unknown, err: errors.New("others keep changing it")}}
}

func (w *write) patched(it *item, o object) result {
	d := it.e.read(o)
	d.digest = it.want.digest
	return result{deliver: d}
}
