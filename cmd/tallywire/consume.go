// consume.go: a topic as decoded JSON lines.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
)

type consumeFlags struct {
	from      string
	max       int
	partition int32
	follow    bool
}

func (a *app) consumeCmd() *cobra.Command {
	f := consumeFlags{}
	c := &cobra.Command{
		Use:   "consume TOPIC",
		Short: "Print a topic's records as decoded JSON lines",
		Long: `consume reads committed records and prints one JSON object per line: where
the record lies (partition, offset), its time, its key, and the row as its
schema says. A raw topic gives op, before and after; a canonical one gives the
value, null where the key was deleted. It joins no group and commits nothing.
Numbers with a fraction are printed as text, exactly as they are.

A record that cannot be decoded is printed with its error and its octets in
base64; the exit code is then 1.`,
		Example: `  tallywire consume ps.time_entry_costed --max 3
  tallywire consume psa.public.time_entry --from end --follow
  tallywire consume ps.customer --partition 0 --from 120 | jq .value.name`,
		Args: exactly(1, "one TOPIC"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return ended(cmd.Context(), a.consume(cmd.Context(), args[0], f))
		},
	}
	c.Flags().StringVar(&f.from, "from", "beginning", "beginning, end, or an offset")
	c.Flags().IntVar(&f.max, "max", 0, "stop after so many records (0: no limit)")
	c.Flags().Int32Var(&f.partition, "partition", -1, "only this partition (-1: all)")
	c.Flags().BoolVar(&f.follow, "follow", false, "go on at the end and wait for more")
	return c
}

var errTopic = problem.Define("TW-TOPIC-UNKNOWN", problem.Halt,
	"There is no such topic or partition.",
	"List the topics with: kcat -b BROKER -L. A topic is made when the component that writes it starts.")

func (a *app) consume(ctx context.Context, topic string, f consumeFlags) error {
	start, err := f.start()
	if err != nil {
		return err
	}
	cfg, err := a.load()
	if err != nil {
		return err
	}
	kc, err := cluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kc.Close()
	reg, err := schemaRegistry(cfg)
	if err != nil {
		return err
	}
	left, err := f.ends(ctx, kc, topic)
	if err != nil || len(left) == 0 {
		return err
	}
	t, err := kc.Topic(ctx, topic)
	if err != nil {
		return err
	}
	parts := map[int32]kgo.Offset{}
	for p := range left {
		parts[p] = start
	}
	cl, err := kc.Client(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: parts}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return err
	}
	defer cl.Close()
	p := printer{dec: avro.NewDecoder(reg), t: t, out: bufio.NewWriterSize(a.out, 1<<16), max: f.max}
	if err := p.run(ctx, cl, left, f.follow); err != nil {
		return err
	}
	if p.bad {
		return exit(exitFailed)
	}
	return nil
}

// start is --from; a start at the end follows.
func (f *consumeFlags) start() (kgo.Offset, error) {
	o := kgo.NewOffset()
	switch n, err := strconv.ParseInt(f.from, 10, 64); {
	case f.from == "beginning":
		return o.AtStart(), nil
	case f.from == "end":
		f.follow = true
		return o.AtEnd(), nil
	case err == nil && n >= 0:
		return o.At(n), nil
	}
	return o, usage{fmt.Errorf("--from is beginning, end or an offset, not %q", f.from)}
}

// ends gives the offset to read up to by partition, of those that are asked for
// and, unless more is waited for, hold anything.
func (f *consumeFlags) ends(ctx context.Context, kc *kafka.Cluster, topic string) (map[int32]int64, error) {
	ends, err := kc.Admin().ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, kafka.Wrap(err, "reading the end offsets of %s", topic)
	}
	left := map[int32]int64{}
	for p, o := range ends[topic] {
		if o.Err != nil {
			return nil, errTopic.New("%s: %w", topic, o.Err)
		}
		if f.partition < 0 || p == f.partition {
			left[p] = o.Offset
		}
	}
	if len(left) == 0 {
		return nil, errTopic.New("%s, partition %d of %d", topic, f.partition, len(ends[topic]))
	}
	begins, err := kc.Admin().ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, kafka.Wrap(err, "reading the start offsets of %s", topic)
	}
	for p := range left {
		if b, ok := begins.Lookup(topic, p); ok && b.Offset >= left[p] && !f.follow {
			delete(left, p)
		}
	}
	return left, nil
}

// printer prints records as lines.
type printer struct {
	dec *avro.Decoder
	t   *change.Topic
	out *bufio.Writer
	max int // lines; 0: no limit
	n   int
	bad bool // a record could not be decoded
}

