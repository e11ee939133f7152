package pipelinetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline"
)

// SourceCase describes a source to SourceSuite.
type SourceCase struct {
	// Upstream makes an upstream with nothing in it but what the source needs.
	// Called once per subtest.
	Upstream func(tb testing.TB) SourceUpstream
}

// SourceUpstream is what a source captures from.
type SourceUpstream interface {
	// Source makes a source on the upstream; several one after another.
	Source(tb testing.TB) pipeline.Source
	// Put makes one change of the key at the upstream, committed.
	Put(tb testing.TB, key, version int)
	// Delete deletes the key, committed.
	Delete(tb testing.TB, key int)
	// MarkOf tells the version of a change that Put made, "" of any other.
	MarkOf(s Sent) string
}

// SourceSuite runs every duty of a Source.
func SourceSuite(t *testing.T, c SourceCase) {
	t.Run("SendsEachChangeOnceAndInOrder", c.sends)
	t.Run("ResumesAfterTheLastPosition", c.resumes)
	t.Run("SendsAgainWhatWasNotDurable", c.redoes)
	t.Run("CancelEndsRunWithoutError", c.cancels)
	t.Run("FailedSendEndsRun", c.sendFails)
	t.Run("AsksForItsPositionBeforeItSends", c.asksFirst)
}

// SourceRecorder is a SourceOutlet in memory: what Send takes is durable at
// once unless Hold is set.
type SourceRecorder struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something came
	sent    []Sent
	resume  pipeline.Resume
	notes   map[string][]byte // durable with it
	given   map[string][]byte // as they were when it was asked for
	next    []kept
	asked   int
	early   bool // something was sent before Resume was called
	durable chan pipeline.Resume

	// Hold keeps positions from becoming durable.
	Hold bool
	// Fail is what Send returns.
	Fail error
}

type kept struct {
	key   string
	value []byte
}

var _ pipeline.SourceOutlet = (*SourceRecorder)(nil)

// NewSourceRecorder begins at a position; nil: at the beginning.
func NewSourceRecorder(r pipeline.Resume) *SourceRecorder {
	return &SourceRecorder{resume: r, durable: make(chan pipeline.Resume, 1), changed: make(chan struct{})}
}

// Resume implements pipeline.SourceOutlet.
func (r *SourceRecorder) Resume(context.Context) (pipeline.Resume, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	r.given = maps.Clone(r.notes)
	return slices.Clone(r.resume), nil
}

// Send implements pipeline.Outlet.
func (r *SourceRecorder) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	if err := b.Decode(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.early = r.early || r.asked == 0
	if r.Fail != nil {
		return r.Fail
	}
	r.sent = append(r.sent, Written(b)...)
	if b.Resume != nil {
		r.position(slices.Clone(b.Resume))
	}
	r.touch()
	return nil
}

// Reject implements pipeline.Outlet.
func (r *SourceRecorder) Reject(*change.Change, error) {}

// Prepare implements pipeline.SourceOutlet.
func (r *SourceRecorder) Prepare(context.Context, []*change.Table) error { return nil }

// Note implements pipeline.SourceOutlet.
func (r *SourceRecorder) Note(key string, value []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = append(r.next, kept{key, slices.Clone(value)})
}

// Notes implements pipeline.SourceOutlet.
func (r *SourceRecorder) Notes() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given
}

// Asked implements pipeline.SourceOutlet: nobody asks.
func (r *SourceRecorder) Asked(context.Context) (map[string][]byte, error) { return nil, nil }

// Answer implements pipeline.SourceOutlet.
func (r *SourceRecorder) Answer(string) {}

// Checkpoint implements pipeline.SourceOutlet.
func (r *SourceRecorder) Checkpoint(_ context.Context, res pipeline.Resume) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.early = r.early || r.asked == 0
	r.position(slices.Clone(res))
	r.touch()
	return nil
}

// Durable implements pipeline.SourceOutlet.
func (r *SourceRecorder) Durable() <-chan pipeline.Resume { return r.durable }

func (r *SourceRecorder) position(res pipeline.Resume) {
	if r.Hold {
		return
	}
	r.resume = res
	for _, n := range r.next {
		if r.notes == nil {
			r.notes = map[string][]byte{}
		}
		if r.notes[n.key] = n.value; n.value == nil {
			delete(r.notes, n.key)
		}
	}
	r.next = nil
	select { // the latest replaces the one that nobody took
	case <-r.durable:
	default:
	}
	r.durable <- res
}

func (r *SourceRecorder) touch() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Position is the last durable one.
func (r *SourceRecorder) Position() pipeline.Resume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.resume)
}

// Await waits until enough says so of what was sent.
func (r *SourceRecorder) Await(ctx context.Context, enough func([]Sent) bool) ([]Sent, bool) {
	for {
		r.mu.Lock()
		sent, changed := slices.Clone(r.sent), r.changed
		r.mu.Unlock()
		if enough(sent) {
			return sent, true
		}
		select {
		case <-ctx.Done():
			return sent, false
		case <-changed:
		}
	}
}

