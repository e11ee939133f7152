// Identity: for senders that repeat and have no position, such as webhooks.

package dedupe

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	twredis "github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// What dedupe by identity can meet.
var (
	ErrIdentity = problem.Define("TW-DEDUPE-IDENTITY", problem.Halt,
		"The columns that name a change are not there.",
		"Correct dedupe.identity: it lists columns of the raw table.")
	ErrSweep = problem.Define("TW-DEDUPE-SWEEP", problem.Reject,
		"Rows of a table are gone that the stream did not tell of, and changes are told apart by their identity: rows that were read anew were taken for known ones, so what is gone cannot be told from what is there.",
		"The records of those rows stay. Delete at the far side what was made of them, then discard this case.")
	ErrNoIdentity = problem.Define("TW-DEDUPE-NO-IDENTITY", problem.Reject,
		"A record lacks the value that names it, so a repetition could not be told from a new record.",
		"Have the sender fill the columns of dedupe.identity.")
)

// Identity drops a record whose identity stands at a lower offset of its
// partition. Where an identity was first seen is kept in Redis, for a window of
// time; the lowest offset wins, so a replay meets its own offset, or a higher
// one, and passes (invariant 7), also when the transaction of its first sight
// was aborted. It is rebuilt like all state.
//
// Rows of one identity must share a partition. The topic's id is part of what
// is remembered: of a topic that was deleted and created again nothing is
// dropped for the sake of the old one.
type Identity struct {
	env     *pipeline.Env
	topics  []string
	rdb     *redis.Client
	name    string
	columns []string
	window  time.Duration
	states  []*state.Store
}

// ByIdentity makes the stage for a transform that reads topics.
func ByIdentity(env *pipeline.Env, transform string, topics, columns []string, window time.Duration) *Identity {
	d := &Identity{env: env, topics: topics, rdb: env.Redis, name: transform + ".dedupe", columns: columns, window: window}
	for _, t := range topics {
		d.states = append(d.states, state.NewStore(env.Redis, env.Obs.Log, d.name, t))
	}
	return d
}

// Doctor implements pipeline.Doctor: each table has the columns that name a
// change.
func (d *Identity) Doctor(ctx context.Context) []pipeline.Finding {
	var fs []pipeline.Finding
	for _, topic := range d.topics {
		what := fmt.Sprintf("the identity of a change of %s: %s", topic, strings.Join(d.columns, ", "))
		t, err := d.env.Tables(ctx, topic)
		if t != nil {
			for _, name := range d.columns {
				if t.Column(name) < 0 {
					fs = append(fs, pipeline.Finding{What: what, Err: missing(t, name)})
				}
			}
		} else if err != nil {
			fs = append(fs, pipeline.Finding{What: what, Err: err})
		}
	}
	return fs
}

// States is for the engine.
func (d *Identity) Stores() []*state.Store { return d.states }

// Apply passes the first of each identity.
func (d *Identity) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	if err := d.judge(ctx, in, false, out.Reject); err != nil {
		in.Release()
		return err
	}
	return out.Send(ctx, in)
}

// Restore remembers again what had been applied.
func (d *Identity) Restore(ctx context.Context, in *change.Batch) error {
	defer in.Release()
	return d.judge(ctx, in, true, func(*change.Change, error) {})
}

// key is where an identity is remembered: invariant 7 needs the topic's id.
func (d *Identity) key(dst []byte, b *change.Batch, c *change.Change) ([]byte, error) {
	id := c.Coord.Topic.ID
	dst = append(dst, "tw:{"...)
	dst = append(append(dst, d.name...), "}:"...)
	dst = append(hex.AppendEncode(dst, id[:8]), ":id:"...)
	for i, name := range d.columns {
		at := c.Table.Column(name)
		if at < 0 {
			return nil, missing(c.Table, name)
		}
		v := c.Row()[at]
		if v.IsNull() || v.IsUnchanged() {
			return nil, ErrNoIdentity.New("column %s of %s has no value", name, c.Table.Topic)
		}
		if i > 0 {
			dst = append(dst, 0x1F)
		}
		dst = b.AppendText(dst, v)
	}
	return dst, nil
}