// run prints until the offsets in left are reached, or for ever.
func (p *printer) run(ctx context.Context, cl *kgo.Client, left map[int32]int64, follow bool) error {
	for follow || len(left) > 0 {
		fs := cl.PollRecords(ctx, 1000)
		if err := fs.Err0(); err != nil {
			return kafka.Wrap(err, "reading %s", p.t.Name)
		}
		for _, e := range fs.Errors() {
			return kafka.Wrap(e.Err, "reading %s, partition %d", e.Topic, e.Partition)
		}
		for it := fs.RecordIter(); !it.Done() && !p.full(); {
			r := it.Next()
			if end, ok := left[r.Partition]; ok && r.Offset+1 >= end {
				delete(left, r.Partition)
			}
			if err := p.print(ctx, r); err != nil {
				return errors.Join(err, p.out.Flush())
			}
		}
		if err := p.out.Flush(); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
		if p.full() {
			return nil
		}
	}
	return nil
}

func (p *printer) full() bool { return p.max > 0 && p.n >= p.max }

func (p *printer) print(ctx context.Context, r *kgo.Record) error {
	if r.Attrs.IsControl() {
		return nil
	}
	line, ok, err := decodeLine(ctx, p.dec, p.t, r)
	if err != nil {
		return err
	}
	p.bad = p.bad || !ok
	p.n++
	if _, err := p.out.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}

// consumed is one line.
type consumed struct {
	Partition int32           `json:"partition"`
	Offset    int64           `json:"offset"`
	Time      string          `json:"time"`
	Key       any             `json:"key"`
	Op        string          `json:"op,omitempty"`
	Pos       string          `json:"pos,omitempty"`
	Before    json.RawMessage `json:"before,omitempty"`
	After     json.RawMessage `json:"after,omitempty"`
	Value     json.RawMessage `json:"value,omitempty"`
	Unchanged []string        `json:"unchanged,omitempty"` // columns of after that the source did not resend
	Tombstone bool            `json:"tombstone,omitempty"`
	Error     *problem.Report `json:"error,omitempty"`
	Octets    string          `json:"octets,omitempty"`
}

// decodeLine gives the line of a record; ok is false when it is no record of
// ours. The error is one of the registry's.
func decodeLine(ctx context.Context, dec *avro.Decoder, t *change.Topic, r *kgo.Record) (line []byte, ok bool, err error) {
	l := consumed{Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp.UTC().Format(time.RFC3339Nano), Key: printableKey(r.Key)}
	b := change.Get()
	defer b.Release()
	err = dec.Append(ctx, b, change.Coord{Topic: t, Partition: r.Partition, Offset: r.Offset}, r.Key, r.Value, kafka.Headers(r), r.Timestamp.UnixMilli())
	switch {
	case err != nil:
		if e := problem.Of(err); e == nil || e.Class != problem.Reject {
			return nil, false, err
		}
		rep := problem.Reports(err)[0]
		l.Error, l.Octets = &rep, base64.StdEncoding.EncodeToString(r.Value)
	case b.Len() == 0:
		l.Tombstone, ok = true, true
	default:
		ok = true
		c := &b.Changes[0]
		if k := change.AppendKey(nil, b, c); len(k) > 0 {
			l.Key = string(bytes.ReplaceAll(k, []byte{0x1f}, []byte("|")))
		}
		if c.Table.Source == "" {
			l.Value = json.RawMessage("null")
			if c.New != nil {
				l.Value = rowJSON(b, c.Table, c.New)
			}
			break
		}
		l.Op = string(rune(c.Op))
		if !c.Pos.IsZero() {
			l.Pos = c.Pos.String()
		}
		if c.Old != nil {
			l.Before = rowJSON(b, c.Table, c.Old)
		}
		if c.New != nil {
			l.After = rowJSON(b, c.Table, c.New)
			for i, v := range c.New {
				if v.IsUnchanged() {
					l.Unchanged = append(l.Unchanged, c.Table.Columns[i].Name)
				}
			}
		}
	}
	line, err = json.Marshal(l)
	return line, ok, err
}

// printableKey is the key's octets as text where they are text.
func printableKey(k []byte) any {
	if k == nil {
		return nil
	}
	return base64.StdEncoding.EncodeToString(k)
}

// rowJSON gives the columns in their order. Integers and booleans are JSON's
// own; JSON is itself; all else is its exact text. A column that the source
// did not resend is left out.
func rowJSON(b *change.Batch, t *change.Table, row []change.Value) json.RawMessage {
	out := []byte{'{'}
	var text []byte
	for i, v := range row {
		if v.IsUnchanged() {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = appendString(out, t.Columns[i].Name)
		out = append(out, ':')
		switch v.Kind() {
		case change.Null:
			out = append(out, "null"...)
		case change.Bool:
			out = strconv.AppendBool(out, v.Bool())
		case change.Int:
			out = strconv.AppendInt(out, v.Int(), 10)
		default:
			text = b.AppendText(text[:0], v)
			if v.Kind() == change.JSON && json.Valid(text) {
				out = append(out, text...)
				continue
			}
			out = appendString(out, string(text))
		}
	}
	return append(out, '}')
}

func appendString(dst []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string has no JSON: " + err.Error())
	}
	return append(dst, q...)
}