// running is one Run of a source.
type running struct {
	t      *testing.T
	out    *SourceRecorder
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, s pipeline.Source, out *SourceRecorder) *running {
	ctx, cancel := context.WithCancel(ctxOf(t))
	r := &running{t, out, cancel, make(chan error, 1)}
	go func() { r.done <- s.Run(ctx, out) }()
	return r
}

func (r *running) stop() {
	r.t.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Fatalf("Run returned %v after its context ended, want nil", err)
		}
	case <-time.After(time.Minute):
		r.t.Fatal("Run did not return after its context ended")
	}
}

// marks gives key → marks in the order they came.
func marks(up SourceUpstream, sent []Sent) []string {
	var out []string
	for _, s := range sent {
		if m := up.MarkOf(s); m != "" {
			out = append(out, m)
		}
	}
	return out
}

func (r *running) await(up SourceUpstream, n int) []string {
	r.t.Helper()
	sent, ok := r.out.Await(ctxOf(r.t), func(s []Sent) bool { return len(marks(up, s)) >= n })
	if !ok {
		r.t.Fatalf("%d changes came, want %d: %v", len(marks(up, sent)), n, sent)
	}
	return marks(up, sent)
}

func wanted(from, to int) []string {
	var out []string
	for v := from; v <= to; v++ {
		out = append(out, MarkOf(v))
	}
	return out
}

func (c *SourceCase) sends(t *testing.T) {
	up := c.Upstream(t)
	up.Put(t, 1, 1) // before the start: by the initial load
	r := start(t, up.Source(t), NewSourceRecorder(nil))
	r.await(up, 1)
	for v := 2; v <= 5; v++ {
		up.Put(t, 1, v)
	}
	same(t, "versions of one key", r.await(up, 5), wanted(1, 5))
	up.Delete(t, 1)
	if _, ok := r.out.Await(ctxOf(t), func(s []Sent) bool { return len(s) > 0 && s[len(s)-1].Op == change.Delete }); !ok {
		t.Fatal("the delete did not come")
	}
	r.stop()
}

func (c *SourceCase) resumes(t *testing.T) {
	up := c.Upstream(t)
	r := start(t, up.Source(t), NewSourceRecorder(nil))
	r.awaitPosition()
	up.Put(t, 1, 1)
	r.await(up, 1)
	r.stop()
	up.Put(t, 1, 2) // while nobody listens
	next := start(t, up.Source(t), NewSourceRecorder(r.out.Position()))
	up.Put(t, 1, 3)
	same(t, "after a restart", next.await(up, 2), wanted(2, 3))
	next.stop()
}

func (r *running) awaitPosition() {
	r.t.Helper()
	if _, ok := r.out.Await(ctxOf(r.t), func([]Sent) bool { return r.out.Position() != nil }); !ok {
		r.t.Fatal("no position became durable")
	}
}

func (c *SourceCase) redoes(t *testing.T) {
	up := c.Upstream(t)
	out := NewSourceRecorder(nil)
	r := start(t, up.Source(t), out)
	up.Put(t, 1, 1)
	r.await(up, 1)
	r.awaitPosition()
	r.stop()

	held := NewSourceRecorder(out.Position())
	held.Hold = true // as if the transaction was aborted
	r = start(t, up.Source(t), held)
	up.Put(t, 1, 2)
	r.await(up, 1)
	r.stop()

	r = start(t, up.Source(t), NewSourceRecorder(held.Position()))
	same(t, "a change whose transaction was aborted is lost", r.await(up, 1), wanted(2, 2))
	r.stop()
}

func (c *SourceCase) cancels(t *testing.T) {
	up := c.Upstream(t)
	r := start(t, up.Source(t), NewSourceRecorder(nil))
	r.awaitPosition()
	r.stop()
}

func (c *SourceCase) sendFails(t *testing.T) {
	up := c.Upstream(t)
	up.Put(t, 1, 1)
	out := NewSourceRecorder(nil)
	out.Fail = errors.New("no room")
	r := start(t, up.Source(t), out)
	defer r.cancel()
	select {
	case err := <-r.done:
		if !errors.Is(err, out.Fail) {
			t.Fatalf("Run returned %v, want the error of Send", err)
		}
	case <-ctxOf(t).Done():
		t.Fatal("Run went on after Send had failed")
	}
}

func (c *SourceCase) asksFirst(t *testing.T) {
	up := c.Upstream(t)
	up.Put(t, 1, 1)
	r := start(t, up.Source(t), NewSourceRecorder(nil))
	r.await(up, 1)
	r.stop()
	if r.out.early || r.out.asked != 1 {
		t.Fatalf("Resume was called %d times, or after something was sent: a predecessor that was not fenced could still commit", r.out.asked)
	}
}
