package ingest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/records"
)

// listing is a source of many tables: its transaction n has one row, of table n.
type listing struct {
	tables []*change.Table
	to     int
	sent   chan struct{} // closed when all is durable
}

func (l *listing) Run(ctx context.Context, out pipeline.SourceOutlet) error {
	resume, err := out.Resume(ctx)
	if err != nil {
		return err
	}
	var at feedToken
	if resume != nil {
		if err := json.Unmarshal(resume, &at); err != nil {
			return err
		}
	}
	if err := out.Prepare(ctx, l.tables); err != nil {
		return err
	}
	for n := at.LSN + 1; n <= l.to; n++ {
		b := change.Get()
		enginetest.AppendRow(b, l.tables[n%len(l.tables)], enginetest.Row{Op: change.Create, ID: int64(n), Val: "x"}, n, 0)
		resume := fmt.Appendf(nil, `{"lsn":%d}`, n)
		b.Resume = resume
		if err := out.Send(ctx, b); err != nil {
			return err
		}
		if err := out.Checkpoint(ctx, resume); err != nil {
			return err
		}
	}
	close(l.sent)
	<-ctx.Done()
	return nil
}

// lists runs a listing until it is done.
func lists(b *enginetest.Bed, tables []*change.Table, to int) {
	b.T.Helper()
	l := &listing{tables: tables, to: to, sent: make(chan struct{})}
	stop, ended := running(b, l, pipeline.IngestLimits{TopicsBytes: 16 << 10})
	select {
	case <-l.sent:
	case <-ended:
	}
	if err := stop(); err != nil {
		b.T.Fatal(err)
	}
}

func manyTables(b *enginetest.Bed, n, octets int) []*change.Table {
	tables := make([]*change.Table, n)
	for i := range tables {
		t := b.Table()
		t.Name = fmt.Sprintf("%s%03d", strings.Repeat("x", octets), i)
		t.Topic = b.Source + ".public." + t.Name
		tables[i] = t.Index()
	}
	return tables
}

// positionsOf counts what the positions topic of a source holds.
func positionsOf(b *enginetest.Bed) (naming, positions, largest int) {
	b.T.Helper()
	ctx := b.T.Context()
	topic, err := b.Direct.Topic(ctx, positionsTopicOf(b.Source))
	if err != nil {
		b.T.Fatal(err)
	}
	ends, err := b.Direct.Admin().ListEndOffsets(ctx, topic.Name)
	if err != nil {
		b.T.Fatal(err)
	}
	end, _ := ends.Lookup(topic.Name, 0)
	if err := kafka.Scan(ctx, b.Direct.Shared(), topic, 0, 0, end.Offset, func(r *kgo.Record) error {
		switch {
		case r.Attrs.IsControl():
		case namesTopics(r):
			naming++
		default:
			positions, largest = positions+1, max(largest, len(r.Value))
		}
		return nil
	}); err != nil {
		b.T.Fatal(err)
	}
	return naming, positions, largest
}

// Lost if this fails: a source of many tables writes the names of all in each
// commit, until a record cannot hold them any more; or it forgets a topic, and
// does not notice that it is gone.
func TestIngestKnowsManyTopics(t *testing.T) {
	b := enginetest.NewBed(t, "")
	tables := manyTables(b, 90, 180)
	know := func(want int) {
		t.Helper()
		topic, err := b.Direct.Topic(t.Context(), positionsTopicOf(b.Source))
		if err != nil {
			t.Fatal(err)
		}
		p, err := readPosition(t.Context(), b.Direct.Shared(), b.Direct, topic)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Topics) != want || p.Form != 2 {
			t.Errorf("the position, of form %d, knows %d topics, want %d", p.Form, len(p.Topics), want)
		}
	}
	lists(b, tables, 1)
	know(90)
	lists(b, tables, 12)
	know(90)
	naming, positions, largest := positionsOf(b)
	if naming == 0 || naming > 2 || positions < 12 || largest > 1000 {
		t.Errorf("%d records name the topics beside %d positions, the largest of %d octets", naming, positions, largest)
	}
	if _, err := b.Direct.Admin().DeleteTopic(t.Context(), tables[89].Topic); err != nil {
		t.Fatal(err)
	}
	err := runIngest(b, t.Context(), &listing{tables: tables, to: 20, sent: make(chan struct{})}, pipeline.IngestLimits{TopicsBytes: 16 << 10})
	if !problem.Has(err, ErrPositionTopics) || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("with a topic that is gone: %v", err)
	}
	// Its table is not captured any more: then nobody needs it.
	lists(b, tables[:89], 20)
	know(89)
	if more, _, _ := positionsOf(b); more <= naming {
		t.Error("what is known now was not written")
	}
}

