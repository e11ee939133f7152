// writer: gathers what a batch writes to Redis into few commands.

package join

import (
	"context"
	"slices"

	"github.com/redis/go-redis/v9"
)

// writer groups by key: one HSET of many rows, one ZADD of many members.
type writer struct {
	ctx   context.Context
	p     redis.Pipeliner
	order []*command
	m     map[[2]string]*command // by command and key

	small, full arrays
}

// arrays are those of arguments: what was executed is used again.
type arrays struct {
	n    int // of each
	all  [][]any
	used int
}

func (x *arrays) next() []any {
	if x.used == len(x.all) {
		x.all = append(x.all, make([]any, 0, x.n))
	}
	x.used++
	return x.all[x.used-1]
}

// mostArrays bounds what is kept for later.
const mostArrays = 4096

func (x *arrays) free() {
	if len(x.all) > mostArrays {
		x.all = slices.Clip(x.all[:mostArrays])
	}
	x.used = 0
}

// command is one command under construction.
type command struct {
	args []any // the first two are the command and the key
}

func newWriter(ctx context.Context, p redis.Pipeliner) *writer {
	return &writer{
		ctx: ctx, p: p, m: map[[2]string]*command{},
		small: arrays{n: 34}, full: arrays{n: 2*perCommand + 4},
	}
}

// again makes it new; what it queued was executed.
func (w *writer) again(ctx context.Context, p redis.Pipeliner) *writer {
	if w == nil {
		return newWriter(ctx, p)
	}
	w.ctx, w.p, w.order = ctx, p, w.order[:0]
	clear(w.m)
	w.small.free()
	w.full.free()
	return w
}

// command gives the command of that name and key; keep it where it is used
// often.
func (w *writer) command(name, key string) *command {
	id := [2]string{name, key}
	c := w.m[id]
	if c == nil {
		c = &command{args: append(w.small.next(), name, key)}
		w.m[id] = c
		w.order = append(w.order, c)
	}
	return c
}

// add appends arguments; what is large enough goes out.
func (w *writer) add(c *command, args ...any) {
	if len(c.args)+len(args) > cap(c.args) {
		c.args = append(w.full.next(), c.args...)
	}
	if c.args = append(c.args, args...); len(c.args) > 2*perCommand {
		w.p.Do(w.ctx, c.args...)
		c.args = append(w.full.next(), c.args[0], c.args[1])
	}
}

func (w *writer) put(name, key string, args ...any) { w.add(w.command(name, key), args...) }

// index puts a member into an index. All have the score 0: pages go by member,
// exact whatever changes meanwhile, and by nothing else.
func (w *writer) index(c *command, member any) { w.add(c, zero, member) }

// zero is boxed once.
var zero any = "0"

func (w *writer) flush() {
	for _, c := range w.order {
		if len(c.args) > 2 {
			w.p.Do(w.ctx, c.args...)
		}
	}
}

// indexes finds the commands of one index by value, without making its key
// again for each member.
type indexes map[string]*command

func (x indexes) of(value []byte, make func(value string) *command) *command {
	c := x[string(value)]
	if c == nil {
		v := string(value)
		c = make(v)
		x[v] = c
	}
	return c
}
