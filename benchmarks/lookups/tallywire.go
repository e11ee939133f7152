// Tallywire: the binary with a configuration that has one transform alone, and
// a redis-server of its own.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/pipeline"
)

var configuration = `kafka: {brokers: ["%s"]}
registry: {url: "%s"}
redis: {addr: "%s"}
control: {dsn: %q}
http: {listen: "127.0.0.1:0"}
state_dir: %q
instance: lookups
partitions: %d
transforms:
  costed:
%s`

var processID = regexp.MustCompile(`process_id:(\d+)`)

// tallywire starts it; group is the one that looks up, and with .right the one
// that keeps what is looked up.
func tallywire(group string) startFunc {
	return func(ctx context.Context, w *world, name string) (r *running, err error) {
		cache, err := embedded.StartRedis(ctx, embedded.RedisOptions{Dir: filepath.Join(w.tmp, name+"-redis")})
		if err != nil {
			return nil, err
		}
		r = &running{output: "ps.time_entry_costed", groups: []string{pipeline.GroupOf(group), pipeline.GroupOf(group + ".right")}, stopping: []func() error{cache.Stop}}
		defer func() {
			if err != nil {
				err = errors.Join(err, r.stop())
			}
		}()
		c := redis.NewClient(&redis.Options{Addr: cache.Addr})
		info, err := c.Info(ctx, "server").Result()
		if err = errors.Join(err, c.Close()); err != nil {
			return nil, err
		}
		if m := processID.FindStringSubmatch(info); m != nil {
			if r.redis, err = strconv.Atoi(m[1]); err != nil {
				return nil, err
			}
		}
		// A control database of before would know the topics that are gone.
		db := fmt.Sprintf("control_%d", r.redis)
		if err := w.pg.CreateDatabase(ctx, db); err != nil {
			return nil, err
		}
		file := filepath.Join(w.tmp, name+".yml")
		text := fmt.Sprintf(configuration, w.kafka.Addr(), w.regURL, cache.Addr, w.pg.DSN(db), filepath.Join(w.tmp, name+"-state"), partitions, examples.Costed())
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return nil, err
		}
		args := []string{w.binary, "run", "-c", file}
		if w.o.profile != "" {
			prof, err := filepath.Abs(w.o.profile + "-" + name + ".prof") // the child runs in another folder
			if err != nil {
				return nil, err
			}
			args = append(args, "--cpuprofile", prof)
		}
		r.cost = costReader(ctx, w.reg)
		return r, r.launch(w, name, args...)
	}
}

// costReader reads the cost of a costed entry; none: the entry waits.
func costReader(ctx context.Context, reg *avro.Registry) func(key, value []byte) (int64, error) {
	dec, b := avro.NewDecoder(reg), change.Get() // the batch ends with the process
	at := change.Coord{Topic: &change.Topic{Name: "ps.time_entry_costed"}}
	return func(key, value []byte) (int64, error) {
		b.Reset()
		if err := dec.Append(ctx, b, at, key, value, avro.Headers{}, 0); err != nil {
			return 0, err
		}
		c := &b.Changes[0]
		if c.New == nil {
			return none, nil
		}
		v := c.New[c.Table.Column("cost")]
		if v.IsNull() {
			return none, nil
		}
		n, ok := v.Small()
		if !ok || v.Scale() != 10 {
			return 0, fmt.Errorf("a cost has %d digits after the point, not 10", v.Scale())
		}
		return n, nil
	}
}