func (d *Identity) judge(ctx context.Context, in *change.Batch, restoring bool, reject func(*change.Change, error)) error {
	keys := make([]string, in.Len())
	var buf []byte
	var ask []string
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Op == change.Sweep {
			// The rows that are there were dropped as known ones: nothing came since.
			reject(c, ErrSweep.New("rows of %s are gone that the stream did not tell of", c.Table.Topic))
			c.Op = dropped
			continue
		}
		if c.Row() == nil {
			continue // a truncate has no identity
		}
		var err error
		if buf, err = d.key(buf[:0], in, c); err != nil {
			if pipeline.Classify(err) != problem.Reject {
				return err
			}
			reject(c, err)
			c.Op = dropped
			continue
		}
		keys[i] = string(buf)
		ask = append(ask, keys[i])
	}
	first, err := d.first(ctx, ask)
	if err != nil {
		return err
	}
	// fresh is decided by offsets, so the loop can judge before the write.
	lowered := map[string]string{}
	for i := range in.Changes {
		c := &in.Changes[i]
		if keys[i] == "" {
			continue
		}
		at := first[keys[i]]
		switch {
		case !at.known || at.partition != c.Coord.Partition || c.Coord.Offset < at.offset:
			first[keys[i]] = sight{true, c.Coord.Partition, c.Coord.Offset}
			lowered[keys[i]] = strconv.Itoa(int(c.Coord.Partition)) + ":" + strconv.FormatInt(c.Coord.Offset, 10)
		case c.Coord.Offset > at.offset:
			c.Op = dropped
		}
	}
	err = state.Apply(ctx, d.states, in, restoring, func(p redis.Pipeliner, _ func(*change.Change) bool) error {
		// Also what lies below the mark: lower offsets than remembered are new.
		for k, v := range lowered {
			p.Set(ctx, k, v, d.window)
		}
		return nil
	})
	if err != nil {
		return err
	}
	in.Keep(func(c *change.Change) bool { return c.Op != dropped })
	return nil
}

// dropped marks a change that does not go on.
const dropped change.Op = 0

// sight is where an identity was first seen.
type sight struct {
	known     bool
	partition int32
	offset    int64
}

func (d *Identity) first(ctx context.Context, keys []string) (map[string]sight, error) {
	out := make(map[string]sight, len(keys))
	const most = 500
	p := d.rdb.Pipeline()
	var cmds []*redis.SliceCmd
	for i := 0; i < len(keys); i += most {
		cmds = append(cmds, p.MGet(ctx, keys[i:min(i+most, len(keys))]...))
	}
	if len(cmds) == 0 {
		return out, nil
	}
	if _, err := p.Exec(ctx); err != nil {
		return nil, twredis.Classify("reading identities", err)
	}
	i := 0
	for _, cmd := range cmds {
		for _, v := range cmd.Val() {
			if s, ok := v.(string); ok {
				a, b, _ := strings.Cut(s, ":")
				part, err1 := strconv.ParseInt(a, 10, 32)
				offset, err2 := strconv.ParseInt(b, 10, 64)
				if err1 == nil && err2 == nil {
					out[keys[i]] = sight{true, int32(part), offset}
				}
			}
			i++
		}
	}
	return out, nil
}

// missing says that t has no such column, and which it may be.
func missing(t *change.Table, name string) error {
	e := ErrIdentity.New("%s has no column %q", t.Topic, name)
	names := make([]string, len(t.Columns))
	for j := range names {
		names[j] = t.Columns[j].Name
	}
	if near := config.Nearest(name, names); near != "" {
		e.WithRemedy("Did you mean %s?", near)
	}
	return e
}
