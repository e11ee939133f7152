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
	order []string
	m     map[string][]any // command arguments by command and key
}

func newWriter(ctx context.Context, p redis.Pipeliner) *writer {
	return &writer{ctx: ctx, p: p, m: map[string][]any{}}
}

func (w *writer) put(command, key string, args ...any) {
	id := command + " " + key
	have, ok := w.m[id]
	if !ok {
		w.order = append(w.order, id)
		have = append(make([]any, 0, 16), command, key)
	}
	if have = append(have, args...); len(have) > 2*perCommand {
		w.p.Do(w.ctx, have...)
		have = append(have[:0:0], command, key)
	}
	w.m[id] = have
}

func (w *writer) set(key, field, value string) { w.put("HSET", key, field, value) }
func (w *writer) del(key, field string)        { w.put("HDEL", key, field) }
func (w *writer) todo(key, member string)      { w.put("SADD", key, member) }

// add puts a member into an index. All have the score 0: pages go by member,
// exact whatever changes meanwhile, and by nothing else; which days a change
// of the right side touches cannot be known from its new version alone.
func (w *writer) add(key, member string) { w.put("ZADD", key, "0", member) }

func (w *writer) flush() {
	for _, id := range w.order {
		if args := w.m[id]; len(args) > 2 {
			w.p.Do(w.ctx, args...)
		}
	}
}
