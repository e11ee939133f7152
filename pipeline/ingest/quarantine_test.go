package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/registry"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/internal/enginetest"
	"github.com/tallywire/tallywire/pipeline/records"
)

// altered is a feed of a table of which a column becomes a number with a transaction,
// which no reader of the text takes, and, if there is a second one, a flag with that;
// and of another table that stays as it is.
type altered struct {
	*feed
	b      *enginetest.Bed
	shapes []*change.Table // of each, a text, a number, a flag
	from   []int           // the transactions with which they begin
	ended  int             // requests of which answered has seen the end
}

// newAltered also gives the bed a registry that checks.
func newAltered(t *testing.T, b *enginetest.Bed, txs [][]enginetest.Row, from ...int) *altered {
	t.Helper()
	s, err := registry.New(t.Context(), b.Direct, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h := httptest.NewServer(s)
	t.Cleanup(func() { h.Close(); s.Close() })
	if b.Env.Registry, err = avro.NewRegistry(h.URL); err != nil {
		t.Fatal(err)
	}
	a := &altered{b: b, from: append([]int{1}, from...)}
	for _, kind := range []change.Column{{Type: "text", Kind: change.String}, {Type: "bigint", Kind: change.Int, Width: 8}, {Type: "boolean", Kind: change.Bool}} {
		x := b.Table()
		kind.Name, kind.Nullable, kind.Precision, kind.Scale = "more", true, -1, -1
		x.Columns = append(x.Columns, kind)
		a.shapes = append(a.shapes, x.Index())
	}
	other := b.Table()
	other.Name, other.Topic = "other", a.other()
	a.feed = newFeed(a.shapes[0], txs)
	a.appendRow = func(batch *change.Batch, r enginetest.Row, n, i int) {
		shape := 0
		for j := range a.from {
			if n >= a.from[j] {
				shape = j
			}
		}
		enginetest.AppendRow(batch, a.shapes[shape], r, n, i)
		c := &batch.Changes[batch.Len()-1]
		for _, row := range []*[]change.Value{&c.Old, &c.New} {
			if *row == nil {
				continue
			}
			wide := batch.Row(3)
			copy(wide, *row)
			wide[2] = []change.Value{batch.SpanString(change.String, "text"), change.IntValue(7), change.BoolValue(true)}[shape]
			*row = wide
		}
		if i == 0 {
			enginetest.AppendRow(batch, other, enginetest.Row{Op: change.Create, ID: int64(n), Val: "other"}, n, 1000)
		}
	}
	return a
}

func (a *altered) other() string { return a.b.Source + ".public.other" }

// awaitOf waits until a transaction has come to a topic.
func (a *altered) awaitOf(topic string, n int) {
	a.b.T.Helper()
	a.b.AwaitRecord(fmt.Sprintf("transaction %d in %s", n, topic), topic, func(r *kgo.Record) bool {
		pos, err := change.ParsePos(kafka.Headers(r).Pos)
		return err == nil && pos.LSN == uint64(n)
	})
}

// kept waits until what is kept is as it should be.
func (a *altered) kept(what string, is func(list []Quarantine) bool) {
	a.b.T.Helper()
	var list []Quarantine
	var err error
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); {
		if list, err = Quarantines(a.b.T.Context(), a.b.Direct, a.b.Source); err == nil && is(list) {
			return
		}
		select {
		case <-a.b.T.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	a.b.T.Fatalf("waited for %s in vain: %+v, %v", what, list, err)
}

func (a *altered) decide(do string) {
	a.b.T.Helper()
	var of Quarantine
	a.kept("what is to be decided", func(list []Quarantine) bool {
		if len(list) == 1 {
			of = list[0]
		}
		return len(list) == 1
	})
	a.decideOf(of, do)
}

func (a *altered) decideOf(of Quarantine, do string) {
	a.b.T.Helper()
	if _, err := Decide(a.b.T.Context(), a.b.Direct, a.b.Source, of, do); err != nil {
		a.b.T.Fatal(err)
	}
}

// answered waits until nothing is asked any more.
func (a *altered) answered() {
	a.b.T.Helper()
	asked := map[string]bool{}
	a.b.AwaitRecord("the answers", tablesTopicOf(a.b.Source), func(r *kgo.Record) bool {
		if id, is := strings.CutPrefix(string(r.Key), askKey); is {
			if asked[id] = true; r.Value == nil {
				delete(asked, id)
				a.ended++
			}
		}
		return len(asked) == 0 && a.ended >= 3
	})
}

func nothing(list []Quarantine) bool { return len(list) == 0 }

// notices are the codes of what the source says beside its state.
func (a *altered) notices() (codes []string) {
	for _, n := range a.b.Env.Obs.Component("source", a.b.Source).View().Notices {
		codes = append(codes, n.Code)
	}
	return codes
}

// Lost if this fails: one table whose type changed stops all others; or its changes are
// gone, come twice, or out of their order when somebody has decided (G3).
func TestIngestQuarantine(t *testing.T) {
	for _, do := range []string{DecideAccept, DecideNewSubject} {
		t.Run(do, func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				txs := append(inserts(40, 10), inserts(20_001, 1)[1:]...)
				f := newAltered(t, b, txs, 21)
				f.upTo(30)
				stop, _ := running(b, f, pipeline.IngestLimits{})
				f.awaitOf(f.other(), 30)
				f.kept("100 records in quarantine", func(list []Quarantine) bool {
					return len(list) == 1 && list[0].Topic == b.Topic() && list[0].Records >= 100
				})
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				for _, r := range b.Committed() {
					if pos, _ := change.ParsePos(kafka.Headers(r).Pos); pos.LSN > 20 {
						t.Fatalf("transaction %d came to the topic, whose schema is refused", pos.LSN)
					}
				}
				stop, _ = running(b, f, pipeline.IngestLimits{})
				f.upTo(40)
				f.awaitOf(f.other(), 40)
				if got := f.notices(); !slices.Equal(got, []string{ErrQuarantine.ID}) {
					t.Errorf("it says %v", got)
				}
				f.decide("nonsense") // Remedy: TW-SCHEMA-DECISION
				f.decide(do)         // Remedy: TW-QUARANTINE
				over, trickled := make(chan struct{}), make(chan struct{})
				go func() { // so that some always is on its way
					defer close(trickled)
					tick := time.NewTicker(time.Millisecond)
					defer tick.Stop()
					for n := 41; n < len(txs); n++ {
						select {
						case <-over:
							n = len(txs)
						case <-tick.C:
							f.upTo(n)
						}
					}
					f.upTo(len(txs))
				}()
				f.kept("nothing in quarantine", nothing)
				close(over)
				<-trickled
				b.Await("all changes", f.all)
				f.awaitOf(b.Topic(), len(txs))
				if got := f.notices(); len(got) > 0 {
					t.Errorf("it says %v", got)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				checkOnce(b, txs)
				f.check(t)
				if _, err := b.Direct.Topic(t.Context(), records.Aside(b.Topic())); !problem.Has(err, kafka.ErrNoTopic) && err == nil {
					t.Errorf("topic %s is still there", records.Aside(b.Topic()))
				}
				all, err := b.Env.Registry.Schemas(t.Context(), b.Topic())
				want := map[string]int{DecideAccept: 2, DecideNewSubject: 1}[do]
				if n := len(slices.DeleteFunc(all, func(s avro.Schema) bool { return s.Subject != avro.ValueSubject(b.Topic()) })); err != nil || n != want {
					t.Errorf("the subject has %d schemas, want %d (%v)", n, want, err)
				}
			})
		})
	}
}