// Lost if this fails: after one answer of a broker that has just come up a
// source stops for good, and says that its topics are gone.
func TestIngestBelievesNoStaleAnswer(t *testing.T) {
	b := enginetest.NewBed(t, "")
	tables := manyTables(b, 2, 1)
	lists(b, tables, 4)
	host, port, err := net.SplitHostPort(b.Fake.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	var lies atomic.Int32
	b.Fake.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		asked := req.(*kmsg.MetadataRequest)
		if len(asked.Topics) != 2 || lies.Load() == 3 {
			return nil, nil, false
		}
		for _, topic := range asked.Topics {
			if topic.Topic == nil || !strings.HasPrefix(*topic.Topic, b.Source+".") {
				return nil, nil, false
			}
		}
		lies.Add(1)
		b.Fake.KeepControl()
		resp := asked.ResponseKind().(*kmsg.MetadataResponse)
		broker := kmsg.NewMetadataResponseBroker()
		broker.Host = host
		n, _ := strconv.Atoi(port)
		broker.Port = int32(n)
		resp.Brokers = append(resp.Brokers, broker)
		for _, topic := range asked.Topics {
			d := kmsg.NewMetadataResponseTopic()
			d.Topic, d.ErrorCode = topic.Topic, kerr.UnknownTopicOrPartition.Code
			resp.Topics = append(resp.Topics, d)
		}
		return resp, nil, true
	})
	lists(b, tables, 8)
	if lies.Load() != 3 {
		t.Errorf("it was told %d times that its topics are gone", lies.Load())
	}
}

// Lost if this fails: the names of 12,000 topics do not fit a record; or some
// are lost between two.
func TestTopicBook(t *testing.T) {
	want := map[string]positionTopic{}
	book := bookOf(nil, nil, 16<<10)
	for i := range 12_000 {
		name := fmt.Sprintf("psa.public.a_table_with_quite_a_name_%d", i)
		want[name] = positionTopic{ID: fmt.Sprintf("%032x", i), Partitions: 4, Large: i%100 == 0}
		book.set(name, want[name])
	}
	p := position{Source: "psa"}
	recs := book.into(&p, "positions")
	if len(recs) < 4 || p.TopicsIn != len(recs) || p.TopicsAt != nil || p.Topics != nil {
		t.Fatalf("%d records, the position says %d", len(recs), p.TopicsIn)
	}
	keys := map[string]bool{}
	for i, r := range recs {
		keys[string(r.Key)] = true
		if r.Offset = int64(100 + i); len(r.Value) > 2*topicsRecord || !namesTopics(r) {
			t.Errorf("record %d has %d octets", i, len(r.Value))
		}
	}
	if len(keys) != len(recs) {
		t.Error("records of the same key: compaction takes one away")
	}
	if err := p.takeTopics(&change.Topic{Name: "positions"}, recs); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(p.Topics, want) || *p.TopicsAt != 100 {
		t.Errorf("%d topics are read", len(p.Topics))
	}
	again := bookOf(&p, nil, 16<<10)
	if recs := again.into(&p, "positions"); recs != nil || p.TopicsAt == nil {
		t.Error("what has not changed is written again")
	}
	var large records.LargeTopics
	again.tell(&large)
	if large.Len() != 120 {
		t.Errorf("%d topics are large", large.Len())
	}
	again.note(&large)
	if recs := again.into(&p, "positions"); recs != nil {
		t.Error("what is known is noted as new")
	}
	large.Add("psa.public.a_table_with_quite_a_name_1")
	again.note(&large)
	if recs := again.into(&p, "positions"); recs == nil {
		t.Error("a topic that became large is not noted")
	}
}
