// writer: gathers what a batch writes to Redis into few commands.

package join

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// writer groups by key: one HSET of many rows, one ZADD of many members.
type writer struct {
	ctx   context.Context
	p     redis.Pipeliner
	order []*command
	m     map[[2]string]*command // by command and key
}

// command is one command under construction.
type command struct {
	args []any // the first two are the command and the key
}

func newWriter(ctx context.Context, p redis.Pipeliner) *writer {
	return &writer{ctx: ctx, p: p, m: map[[2]string]*command{}}
}

// command gives the command of that name and key; keep it where it is used
// often.
func (w *writer) command(name, key string) *command {
	id := [2]string{name, key}
	c := w.m[id]
	if c == nil {
		c = &command{args: append(make([]any, 0, 18), name, key)}
		w.m[id] = c
		w.order = append(w.order, c)
	}
	return c
}

// add appends arguments; what is large enough goes out.
func (w *writer) add(c *command, args ...any) {
	if c.args = append(c.args, args...); len(c.args) > 2*perCommand {
		w.p.Do(w.ctx, c.args...)
		c.args = append(make([]any, 0, 2*perCommand+4), c.args[0], c.args[1])
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
