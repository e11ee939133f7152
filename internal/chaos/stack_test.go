package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/examples"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/registry"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
)

// stack is everything around tallywire, all of it real: it outlives the
// process under test.
type stack struct {
	t         *testing.T
	dir       string
	psa, far  *embedded.Postgres // far: the warehouse and the control database
	kafka     *embedded.Kafka
	redis     *embedded.Redis
	erp       *erp.Server
	cluster   *kafka.Cluster
	registry  *avro.Registry
	psaPool   *pgxpool.Pool
	warehouse *pgxpool.Pool
	control   *pgxpool.Pool
	firm      *history.History // what the firm committed, by a slot of test_decoding
	writers   *history.Writers
	unique    bool   // the ERP refuses a reference that it has
	binary    string // what start runs
	config    string
	http      string // address of tallywire's own HTTP server
	schemas   *registry.Server
	serving   *http.Server // of the registry, at its Addr

	mu   sync.Mutex
	proc *process // nil: not running
	log  *os.File
	runs int
}

// process is a run of the program, in a group of its own.
type process struct {
	pid  int
	done chan struct{} // closed when it is gone
}

// patience ends the wait for what never comes. What does come takes seconds, or
// a minute on a machine that is busy with other things.
var patience = 2 * testkit.Patience

const secret = "chaos-erp"

// newStack starts it all, seeds a small firm and makes the truth's slot.
func newStack(t *testing.T) *stack { return newStackOf(t, true) }

// newStackOf is newStack; unless unique, the ERP takes a second time entry with
// the same reference.
func newStackOf(t *testing.T, unique bool) *stack {
	t.Helper()
	ctx := t.Context()
	s := &stack{t: t, dir: t.TempDir(), binary: binary, unique: unique}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	params := map[string]string{"fsync": "off", "timezone": "UTC"}
	start := func(name string) *embedded.Postgres {
		p, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{Dir: filepath.Join(s.dir, name), Params: params, Unix: true, TLS: true})
		must(err)
		t.Cleanup(func() { must(p.Stop()) })
		return p
	}
	s.psa, s.far = start("psa"), start("far")
	must(s.psa.CreateDatabase(ctx, "psa"))
	must(s.far.CreateDatabase(ctx, "warehouse"))
	must(s.far.CreateDatabase(ctx, "control"))
	s.kafka = testkit.NewKafka(t, embedded.KafkaOptions{Dir: filepath.Join(s.dir, "kafka")})
	s.redis = testkit.NewRedis(t)

	var err error
	s.erp, err = erp.Start(ctx, erp.Options{Dir: filepath.Join(s.dir, "erp"), ClientSecret: secret, RatePer5Min: 10_000_000, AllowDuplicates: !unique})
	must(err)
	t.Cleanup(func() { must(s.erp.Stop()) })

	o := obs.New(slog.New(slog.NewTextHandler(io.Discard, nil)))
	s.cluster, err = kafka.New(kafka.Config{Brokers: []string{s.kafka.Addr()}}, o)
	must(err)
	t.Cleanup(s.cluster.Close)
	regAddr := freeAddr(t)
	reg, err := registry.New(ctx, s.cluster, o.Log)
	must(err)
	s.schemas = reg
	s.serveSchemas(regAddr)
	t.Cleanup(func() { s.serving.Close(); reg.Close() })
	s.registry, err = avro.NewRegistry("http://" + regAddr)
	must(err)

	_, err = firm.Seed(ctx, s.psa.DSN("psa"))
	must(err)
	pool := func(dsn string) *pgxpool.Pool {
		p, err := pgxpool.New(ctx, dsn)
		must(err)
		t.Cleanup(p.Close)
		return p
	}
	s.psaPool, s.warehouse, s.control = pool(s.psa.DSN("psa")), pool(s.far.DSN("warehouse")), pool(s.far.DSN("control"))
	// A crash test does not need eighteen months.
	s.sql(s.psaPool, `delete from time_entry where work_date < '2026-06-01'`)
	s.writers, err = history.NewWriters(ctx, s.psa.DSN("psa"), history.WritersOptions{Pause: 100 * time.Millisecond, Seed: rand.Uint64()})
	must(err)
	s.sql(s.psaPool, `select pg_create_logical_replication_slot('truth', 'test_decoding')`)
	s.firm = history.New(keys)
	must(s.firm.BaseOf(ctx, s.psaPool))

	s.http = freeAddr(t)
	s.config = s.writeConfig("chaos", s.http)
	t.Cleanup(func() { s.kill() })
	return s
}

// serveSchemas starts the registry's server; s.serving.Close ends it.
func (s *stack) serveSchemas(addr string) {
	s.t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.serving = &http.Server{Addr: addr, Handler: s.schemas, ReadHeaderTimeout: time.Second}
	go s.serving.Serve(ln)
}

