// Distributed: Connect with its exactly-once support, which its standalone
// worker has not.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/tallywire/tallywire/internal/testkit"
)

// internalTopics are a run's own: configuration, offsets, status.
func internalTopics(name string) []string {
	return []string{name + ".config", name + ".offsets", name + ".status"}
}

// startDistributed runs a worker that is a group of its own, and gives it the
// connector.
func (c *connector) startDistributed(ctx context.Context, w *world, b *broker, name string) (_ *child, err error) {
	p, in, err := w.worker(ctx, b, c.register)
	if err != nil {
		return nil, err
	}
	topics := internalTopics(name)
	for i, what := range []string{"config", "offset", "status"} {
		p[what+".storage.topic"], p[what+".storage.replication.factor"] = topics[i], "1"
		if what != "config" { // which has one, always
			p[what+".storage.partitions"] = "1"
		}
	}
	p["group.id"] = name
	p["exactly.once.source.support"] = "enabled"
	rest, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	p["listeners"] = "http://" + rest
	conf, err := c.properties(w)
	if err != nil {
		return nil, err
	}
	conf["exactly.once.support"], conf["transaction.boundary"] = "required", "poll"
	worker := filepath.Join(w.tmp, name+".worker")
	if err := writeProperties(worker, p); err != nil {
		return nil, err
	}
	args := append([]string{"java"}, heap...)
	ch, err := w.launch(name, nil, append(args, "-cp", in.Classpath, testkit.ConnectDistributed, worker)...)
	if err != nil {
		return nil, err
	}
	if err := ch.submit(ctx, "http://"+rest+"/connectors/dbz/config", conf); err != nil {
		return nil, fmt.Errorf("%w (stopping it: %w)\n%s", err, ch.stop(), ch.tail())
	}
	return ch, nil
}

// submit puts a connector's configuration as soon as the worker takes it.
func (c *child) submit(ctx context.Context, url string, conf map[string]string) error {
	body, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := put(ctx, url, body)
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return c.ended()
		case <-ctx.Done():
			return fmt.Errorf("giving %s its connector: %w", c.name, err)
		case <-tick.C:
		}
	}
}

func put(ctx context.Context, url string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return err
}

func freeAddr(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