// Lost if this fails: a process that dies while a table comes out of quarantine leaves
// changes out, or has them twice.
func TestIngestQuarantineGoesOn(t *testing.T) {
	was := drainBytes
	drainBytes = 3000
	t.Cleanup(func() { drainBytes = was })
	for _, delivery := range []pipeline.Delivery{pipeline.ExactlyOnce, pipeline.AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
				txs := inserts(120, 10)
				f := newAltered(t, b, txs, 11)
				f.upTo(60)
				random := rand.New(rand.NewPCG(1, 2))
				limits := pipeline.IngestLimits{Delivery: delivery, TxnTimeout: 6 * time.Second}
				lives := map[pipeline.Delivery]int{pipeline.ExactlyOnce: 8, pipeline.AtLeastOnce: 3}[delivery]
				for life := range lives {
					ctx, kill := context.WithCancel(t.Context())
					ended := make(chan error, 1)
					go func() { ended <- Run(ctx, b.Env, pipeline.IngestSpec{Name: b.Source, Source: f, IngestLimits: limits}) }()
					switch life {
					case 0:
						f.awaitOf(f.other(), 60)
						f.decide(DecideAccept)
					default:
						f.upTo(60 + 8*life)
					}
					// Somewhere in what follows: by what is there to be read, not by the clock.
					n := 20 + random.IntN(40)
					f.kept("some records to come out", func(list []Quarantine) bool {
						n--
						return n < 0 || nothing(list)
					})
					b.Proxy.Cut()
					kill()
					if err := <-ended; err != nil && !errors.Is(err, context.Canceled) && pipeline.Classify(err) != problem.Retry {
						t.Fatal(err)
					}
					b.Proxy.Mend()
				}
				f.upTo(1 << 30)
				stop, _ := running(b, f, limits)
				b.Await("all changes", f.all)
				f.kept("nothing in quarantine", nothing)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if delivery == pipeline.ExactlyOnce {
					checkOnce(b, txs)
				}
				last := map[int64]string{}
				for _, r := range rowsOf(b) {
					last[r.id] = r.note
				}
				for id := range int64(7) {
					if !strings.HasPrefix(last[id+1], "value 119/") {
						t.Errorf("the last record of key %d is of %q", id+1, last[id+1])
					}
				}
				f.check(t)
			})
		})
	}
}

