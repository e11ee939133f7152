// The ledger: an append-only log of what was committed, its index in memory,
// and its replay. A line is a CRC-32 (Castagnoli) in hex, a space, and JSON.

package erp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Fsync says when the ledger is forced to the disk. A killed process loses
// nothing under either; a power cut may lose the last second of FsyncInterval.
type Fsync string

const (
	FsyncInterval Fsync = "interval" // once a second, when something was written
	FsyncAlways   Fsync = "always"   // before each answer
)

// Record is one committed object as it stands. Fields are text, whatever their
// type in JSON: decimals without trailing zeros, dates as 2006-01-02, "" for
// what was never set.
type Record struct {
	Set      string            `json:"set"` // "customers", "employees", "projects", "timeRegistrationEntries"
	ID       string            `json:"id"`  // GUID
	Seq      int64             `json:"seq"` // of its creation: the order of arrival
	Version  int64             `json:"version"`
	Modified time.Time         `json:"modified"`
	Fields   map[string]string `json:"fields"`
}

// ETag is the weak entity tag of this version.
func (r *Record) ETag() string {
	return `W/"` + r.ID[:8] + "." + strconv.FormatInt(r.Version, 10) + `"`
}

// LedgerName is the file of the ledger in Options.Dir.
const LedgerName = "ledger.log"

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// errTorn says that the file ends in a line that was not written whole.
var errTorn = errors.New("torn tail")

// index is the ledger's content in memory.
type index struct {
	seq    int64
	byID   map[string]*Record              // set + "/" + id
	bySet  map[string][]*Record            // in order of arrival
	byText map[string]map[string][]*Record // set + "/" + field, of indexed fields
}

func newIndex() *index {
	return &index{byID: map[string]*Record{}, bySet: map[string][]*Record{}, byText: map[string]map[string][]*Record{}}
}

// indexed are the fields that are looked up by value.
var indexed = map[string][]string{
	"customers": {"number"}, "employees": {"number"}, "projects": {"number"},
	"timeRegistrationEntries": {"externalReference"},
}

// apply enters a line: a record that is new, or a new version of one.
func (x *index) apply(r *Record) {
	x.seq = max(x.seq, r.Version)
	k := r.Set + "/" + r.ID
	old := x.byID[k]
	for _, f := range indexed[r.Set] {
		m := x.byText[r.Set+"/"+f]
		if m == nil {
			m = map[string][]*Record{}
			x.byText[r.Set+"/"+f] = m
		}
		if old != nil {
			was := m[old.Fields[f]]
			for i, o := range was {
				if o == old {
					m[old.Fields[f]] = append(was[:i:i], was[i+1:]...)
					break
				}
			}
		}
		if v := r.Fields[f]; v != "" {
			if old != nil {
				m[v] = append(m[v], old)
			} else {
				m[v] = append(m[v], r)
			}
		}
	}
	if old != nil {
		*old = *r // bySet and byText keep pointing at it
		return
	}
	x.byID[k] = r
	x.bySet[r.Set] = append(x.bySet[r.Set], r)
}

// find gives the records of a set whose indexed field has this value.
func (x *index) find(set, field, value string) []*Record { return x.byText[set+"/"+field][value] }

// load replays the log; it returns how many octets of it are whole.
func load(r io.Reader, x *index) (whole int64, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := br.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				return whole, errTorn
			}
			return whole, nil
		}
		if err != nil {
			return whole, err
		}
		rec, err := parseLine(line[:len(line)-1])
		if err != nil {
			if _, peek := br.Peek(1); errors.Is(peek, io.EOF) {
				return whole, errTorn
			}
			return whole, fmt.Errorf("line at offset %d: %w", whole, err)
		}
		x.apply(rec)
		whole += int64(len(line))
	}
}

func parseLine(line []byte) (*Record, error) {
	sum, body, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return nil, errors.New("no checksum")
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if err != nil {
		return nil, fmt.Errorf("checksum: %w", err)
	}
	if crc32.Checksum(body, crcTable) != uint32(want) {
		return nil, errors.New("checksum does not match")
	}
	rec := new(Record)
	if err := json.Unmarshal(body, rec); err != nil {
		return nil, err
	}
	if len(rec.ID) < 8 {
		return nil, errors.New("no id")
	}
	return rec, nil
}

// ledger is the log being written and its index. Its lock is held by callers
// over validation and commit together.
type ledger struct {
	mu     sync.Mutex
	x      *index
	f      *os.File
	policy Fsync
	dirty  bool
	failed error // after a failed write nothing more is committed
	buf    bytes.Buffer
}

// openLedger replays the log and cuts off a torn tail.
func openLedger(dir string, policy Fsync) (*ledger, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, LedgerName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	l := &ledger{x: newIndex(), f: f, policy: policy}
	whole, err := load(f, l.x)
	if errors.Is(err, errTorn) {
		err = f.Truncate(whole)
	}
	if err == nil {
		_, err = f.Seek(whole, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("replaying %s: %w", path, err), f.Close())
	}
	return l, nil
}

// commit appends r; l.mu is held.
func (l *ledger) commit(r *Record) error {
	if l.failed != nil {
		return l.failed
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	l.buf.Reset()
	fmt.Fprintf(&l.buf, "%08x %s\n", crc32.Checksum(body, crcTable), body)
	_, err = l.f.Write(l.buf.Bytes())
	if err == nil && l.policy == FsyncAlways {
		err = l.f.Sync()
	}
	if err != nil {
		l.failed = fmt.Errorf("writing the ledger: %w", err)
		return l.failed
	}
	l.dirty = true
	l.x.apply(r)
	return nil
}

// sync forces what was written to the disk.
func (l *ledger) sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dirty {
		return nil
	}
	l.dirty = false
	return l.f.Sync()
}

func (l *ledger) close() error { return errors.Join(l.sync(), l.f.Close()) }

// ReadLedger reads the ledger in dir, of a server that runs or not, and gives
// its records by set in order of arrival. A torn tail is left out.
func ReadLedger(dir string) (map[string][]Record, error) {
	f, err := os.Open(filepath.Join(dir, LedgerName))
	if err != nil {
		return nil, err
	}
	x := newIndex()
	_, err = load(f, x)
	if errors.Is(err, errTorn) {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("reading the ERP's ledger in %s: %w", dir, err)
	}
	return x.copy(), nil
}

func (x *index) copy() map[string][]Record {
	out := map[string][]Record{}
	for set, rs := range x.bySet {
		for _, r := range rs {
			out[set] = append(out[set], r.clone())
		}
	}
	return out
}

func (r *Record) clone() Record {
	c := *r
	c.Fields = make(map[string]string, len(r.Fields))
	for k, v := range r.Fields {
		c.Fields[k] = v
	}
	return c
}
