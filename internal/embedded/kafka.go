// Apache Kafka: one real broker in KRaft mode, run from its Maven artefacts.

package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// KafkaOptions say how to run a broker; the zero value is good for a test.
type KafkaOptions struct {
	// Dir holds the broker's data, settings and log; a broker started again
	// on it finds its topics. Empty: a temporary folder, which Stop removes.
	Dir string
	// Port on 127.0.0.1; 0: the one that Dir was used with, else a free one.
	Port int
	// HeapMB is the JVM's heap; 0: 512.
	HeapMB int
	// Settings are broker settings beyond (or instead of) ours.
	Settings map[string]string
}

// Kafka is a broker that was started here. It does not outlive this process.
// Its methods are not for concurrent use, Tool excepted.
type Kafka struct {
	Port int
	Dir  string

	opts KafkaOptions
	libs string
	temp bool

	mu   sync.Mutex
	pid  int
	done chan struct{} // closed when the JVM has ended
	err  error         // how it ended; after done
}

// Addr is the broker's address, host:port.
func (k *Kafka) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(k.Port)) }

// PID is the JVM's process id, 0 when the broker is down. Safe for concurrent
// use.
func (k *Kafka) PID() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pid
}

// StartKafka starts a broker and returns when it answers; ctx bounds the start
// only. The caller stops it. The first start on a machine fetches the jars.
func StartKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return nil, errors.New("the program java is missing, which Apache Kafka needs, version 17 or newer: install openjdk-17-jre-headless")
	}
	libs, err := KafkaLibs(ctx)
	if err != nil {
		return nil, err
	}
	if o.HeapMB == 0 {
		o.HeapMB = 512
	}
	k := &Kafka{Port: o.Port, Dir: o.Dir, opts: o, libs: libs}
	if k.Dir == "" {
		if k.Dir, err = os.MkdirTemp("", "tallywire-kafka-"); err != nil {
			return nil, fmt.Errorf("making a folder for Kafka: %w", err)
		}
		k.temp = true
	}
	if k.Dir, err = filepath.Abs(k.Dir); err != nil {
		return nil, err
	}
	if err = k.prepare(ctx); err == nil {
		err = k.start(ctx)
	}
	if err != nil {
		return nil, k.abandon(err)
	}
	return k, nil
}

func (k *Kafka) abandon(err error) error {
	if k.temp {
		err = errors.Join(err, os.RemoveAll(k.Dir))
	}
	return err
}

func (k *Kafka) properties() string { return filepath.Join(k.Dir, "server.properties") }
func (k *Kafka) data() string       { return filepath.Join(k.Dir, "data") }

// prepare writes the settings and formats the data folder, once.
func (k *Kafka) prepare(ctx context.Context) error {
	if err := os.MkdirAll(k.Dir, 0o700); err != nil {
		return fmt.Errorf("making a folder for Kafka: %w", err)
	}
	ports := filepath.Join(k.Dir, "ports")
	var controller int
	if text, err := os.ReadFile(ports); err == nil {
		var was int
		if _, err := fmt.Sscan(string(text), &was, &controller); err != nil {
			return fmt.Errorf("reading %s: %w", ports, err)
		}
		if k.Port == 0 {
			k.Port = was
		}
	} else {
		free, err := FreePorts(2)
		if err != nil {
			return err
		}
		if k.Port == 0 {
			k.Port = free[0]
		}
		controller = free[1]
	}
	if err := os.WriteFile(ports, fmt.Appendf(nil, "%d %d\n", k.Port, controller), 0o600); err != nil {
		return err
	}
	set := [][2]string{
		{"process.roles", "broker,controller"},
		{"node.id", "1"},
		{"controller.quorum.voters", fmt.Sprintf("1@127.0.0.1:%d", controller)},
		{"controller.listener.names", "CONTROLLER"},
		{"listeners", fmt.Sprintf("PLAINTEXT://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d", k.Port, controller)},
		{"advertised.listeners", fmt.Sprintf("PLAINTEXT://127.0.0.1:%d", k.Port)},
		{"listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"},
		{"inter.broker.listener.name", "PLAINTEXT"},
		{"log.dirs", k.data()},
		{"auto.create.topics.enable", "false"},
		{"offsets.topic.replication.factor", "1"},
		{"offsets.topic.num.partitions", "4"},
		{"transaction.state.log.replication.factor", "1"},
		{"transaction.state.log.min.isr", "1"},
		{"transaction.state.log.num.partitions", "4"},
		{"share.coordinator.state.topic.replication.factor", "1"},
		{"share.coordinator.state.topic.min.isr", "1"},
		{"group.initial.rebalance.delay.ms", "0"},
		{"message.max.bytes", "16777216"},
		{"add.partitions.to.txn.retry.backoff.ms", "1"},
	}
	var text strings.Builder
	for _, s := range set {
		v := s[1]
		if o, ok := k.opts.Settings[s[0]]; ok {
			v = o
		}
		fmt.Fprintf(&text, "%s=%s\n", s[0], v)
	}
	for name, v := range k.opts.Settings {
		if !strings.Contains(text.String(), name+"=") {
			fmt.Fprintf(&text, "%s=%s\n", name, v)
		}
	}
	if err := os.WriteFile(k.properties(), []byte(text.String()), 0o600); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(k.data(), "meta.properties")); err == nil {
		return nil
	}
	if out, err := k.java(ctx, "kafka.tools.StorageTool", "format", "-t", kafkaUUID(), "-c", k.properties()); err != nil {
		return fmt.Errorf("formatting Kafka's data folder: %w\n%s", err, out)
	}
	return nil
}