// Lost if this fails: what was decided of one schema lets another through.
func TestIngestQuarantineOfTwoSchemas(t *testing.T) {
	was := drainBytes
	drainBytes = 1000
	t.Cleanup(func() { drainBytes = was })
	b := enginetest.NewBed(t, "")
	txs := inserts(40, 10)
	f := newAltered(t, b, txs, 6, 21)
	f.upTo(20)
	stop, _ := running(b, f, pipeline.IngestLimits{})
	f.awaitOf(f.other(), 20)
	f.decide(DecideAccept)
	f.kept("the decision", func(list []Quarantine) bool { return len(list) == 1 && list[0].Decided == DecideAccept })
	f.upTo(25)
	f.kept("another refusal", func(list []Quarantine) bool { return len(list) == 1 && list[0].Decided == "" })
	f.decide(DecideAccept)
	f.upTo(40)
	b.Await("all changes", f.all)
	f.kept("nothing in quarantine", nothing)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	checkOnce(b, txs)
}

// Lost if this fails: changes that somebody leaves out come all the same; or nobody is
// told that rows are missing; or a table that was altered back stays out.
func TestIngestQuarantineSkipped(t *testing.T) {
	enginetest.OnBoth(t, func(t *testing.T, b *enginetest.Bed) {
		txs := inserts(40, 10)
		f := newAltered(t, b, txs, 11)
		f.upTo(20)
		stop, _ := running(b, f, pipeline.IngestLimits{})
		f.awaitOf(f.other(), 20)
		f.kept("a quarantine", func(list []Quarantine) bool { return len(list) == 1 })
		var former Quarantine
		f.from = []int{1, 1 << 20} // as it was
		f.decide(DecideSkip)
		f.kept("nothing in quarantine", func(list []Quarantine) bool { return len(list) == 1 && list[0].Aside == "" && !list[0].Left.IsZero() })
		f.upTo(30)
		f.awaitOf(b.Topic(), 30)
		if got := f.notices(); !slices.Equal(got, []string{ErrLeftOut.ID}) {
			t.Errorf("it says %v", got)
		}
		f.kept("what was left out", func(list []Quarantine) bool { former = list[0]; return true })
		f.decideOf(former, DecideAccept) // of a quarantine that is over: it is not for the next
		f.decide(DecideClose)            // Remedy: TW-QUARANTINE-SKIPPED
		f.kept("nothing to be said", nothing)
		f.from = []int{1, 31} // and once more
		f.upTo(40)
		b.Await("all changes", f.all)
		f.kept("a quarantine", func(list []Quarantine) bool { return len(list) == 1 && list[0].Records >= 100 && list[0].Left.IsZero() })
		f.answered()
		f.kept("no decision", func(list []Quarantine) bool { return len(list) == 1 && list[0].Decided == "" && list[0].Why != "" })
		f.decide(DecideAccept)
		f.kept("nothing in quarantine", nothing)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		seen := map[uint64]int{}
		for _, r := range rowsOf(b) {
			seen[r.pos.LSN]++
		}
		for n := range uint64(40) {
			if want := map[bool]int{false: 10}[n+1 > 10 && n+1 <= 20]; seen[n+1] != want {
				t.Errorf("of transaction %d there are %d rows, want %d", n+1, seen[n+1], want)
			}
		}
	})
}

