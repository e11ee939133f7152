// Positions: how far a source is in Kafka. Each source has a topic of its own
// with one partition (`_tallywire.positions.<source>`, compacted): in a shared
// partition, another source's open transaction would hide this one's committed
// position. A position is the last record of the transaction that holds the
// records before it (invariant 1), so that both are there or neither.

package ingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/parked"
)

// Problems of positions.
var (
	ErrPositionForm = problem.Define("TW-POSITION-FORM", problem.Halt,
		"The last position of a source cannot be read.",
		"Somebody else wrote to the positions topic, or a newer version did: run that version, or start the source over (docs/recovery.md).")
	ErrPositionHeld = problem.Define("TW-POSITION-HELD", problem.Retry,
		"A transaction that is not ours is open on a positions topic, so the last position is not known yet.",
		"It ends by itself within its timeout, 15 minutes by the broker's default; nobody but this source should write to the topic. If it stays, Kafka has lost its end: kafka-transactions.sh find-hanging names it, and abort ends it; start the source over then (docs/recovery.md), since what is aborted may have been acknowledged.")
	ErrPositionCluster = problem.Define("TW-POSITION-CLUSTER", problem.Halt,
		"The position of a source was written on another Kafka cluster.",
		"Records between that cluster's end and here may be missing. Name the old cluster again, or start the source over (docs/recovery.md) or under another name.")
	ErrPositionTopics = problem.Define("TW-POSITION-TOPICS", problem.Halt,
		"A raw topic is not the one that the source's position speaks of: it was deleted, or made again, or has another number of partitions.",
		"What it held is gone, and the source will not send it again by itself. Start the source over (docs/recovery.md).")
)

// positionForm is the newest form that is read. Forms before the first that says
// its number are 1. Form 2 is written where the names of the raw topics lie in
// records of their own (topics.go), form 3 while a topic is in quarantine, and form 1
// otherwise, which older versions read.
const positionForm = 3

// position is the value of a record of a positions topic, as JSON.
type position struct {
	Form   int    `json:"v"`
	Source string `json:"source"`
	// Resume is the source's token as it is when that is compact JSON;
	// otherwise it is in ResumeBytes.
	Resume      json.RawMessage          `json:"resume,omitempty"`
	ResumeBytes []byte                   `json:"resume_bytes,omitempty"`
	Beside      uint64                   `json:"beside,omitempty"` // records sent beside the stream so far (pipeline.Besider)
	Cluster     string                   `json:"cluster"`
	Topics      map[string]positionTopic `json:"topics,omitempty"` // raw topics written so far; form 1
	// TopicsIn records name them in form 2: from offset TopicsAt on, or, without
	// it, right before the position.
	TopicsIn int    `json:"topics_in,omitempty"`
	TopicsAt *int64 `json:"topics_at,omitempty"`
	// Notes is how many are kept beside it (notes.go); 0: none, or by a version that
	// knew of none.
	Notes int `json:"notes,omitempty"`
	// Quarantine is what is in quarantine, by raw topic; form 3.
	Quarantine map[string]*quarantined `json:"quarantine,omitempty"`
	WrittenAt  time.Time               `json:"written_at"`
}

func (p *position) setResume(r pipeline.Resume) {
	var compact bytes.Buffer
	if json.Compact(&compact, r) == nil && bytes.Equal(compact.Bytes(), r) {
		p.Resume, p.ResumeBytes = json.RawMessage(r), nil
		return
	}
	p.Resume, p.ResumeBytes = nil, r
}

func (p *position) resume() pipeline.Resume {
	if p.Resume != nil {
		return pipeline.Resume(p.Resume)
	}
	return pipeline.Resume(p.ResumeBytes)
}

func (p *position) encode() []byte {
	p.Form = 1
	if p.TopicsIn > 0 {
		p.Form = 2
	}
	if len(p.Quarantine) > 0 {
		p.Form = 3
	}
	return encodeJSON(p)
}

func encodeJSON(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // the token stays as it is
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("BUG: %T to JSON: %v", v, err))
	}
	return bytes.TrimRight(buf.Bytes(), "\n")
}