var configuration = `
kafka: {brokers: ["%[1]s"]}
registry: {url: "http://%[2]s"}
redis: {addr: "%[3]s"}
control: {dsn: %[4]q}
http: {listen: "%[5]s"}
state_dir: %[6]s
instance: %[13]s
partitions: 4
sources:
  psa: {type: postgres, dsn: %[7]q, slot: tallywire_psa, publication: tallywire_psa, tables: [public.*]}
transforms:
` + examples.Transforms() + `
sinks:
  warehouse: {type: warehouse, dsn: %[8]q}
  erp: {type: rest, profile: business-central, url: "%[9]s", company: %[10]s, token_url: "%[11]s", client_id: tallywire, client_secret: env:ERP_SECRET, go_live: %[12]s, rate: 5000, burst: 1000, timeout: 2s, unique_reference: %[14]v, settle_after: 5s}
`

// sourceDSN is how the source reaches its database: CHAOS_TRANSPORT is tcp, which
// is the default, unix or tls.
func (s *stack) sourceDSN() string {
	s.t.Helper()
	switch over := os.Getenv("CHAOS_TRANSPORT"); over {
	case "", "tcp":
		return s.psa.DSN("psa")
	case "unix":
		return s.psa.UnixDSN("psa")
	case "tls":
		return s.psa.TLSDSN("psa")
	default:
		s.t.Fatalf("CHAOS_TRANSPORT=%s: want tcp, unix or tls", over)
		return ""
	}
}

// writeConfig writes the configuration that each run of an instance gets.
func (s *stack) writeConfig(instance, http string) (file string) {
	s.t.Helper()
	text := fmt.Sprintf(configuration, s.kafka.Addr(), s.serving.Addr, s.redis.Addr, s.far.DSN("control"), http, filepath.Join(s.dir, "state-"+instance),
		s.sourceDSN(), s.far.DSN("warehouse"), s.erp.URL(), s.erp.Company(), s.erp.TokenURL(), firm.GoLive.Format("2006-01-02"), instance, s.unique)
	file = filepath.Join(s.dir, instance+".yml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

func (s *stack) sql(p *pgxpool.Pool, q string) {
	s.t.Helper()
	if _, err := p.Exec(context.WithoutCancel(s.t.Context()), q); err != nil {
		s.t.Fatalf("%s: %v", q, err)
	}
}

// start runs the program; it fails the test when that cannot be started.
func (s *stack) start() {
	s.t.Helper()
	p := s.launch(s.binary, s.config)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc = p
}

func (s *stack) launch(program, config string) *process {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runs++
	if s.log == nil {
		f, err := os.Create(filepath.Join(s.dir, "tallywire.log"))
		if err != nil {
			s.t.Fatal(err)
		}
		s.log = f
	}
	fmt.Fprintf(s.log, "---- run %d, %s\n", s.runs, filepath.Base(program))
	cmd := exec.Command(program, "run", "-c", config)
	cmd.Env = append(os.Environ(), "ERP_SECRET="+secret)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	done := make(chan struct{})
	if err := embedded.StartChild(cmd, func(error) { close(done) }); err != nil {
		s.t.Fatal(err)
	}
	return &process{cmd.Process.Pid, done}
}

// kill is kill -9, and waits until the process is gone.
func (s *stack) kill() { s.end(syscall.SIGKILL) }

// stop is Ctrl-C, and waits until the process has ended.
func (s *stack) stop() { s.end(syscall.SIGINT) }

func (s *stack) end(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.signal(s.proc, sig)
		s.proc = nil
	}
}

func (s *stack) signal(p *process, sig syscall.Signal) {
	syscall.Kill(-p.pid, sig)
	select {
	case <-p.done:
	case <-time.After(testkit.Patience):
		syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
		s.t.Errorf("tallywire did not end within %v of %v", testkit.Patience, sig)
	}
}

// tail is the end of the log, for a failure's message.
func (s *stack) tail() string {
	log := s.logged()
	return log[max(0, len(log)-6000):]
}

// logged is all that every process has said until now.
func (s *stack) logged() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "tallywire.log"))
	if err != nil {
		s.t.Error(err)
	}
	return string(b)
}

// until polls f, ten times a second, until it is true; what is said when it
// does not become so within the bound.
func (s *stack) until(bound time.Duration, what string, f func(context.Context) (bool, string)) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), bound)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		ok, now := f(ctx)
		if ok {
			return
		}
		last = now
		s.mu.Lock()
		proc := s.proc
		s.mu.Unlock()
		if proc != nil {
			select {
			case <-proc.done:
				s.t.Fatalf("tallywire ended by itself, before %s: %s\n%s", what, last, s.tail())
			default:
			}
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("after %v: not yet: %s: %s\n%s", bound, what, last, s.tail())
		case <-tick.C:
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := embedded.FreeAddr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "tallywire-chaos")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "tallywire")
		var out bytes.Buffer
		cmd := exec.Command("go", "build", "-o", binary, "github.com/tallywire/tallywire/cmd/tallywire")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, strings.TrimSpace(out.String()), err)
			return 1
		}
		return m.Run()
	}())
}