// Lost if this fails: a table that goes on with the refused schema has its changes left
// out without a word, or the decision undone by itself.
func TestIngestQuarantineSkippedWhileItGoesOn(t *testing.T) {
	was := drainBytes
	drainBytes = 20_000
	t.Cleanup(func() { drainBytes = was })
	b := enginetest.NewBed(t, "")
	txs := append(inserts(40, 10), inserts(20_001, 1)[1:]...)
	f := newAltered(t, b, txs, 11)
	f.upTo(40)
	stop, _ := running(b, f, pipeline.IngestLimits{})
	f.awaitOf(f.other(), 40)
	f.kept("a quarantine", func(list []Quarantine) bool { return len(list) == 1 })
	var first Quarantine
	f.kept("what it is about", func(list []Quarantine) bool { first = list[0]; return true })
	f.decide(DecideSkip)
	n := 40
	f.kept("another quarantine, with what was left out", func(list []Quarantine) bool {
		n = min(n+1, len(txs))
		f.upTo(n)
		if len(list) == 1 && list[0].Decided == "" && list[0].Left.IsZero() && !list[0].Since.Equal(first.Since) {
			t.Fatalf("what was left out is not said: %+v", list)
		}
		return len(list) == 1 && list[0].Aside != "" && !list[0].Since.Equal(first.Since) && !list[0].Left.IsZero()
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, r := range rowsOf(b) {
		if r.pos.LSN > 10 {
			t.Errorf("transaction %d came, whose schema nobody accepted", r.pos.LSN)
		}
	}
}

// Lost if this fails: a parked row is taken for mended by what is older, or stays
// parked though what was in quarantine mends it.
func TestIngestQuarantineBesideParkedRows(t *testing.T) {
	big := strings.Repeat("large ", 2000)
	tooLarge := " " + records.ErrTooLarge.ID
	for _, c := range []struct {
		name string
		txs  [][]enginetest.Row // the first is of the former shape
		left []string
		ops  string
	}{
		{"mended there", [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}}, {{Op: change.Update, ID: 1, Val: "small"}}}, nil, "u"},
		{"older there", [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: "x"}}, {{Op: change.Update, ID: 1, Val: "y"}}, {{Op: change.Update, ID: 1, Val: big}}}, []string{"1" + tooLarge}, "cu"},
		{"older and newer there", [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: "x"}}, {{Op: change.Update, ID: 1, Val: "y"}}, {{Op: change.Update, ID: 1, Val: big}}, {{Op: change.Update, ID: 1, Val: "z"}}}, nil, "cuu"},
		{"emptied there", [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}}, {{Op: change.Create, ID: 2, Val: "x"}}, {{Op: change.Truncate}}, {{Op: change.Create, ID: 3, Val: "y"}}}, nil, "ctttc"},
		{"swept there", [][]enginetest.Row{{{Op: change.Create, ID: 1, Val: big}}, {{Op: change.Sweep, Since: 1}}}, []string{" " + ErrSweep.ID, "1" + tooLarge}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := enginetest.NewBed(t, "")
			b.Env.Retention = 600 * 24 * time.Hour // the changes are older than half of it
			f := newAltered(t, b, c.txs, 2)
			stop, _ := running(b, f, pipeline.IngestLimits{MaxRecordBytes: 1000})
			b.Await("all changes", f.all)
			f.kept("a quarantine", func(list []Quarantine) bool { return len(list) == 1 })
			f.decide(DecideAccept)
			f.kept("nothing in quarantine", nothing)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, p := range parkedOf(b) {
				if p.whole != nil {
					left = append(left, p.Key+" "+p.Code)
				}
			}
			slices.Sort(left)
			if !slices.Equal(left, c.left) {
				t.Errorf("parked are %q, want %q", left, c.left)
			}
			var ops []string
			for _, r := range rowsOf(b) {
				ops = append(ops, string(rune(r.op)))
			}
			slices.Sort(ops)
			want := strings.Split(c.ops, "")
			slices.Sort(want)
			if strings.Join(ops, "") != strings.Join(want, "") {
				t.Errorf("records %v, want %v", ops, want)
			}
			for _, r := range b.Committed() {
				if pos, _ := change.ParsePos(kafka.Headers(r).Pos); (time.Since(r.Timestamp) < time.Hour) != (pos.LSN > 1) {
					t.Errorf("a record of transaction %d is of %s: the topic may drop it before it is read, or says no more when the change was", pos.LSN, r.Timestamp)
				}
				for _, h := range r.Headers {
					if h.Key == headerCleared {
						t.Errorf("the mark of the quarantine came to the topic: %+v", r)
					}
				}
			}
		})
	}
}