// readPosition gives the last committed position with the topics that it knows,
// nil when there is none. Call it after fencing only: then nothing of a
// predecessor is open any more, and whatever is still open (last stable offset
// below the high watermark) is somebody else's and waited for.
func readPosition(ctx context.Context, cl *kgo.Client, cluster *kafka.Cluster, t *change.Topic) (*position, error) {
	end, err := settledEnd(ctx, cluster, t)
	if err != nil {
		return nil, err
	}
	// Backwards in growing bites: usually the position is the one record
	// before the last marker.
	for bite := int64(16); ; bite *= 16 {
		from := max(0, end-bite)
		p, at, err := lastPosition(ctx, cl, t, from, end)
		if p != nil && p.TopicsIn > 0 {
			err = p.readTopics(ctx, cl, t, at)
		}
		if err != nil || p != nil || from == 0 {
			return p, err
		}
	}
}

// heldFor is how long a transaction that is not ours is waited for.
var heldFor = 10 * time.Second

// settledEnd waits until no transaction is open on the topic and gives its end.
func settledEnd(ctx context.Context, cluster *kafka.Cluster, t *change.Topic) (int64, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(heldFor)
	for {
		high, err := cluster.Admin().ListEndOffsets(ctx, t.Name)
		if err == nil {
			err = high.Error()
		}
		if err != nil {
			return 0, kafka.Wrap(err, "listing where topic %q ends", t.Name)
		}
		// Read after the high watermark: it can only have grown since.
		stable, err := cluster.Admin().ListCommittedOffsets(ctx, t.Name)
		if err == nil {
			err = stable.Error()
		}
		if err != nil {
			return 0, kafka.Wrap(err, "listing where topic %q is stable", t.Name)
		}
		h, _ := high.Lookup(t.Name, 0)
		s, _ := stable.Lookup(t.Name, 0)
		if s.Offset >= h.Offset {
			return h.Offset, nil
		}
		if time.Now().After(deadline) {
			return 0, ErrPositionHeld.New("topic %q is stable up to offset %d of %d, and open for %s", t.Name, s.Offset, h.Offset, cluster.Holders(ctx, t.Name))
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// lastPosition gives the last committed one in [from, end) and its offset, or nil.
func lastPosition(ctx context.Context, cl *kgo.Client, t *change.Topic, from, end int64) (*position, int64, error) {
	at, last := int64(-1), []byte(nil)
	err := kafka.Scan(ctx, cl, t, 0, from, end, func(r *kgo.Record) error {
		if !r.Attrs.IsControl() && r.Value != nil && !namesTopics(r) {
			at, last = r.Offset, append(last[:0], r.Value...)
		}
		return nil
	})
	if err != nil || at < 0 {
		return nil, 0, err
	}
	p, err := decodePosition(last)
	if err != nil {
		return nil, 0, ErrPositionForm.New("offset %d of topic %q %w", at, t.Name, err)
	}
	return p, at, nil
}

// decodePosition is encode's inverse.
func decodePosition(value []byte) (*position, error) {
	p := new(position)
	if err := json.Unmarshal(value, p); err != nil {
		return nil, fmt.Errorf("is no position: %w", err)
	}
	if p.Form > positionForm {
		return nil, fmt.Errorf("is a position of form %d; this version reads up to %d", p.Form, positionForm)
	}
	if p.resume() == nil {
		return nil, errors.New("has no resume token")
	}
	return p, nil
}

// check compares what the position was written for with what is there now, and
// gives those of its topics that are not there any more.
func (p *position) check(ctx context.Context, cluster *kafka.Cluster, source string) (gone map[string]bool, err error) {
	id, err := cluster.ID(ctx)
	if err != nil {
		return nil, err
	}
	if p.Source != source {
		return nil, ErrPositionForm.New("topic %q holds a position of source %q", positionsTopicOf(source), p.Source)
	}
	if p.Cluster != id {
		return nil, ErrPositionCluster.New("source %q: position of cluster %q, this one is %q", source, p.Cluster, id)
	}
	return checkTopics(ctx, cluster, source, p.Topics)
}

// positionsTopicOf is the topic that keeps the position of a source.
func positionsTopicOf(source string) string { return "_tallywire.positions." + source }

// OwnTopics are the topics in which a source keeps what it knows, in the order in which
// they are removed: its position last, since a source that finds none begins anew, and
// one that finds it halts where the rest is gone.
func OwnTopics(source string) []string {
	return []string{parked.TopicOf(source), tablesTopicOf(source), positionsTopicOf(source)}
}
