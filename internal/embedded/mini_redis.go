// The embedded Redis: miniredis, for one process that has no other.

package embedded

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
)

// MiniRedis is a Redis inside this process. Its memory is its only memory: after
// a restart it is empty, and the state is rebuilt from Kafka.
type MiniRedis struct{ m *miniredis.Miniredis }

// StartMiniRedis listens on addr, "host:port"; port 0 is any free one.
func StartMiniRedis(addr string) (*MiniRedis, error) {
	m := miniredis.NewMiniRedis()
	if err := m.StartAddr(addr); err != nil {
		return nil, fmt.Errorf("starting the embedded Redis on %s: %w", addr, err)
	}
	var id [20]byte
	if _, err := rand.Read(id[:]); err != nil {
		m.Close()
		return nil, fmt.Errorf("naming the embedded Redis: %w", err)
	}
	run := hex.EncodeToString(id[:])
	// Two questions that miniredis cannot answer, answered truly: it never
	// evicts, and it is this very process. And what it leaves out of a flush:
	// watched keys count as touched.
	m.Server().SetPreHook(func(c *server.Peer, cmd string, args ...string) bool {
		switch {
		case strings.EqualFold(cmd, "INFO") && len(args) == 1 && strings.EqualFold(args[0], "server"):
			c.WriteBulk("# Server\r\nredis_version:embedded\r\nrun_id:" + run + "\r\n")
			return true
		case strings.EqualFold(cmd, "CONFIG") && len(args) == 2 && strings.EqualFold(args[0], "get") && strings.EqualFold(args[1], "maxmemory-policy"):
			c.WriteLen(2)
			c.WriteBulk("maxmemory-policy")
			c.WriteBulk("noeviction")
			return true
		case strings.EqualFold(cmd, "FLUSHALL") || strings.EqualFold(cmd, "FLUSHDB"):
			for _, k := range m.Keys() {
				m.Del(k)
			}
		}
		return false
	})
	return &MiniRedis{m}, nil
}

// Addr is where it listens, "host:port".
func (e *MiniRedis) Addr() string { return e.m.Addr() }

// Close stops it; what it held is gone.
func (e *MiniRedis) Close() error {
	e.m.Close()
	return nil
}
