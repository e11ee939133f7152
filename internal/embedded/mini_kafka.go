// The embedded broker: enough Kafka for one process, for trying tallywire out.
// It keeps its records on disk over a clean stop. After any other stop its
// transactions cannot be trusted (one left open hides committed ones, a commit
// may be torn), so it starts over empty and says so; the sources then load
// again. It binds one address and is never meant for production.

package embedded

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tallywire/tallywire/internal/problem"
)

// The embedded broker's problems.
var (
	ErrPortTaken = problem.Define("TW-PORT-TAKEN", problem.Halt,
		"The port is in use by another program.",
		"Stop that program or name another port.")
	ErrDirInUse = problem.Define("TW-KAFKA-DIR-IN-USE", problem.Halt,
		"The embedded broker's directory is used by another process.",
		"Stop the other tallywire, or name another state directory.")
)

// MiniKafka is a Kafka inside this process.
type MiniKafka struct {
	cluster     *kfake.Cluster
	addr        string
	marker      string
	lock        *os.File
	log         *miniKafkaLog
	startedOver bool
}

// StartMiniKafka starts the broker on addr (host:port; port 0 picks one) with
// its data in dir, which it creates. Close it, or the next start begins empty.
// Errors: TW-PORT-TAKEN, TW-KAFKA-DIR-IN-USE.
func StartMiniKafka(ctx context.Context, dir, addr string, log *slog.Logger) (*MiniKafka, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the embedded broker's directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	ok := false
	defer func() {
		if !ok {
			lock.Close()
		}
	}()

	// The port before the data: a start that cannot work must not wipe.
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, ErrPortTaken.New("the embedded Kafka wants %s: %w", addr, err)
		}
		return nil, fmt.Errorf("listening for the embedded Kafka on %s: %w", addr, err)
	}
	defer func() {
		if !ok {
			ln.Close()
		}
	}()

	e := &MiniKafka{addr: ln.Addr().String(), marker: filepath.Join(dir, "running"), lock: lock, log: &miniKafkaLog{log: log}}
	data := filepath.Join(dir, "data")
	if _, err := os.Stat(e.marker); err == nil {
		e.startedOver = true
		log.Warn("the embedded Kafka was not stopped cleanly: its transactions cannot be trusted, so it starts over empty", "dir", dir)
		if err := os.RemoveAll(data); err != nil {
			return nil, fmt.Errorf("emptying the embedded broker's data: %w", err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the embedded broker's marker: %w", err)
	}
	if err := writeSynced(e.marker, "The embedded Kafka runs, or was not stopped cleanly.\n"); err != nil {
		return nil, fmt.Errorf("writing the embedded broker's marker: %w", err)
	}

	// A cluster that started over is another cluster: positions and offsets
	// of the old one must not be taken for its own.
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("making a cluster id: %w", err)
	}
	e.cluster, err = kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
		kfake.ClusterID(base64.RawURLEncoding.EncodeToString(id[:])),
		kfake.DataDir(data),
		kfake.WithLogger(e.log),
	)
	if err != nil {
		return nil, fmt.Errorf("starting the embedded Kafka on the data in %s: %w", data, err)
	}
	ok = true
	return e, nil
}

// Addr is where it listens, host:port.
func (e *MiniKafka) Addr() string { return e.addr }

// StartedOver reports whether data of an unclean stop was thrown away.
func (e *MiniKafka) StartedOver() bool { return e.startedOver }

// Close saves everything and stops. Clients should be closed before. When it
// fails, the next start begins empty.
func (e *MiniKafka) Close() error {
	defer e.lock.Close()
	e.cluster.Close()
	if msg := e.log.failed.Load(); msg != nil {
		return fmt.Errorf("stopping the embedded Kafka: %s", *msg)
	}
	if err := os.Remove(e.marker); err != nil {
		return fmt.Errorf("stopping the embedded Kafka: %w", err)
	}
	return nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the embedded broker's directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrDirInUse.New("directory %s", dir)
		}
		return nil, fmt.Errorf("locking the embedded broker's directory: %w", err)
	}
	return f, nil
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// miniKafkaLog remembers that the broker failed to write: its data cannot be
// trusted then, however it is stopped.
type miniKafkaLog struct {
	log    *slog.Logger
	failed atomic.Pointer[string]
}

func (l *miniKafkaLog) Logf(level kfake.LogLevel, format string, args ...any) {
	if level > kfake.LogLevelWarn {
		return
	}
	msg := fmt.Sprintf(format, args...)
	if level == kfake.LogLevelError {
		if strings.Contains(msg, "persist") || strings.Contains(msg, "save session") {
			l.failed.CompareAndSwap(nil, &msg)
		}
		l.log.Error("embedded kafka: " + msg)
		return
	}
	l.log.Warn("embedded kafka: " + msg)
}