// start runs the broker and waits until it answers.
func (k *Kafka) start(ctx context.Context) error {
	if _, err := EndLeftBehind(ctx, k.Dir); err != nil {
		return err
	}
	if err := portFree(k.Addr()); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(k.Dir, "kafka.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	heap := fmt.Sprintf("%dm", k.opts.HeapMB)
	// It outlives the context of its start.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "java", "-Xms"+heap, "-Xmx"+heap, "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
		"-cp", filepath.Join(k.libs, "*"), "kafka.Kafka", k.properties())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = k.Dir

	done := make(chan struct{})
	k.mu.Lock()
	k.done, k.err = done, nil
	err = StartChild(cmd, func(err error) {
		defer close(done)
		defer log.Close()
		k.mu.Lock()
		k.pid, k.err = 0, err
		k.mu.Unlock()
	})
	if err == nil {
		k.pid = cmd.Process.Pid
	} else {
		k.done = nil
	}
	k.mu.Unlock()
	if err != nil {
		return errors.Join(fmt.Errorf("starting Kafka: %w", err), log.Close())
	}
	err = noteServer(k.Dir, k.PID(), os.Getpid())
	if err == nil {
		err = k.awaitReady(ctx, done)
	}
	if err != nil {
		return errors.Join(err, k.signal(context.Background(), syscall.SIGKILL))
	}
	return nil
}

func (k *Kafka) awaitReady(ctx context.Context, done <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, StartWithin)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := k.ping(ctx); err == nil {
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("the broker ended while starting: %s", k.tail())
		case <-ctx.Done():
			return fmt.Errorf("the broker does not answer at %s: %w: %s", k.Addr(), ctx.Err(), k.tail())
		case <-tick.C:
		}
	}
}

func (k *Kafka) ping(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.RequestRetries(0))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	if err == nil && len(m.Brokers) == 0 {
		err = errors.New("no broker is registered yet")
	}
	return err
}

// tail is the end of the broker's log, for an error.
func (k *Kafka) tail() string {
	text, err := os.ReadFile(filepath.Join(k.Dir, "kafka.log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// Stop ends the broker as an operator would (SIGTERM), and removes a temporary
// folder. Stopping a stopped one does nothing.
func (k *Kafka) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := k.signal(ctx, syscall.SIGTERM)
	if err != nil { // it does not heed
		err = errors.Join(err, k.signal(context.Background(), syscall.SIGKILL))
	}
	if k.temp {
		err = errors.Join(err, os.RemoveAll(k.Dir))
	}
	return err
}

// Halt is Stop that keeps a temporary folder, for Restart.
func (k *Kafka) Halt(ctx context.Context) error { return k.signal(ctx, syscall.SIGTERM) }

// Kill ends the broker as a crash does (kill -9) and returns when it is gone.
func (k *Kafka) Kill() error { return k.signal(context.Background(), syscall.SIGKILL) }

// Restart starts the broker again on its data and port, stopping it first
// (SIGTERM) if it runs.
func (k *Kafka) Restart(ctx context.Context) error {
	if err := k.signal(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	return k.start(ctx)
}

func (k *Kafka) signal(ctx context.Context, sig syscall.Signal) error {
	k.mu.Lock()
	pid, done := k.pid, k.done
	if pid != 0 {
		// While the lock is held the process has not been waited for, so its
		// id is its own.
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			k.mu.Unlock()
			return fmt.Errorf("signalling Kafka: %w", err)
		}
	}
	k.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for Kafka to end: %w", ctx.Err())
	}
}

// Tool runs one of Kafka's own tools by its class, such as
// org.apache.kafka.tools.consumer.group.ConsumerGroupCommand, and gives what
// it printed. The bootstrap server is for the caller to name (Addr).
func (k *Kafka) Tool(ctx context.Context, class string, args ...string) (string, error) {
	out, err := k.java(ctx, class, args...)
	if err != nil {
		return out, fmt.Errorf("running %s: %w\n%s", class, err, out)
	}
	return out, nil
}

// ConsumerGroups is Kafka's tool for groups.
const ConsumerGroups = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"

func (k *Kafka) java(ctx context.Context, class string, args ...string) (string, error) {
	all := append([]string{"-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", filepath.Join(k.libs, "*"), class}, args...)
	out, err := exec.CommandContext(ctx, "java", all...).CombinedOutput()
	return string(out), err
}

// kafkaUUID is a cluster's id. One in 64 would begin with a dash, which Kafka's
// tool takes for an option.
func kafkaUUID() string {
	for {
		id := uuid.New()
		if s := base64URL(id[:]); s[0] != '-' {
			return s
		}
	}
}

// Coordinate waits until the broker coordinates transactions and groups: it
// makes the topics of both when the first of each is asked for, and answers
// NOT_COORDINATOR while it loads them. A test that counts what an outage costs
// would count that.
func (k *Kafka) Coordinate(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, StartWithin)
	defer cancel()
	for i := range 16 { // their names fall on each of the four partitions
		name := fmt.Sprintf("tallywire-coordinated-%d", i)
		cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.TransactionalID(name))
		if err != nil {
			return err
		}
		err = poll(ctx, 20*time.Millisecond, func() (bool, error) {
			_, _, txns := cl.ProducerID(ctx)
			_, groups := kadm.NewClient(cl).FetchOffsets(ctx, name)
			return txns == nil && groups == nil, nil
		})
		cl.Close()
		if err != nil {
			return fmt.Errorf("waiting until Kafka coordinates: %w", err)
		}
	}
	return nil
}
