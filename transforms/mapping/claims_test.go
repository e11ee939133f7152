package mapping_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/mapping"
)

var contacts = (&change.Table{
	Source: "psa", Schema: "public", Name: "contact", Topic: "psa.public.contact", OldFull: true,
	Columns: []change.Column{
		{Name: "user_id", Type: "bigint", Kind: change.Int},
		{Name: "email", Type: "text", Kind: change.String, Nullable: true},
	},
	Key: []int{0},
}).Index()

func contactContract(t *testing.T) avro.Catalogue {
	t.Helper()
	return catalogue(t, `{"type": "record", "name": "Contact", "namespace": "firm", "doc": "Who has an address.", "topic": "firm.contact", "key": ["email"], "owner": "sales", "fields": [
		{"name": "email", "type": "string", "doc": "Address.", "owner": "sales", "sensitivity": "internal"},
		{"name": "user_id", "type": "string", "doc": "Who.", "owner": "sales", "sensitivity": "internal"}]}`)
}

func contactRule() mapping.Topic {
	return mapping.Topic{From: contacts.Topic, To: "firm.contact", Where: "row.email != null", Claims: true}
}

func contactStage(t *testing.T) *mapping.Stage {
	t.Helper()
	s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{contactRule()}}, contactContract(t), nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	return s
}

// exchange is two groups with topics between them, in memory: raw partitions by
// user, claims by address, and what becomes of each address.
type exchange struct {
	t      *testing.T
	rng    *rand.Rand
	stage  *mapping.Stage
	claims *mapping.Claims
	tables [2]*state.Table // of the two groups
	raw    *change.Topic
	queue  *change.Topic

	parts   [exchangeParts][]*change.Batch // of raw: a record each
	read    [exchangeParts]int
	claimed [exchangeParts][]*change.Batch
	taken   [exchangeParts]int
	lsn     uint64

	final map[string]string // address → user, as a reader of the topic has it
}

const exchangeParts = 3

func newExchange(t *testing.T, rng *rand.Rand) *exchange {
	x := &exchange{t: t, rng: rng, stage: contactStage(t), final: map[string]string{}}
	log := slog.New(slog.DiscardHandler)
	x.tables[0] = x.stage.Remember(nil, log)
	x.claims, x.tables[1] = x.stage.Claims(nil, log)
	x.raw = &change.Topic{Name: contacts.Topic, ID: [16]byte{1}, Partitions: exchangeParts}
	x.queue = &change.Topic{Name: avro.ClaimsTopic("canonical"), ID: [16]byte{2}, Partitions: exchangeParts}
	for _, table := range x.tables {
		table.Open(&change.Topic{Name: "state", Partitions: exchangeParts}, 0)
		for p := range int32(exchangeParts) {
			if _, ok, err := table.Own(t.Context(), p, 0, 0); err != nil || !ok {
				t.Fatal(ok, err)
			}
		}
	}
	return x
}

// put writes one change of a user to the raw topic; "": none. full says whether
// the old row is sent.
func (x *exchange) put(user int, was, is string, full bool) {
	op := change.Update
	if was == "" {
		op = change.Create
	}
	table := contacts
	if !full {
		table = contactsByKey
	}
	b := change.Get()
	row := func(email string) []change.Value {
		r := b.Row(2)
		if r[0] = change.IntValue(int64(user)); email != "null" {
			r[1] = b.SpanString(change.String, email)
		}
		return r
	}
	if is == "" {
		op = change.Delete
	}
	c := b.Append(table, op)
	if is != "" {
		c.New = row(is)
	}
	if was != "" && (full || is == "") {
		if c.Old = row(was); !full {
			c.Old[1] = change.UnchangedValue()
		}
	}
	x.lsn++
	c.Pos = change.Pos{System: 1, Timeline: 1, LSN: x.lsn, Kind: change.PosCommit, Ordinal: 1}
	p := int(kafka.Partition(change.AppendKey(nil, b, c), exchangeParts))
	at := int64(len(x.parts[p]))
	c.Coord = change.Coord{Topic: x.raw, Partition: int32(p), Offset: at}
	b.Ranges = append(b.Ranges, change.Range{Topic: x.raw, Partition: int32(p), From: at, To: at + 1})
	x.parts[p] = append(x.parts[p], b)
}

var contactsByKey = keyOnly(contacts)

// copyOf is what a reader gets.
func copyOf(b *change.Batch) *change.Batch {
	d := change.Get()
	for i := range b.Changes {
		d.AppendFrom(b, &b.Changes[i])
	}
	d.Ranges = append(d.Ranges, b.Ranges...)
	return d
}

// step has one group read one record of one partition; false: there is none.
func (x *exchange) step() bool {
	type place struct{ group, p int }
	var open []place
	for p := range exchangeParts {
		if x.read[p] < len(x.parts[p]) {
			open = append(open, place{0, p})
		}
		if x.taken[p] < len(x.claimed[p]) {
			open = append(open, place{1, p})
		}
	}
	if len(open) == 0 {
		return false
	}
	at := open[x.rng.IntN(len(open))]
	var err error
	if at.group == 0 {
		b := x.parts[at.p][x.read[at.p]]
		x.read[at.p]++
		err = x.stage.Apply(x.t.Context(), copyOf(b), (*toClaims)(x))
	} else {
		b := x.claimed[at.p][x.taken[at.p]]
		x.taken[at.p]++
		err = x.claims.Apply(x.t.Context(), copyOf(b), (*toContacts)(x))
	}
	if err != nil {
		x.t.Fatal(problem.Format(err))
	}
	return true
}

// replay has the first group begin anew at a record of each partition.
func (x *exchange) replay() {
	for p := range x.read {
		x.read[p] = x.rng.IntN(x.read[p] + 1)
	}
}

type toClaims exchange

func (x *toClaims) Reject(c *change.Change, err error) { x.t.Errorf("%v: %v", c.Coord, err) }

func (x *toClaims) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	for i := range b.Changes {
		d := change.Get()
		c := d.AppendFrom(b, &b.Changes[i])
		p := int(kafka.Partition(change.AppendKey(nil, d, c), exchangeParts))
		at := int64(len(x.claimed[p]))
		c.Coord = change.Coord{Topic: x.queue, Partition: int32(p), Offset: at}
		d.Ranges = append(d.Ranges, change.Range{Topic: x.queue, Partition: int32(p), From: at, To: at + 1})
		x.claimed[p] = append(x.claimed[p], d)
	}
	return nil
}

type toContacts exchange

func (x *toContacts) Reject(c *change.Change, err error) { x.t.Errorf("%v: %v", c.Coord, err) }

func (x *toContacts) Send(_ context.Context, b *change.Batch) error {
	defer b.Release()
	for i := range b.Changes {
		c := &b.Changes[i]
		key := string(change.AppendKey(nil, b, c))
		if c.Op == change.Delete {
			delete(x.final, key)
		} else {
			x.final[key] = b.String(c.New[1])
		}
	}
	return nil
}

func (x *exchange) check(want map[string]string, what string) {
	x.t.Helper()
	if !maps.Equal(x.final, want) {
		x.t.Errorf("%s: got %v, want %v", what, x.final, want)
	}
}

// Two rows hand a key to each other: whatever partition is read first, its new
// owner has it. Without claims the delete of the one comes after the record of
// the other every third time, and the address is gone.
func TestRowsHandKeysOver(t *testing.T) {
	for seed := range uint64(200) {
		for _, full := range []bool{true, false} {
			x := newExchange(t, rand.New(rand.NewPCG(seed, 1)))
			x.put(1, "", "a", full)
			x.put(2, "", "b", full)
			for x.step() {
			}
			x.put(1, "a", "c", full)
			x.put(2, "b", "a", full)
			for x.step() {
			}
			x.check(map[string]string{"c": "1", "a": "2"}, fmt.Sprintf("seed %d, full %v", seed, full))
			// And back, in one go: a swap.
			x.put(1, "c", "a", full)
			x.put(2, "a", "c", full)
			for x.step() {
			}
			x.check(map[string]string{"a": "1", "c": "2"}, fmt.Sprintf("swapped: seed %d, full %v", seed, full))
		}
	}
}

// Any interleaving of partitions, with replays from anywhere, with rows that share
// a key for a while: the topic ends as the table does. Of several rows with one
// address it is the one that changed last.
func TestClaimsInAnyOrder(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 2))
		x := newExchange(t, rng)
		unique, full := rng.IntN(2) == 0, rng.IntN(2) == 0
		table := map[int]string{} // user → address
		when := map[int]int{}
		addresses := []string{"a", "b", "c", "d", "null"}
		owner := func(email string) int {
			for u, e := range table {
				if e == email {
					return u
				}
			}
			return 0
		}
		for n := range 30 {
			user := 1 + rng.IntN(6)
			is := addresses[rng.IntN(len(addresses))]
			was := table[user]
			switch {
			case was != "" && rng.IntN(6) == 0:
				x.put(user, was, "", full)
				delete(table, user)
			case unique && is != "null" && owner(is) != 0 && owner(is) != user && was != "": // they swap, in one transaction
				other := owner(is)
				x.put(user, was, is, full)
				x.put(other, is, was, full)
				table[user], table[other], when[user], when[other] = is, was, n*2, n*2+1
			case unique && is != "null" && owner(is) != 0 && owner(is) != user:
			default:
				x.put(user, was, is, full)
				table[user], when[user] = is, n*2
			}
			for range rng.IntN(4) {
				x.step()
			}
			if rng.IntN(15) == 0 {
				x.replay()
			}
		}
		for x.step() {
		}
		want := map[string]string{}
		last := map[string]int{}
		for u, e := range table {
			if at, is := last[e]; e != "null" && (!is || when[u] > at) {
				want[e], last[e] = fmt.Sprint(u), when[u]
			}
		}
		x.check(want, fmt.Sprintf("seed %d, unique %v, full %v", seed, unique, full))
		if t.Failed() {
			return
		}
	}
}

// Rules that fill one topic, of which each row fulfils one: the record stays when
// a row goes from one rule to the other, and is never deleted after it was given.
func TestClaimsOfComplementaryRules(t *testing.T) {
	one, other := contactRule(), contactRule()
	one.Where, other.Where = "row.email != null && row.user_id < 100", "row.email != null && row.user_id >= 100"
	s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{other, one}}, contactContract(t), nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	trial, err := mapping.NewTrial(s, contactContract(t))
	if err != nil {
		t.Fatal(err)
	}
	b := change.Get()
	row := b.Row(2)
	row[0], row[1] = change.IntValue(7), b.SpanString(change.String, "a")
	b.Append(contacts, change.Create).New = row
	out, rejected, err := trial.Apply(t.Context(), b)
	if err != nil || len(rejected) > 0 {
		t.Fatal(err, rejected)
	}
	defer out.Release()
	if out.Len() != 1 || out.Changes[0].Op == change.Delete {
		t.Errorf("%d changes, the first is %c", out.Len(), out.Changes[0].Op)
	}
}

// Rules that begin to claim keys in the midst of a topic do not know who has which;
// read from its start they do, also where that is not the first record ever.
func TestClaimsBeginAtTheStart(t *testing.T) { // Remedy: TW-MAP-CLAIMS-UNSEEN
	s := contactStage(t)
	table := s.Remember(nil, slog.New(slog.DiscardHandler))
	mapping.StartsAt(s, 500)
	table.Open(&change.Topic{Name: "state", Partitions: 1}, 0)
	if _, _, err := table.Own(t.Context(), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	raw := &change.Topic{Name: contacts.Topic, ID: [16]byte{1}, Partitions: 1}
	apply := func(offset int64) error {
		b := change.Get()
		row := b.Row(2)
		row[0], row[1] = change.IntValue(7), b.SpanString(change.String, "a")
		c := b.Append(contacts, change.Create)
		c.New, c.Coord = row, change.Coord{Topic: raw, Offset: offset}
		b.Ranges = append(b.Ranges, change.Range{Topic: raw, From: offset, To: offset + 1})
		return s.Apply(t.Context(), b, &outlet{})
	}
	if err := apply(700); !problem.Has(err, mapping.ErrUnseen) || !strings.Contains(problem.Format(err), "starts at offset 500") {
		t.Fatal(problem.Format(err))
	}
	for _, at := range []int64{500, 501, 700} {
		if err := apply(at); err != nil {
			t.Error(problem.Format(err))
		}
	}
}

// What is wrong with claims is told with the place.
func TestMistakesOfClaims(t *testing.T) {
	plain := contactRule()
	plain.From, plain.Claims = "crm.public.contact", false
	_, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{contactRule(), plain}}, contactContract(t), nil)
	if all := problem.Format(err); !problem.Has(err, mapping.ErrConfig) || !strings.Contains(all, "transforms.canonical.topics[1].claims") || !strings.Contains(all, "claims: true with both") {
		t.Error(all)
	}
	// A table without a key: nobody could claim.
	keyless := *contacts
	keyless.Key = nil
	b := change.Get()
	row := b.Row(2)
	row[0] = change.IntValue(7)
	b.Append(keyless.Index(), change.Create).New = row
	err = contactStage(t).Apply(t.Context(), b, &outlet{})
	if all := problem.Format(err); !problem.Has(err, mapping.ErrKey) || !strings.Contains(all, "Give public.contact a primary key.") {
		t.Error(all)
	}
	// A switch to rules without claims would leave them to nobody.
	bare := contactRule()
	bare.Claims = false
	bare.Key = theText("{email}/{user_id}")
	now, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{bare}}, contactContract(t), nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	if _, err := mapping.NewEnds(now, contactStage(t), contactContract(t)); !problem.Has(err, mapping.ErrConfig) || !strings.Contains(problem.Format(err), "a topic with another name") {
		t.Error(problem.Format(err))
	}
}

// A truncate does not say what each row gave; rows that are deleted do. The case waits
// for somebody, and nothing else for it.
func TestTruncateOfClaims(t *testing.T) { // Remedy: TW-MAP-TRUNCATE, TW-MAP-SWEEP
	x := newExchange(t, rand.New(rand.NewPCG(1, 1)))
	x.put(1, "", "a", false)
	x.put(2, "", "b", false)
	for x.step() {
	}
	for op, want := range map[change.Op]problem.Code{change.Truncate: mapping.ErrTruncate, change.Sweep: mapping.ErrSweep} {
		b, o := change.Get(), &outlet{}
		b.Append(contacts, op).Coord = change.Coord{Topic: x.raw}
		if err := x.stage.Apply(t.Context(), b, o); err != nil || len(o.rejected) != 1 || !problem.Has(o.rejected[0], want) || len(o.got) > 0 {
			t.Error(err, o.rejected, o.got)
		}
	}
	x.put(1, "a", "", false)
	x.put(2, "b", "", false)
	for x.step() {
	}
	x.check(map[string]string{}, "after the deletes")
}

func TestSuiteOfClaims(t *testing.T) {
	rdb := miniRedis(t)
	s := contactStage(t)
	var table *state.Table
	queue := avro.Claims("canonical").Table
	// A claim of one of two rows, or the end of one.
	feed := func(fill func(f *pipelinetest.Feed, b *change.Batch, put func(key, claimant, version int, gone bool))) *change.Batch {
		f, b := pipelinetest.FeedOf(queue), change.Get()
		s := contactStage(t)
		s.Remember(nil, slog.New(slog.DiscardHandler))
		fill(f, b, func(key, claimant, version int, gone bool) {
			c := f.Put(b, key, version)
			row := c.New
			row[0], row[1] = b.SpanString(change.String, "firm.contact"), b.SpanString(change.String, pipelinetest.KeyOf(key))
			row[2], row[3] = b.SpanString(change.String, fmt.Sprint(claimant)), change.BoolValue(gone)
			row[4] = b.Span(change.Bytes, mapping.NamedRow(b, s, pipelinetest.KeyOf(key), fmt.Sprintf("%d version %d", claimant, version)))
			c.Pos = change.Pos{System: 1, Timeline: 1, LSN: uint64(f.Next), Kind: change.PosCommit, Ordinal: 1}
		})
		return f.Close(b, 0)
	}
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New: func(tb testing.TB) pipeline.Stage {
			if err := rdb.FlushAll(tb.Context()).Err(); err != nil {
				tb.Fatal(err)
			}
			var c *mapping.Claims
			c, table = s.Claims(rdb, slog.New(slog.DiscardHandler))
			return c
		},
		State: func(testing.TB) *state.Table { return table },
		Wipe: func(tb testing.TB) {
			if err := rdb.FlushAll(tb.Context()).Err(); err != nil {
				tb.Fatal(err)
			}
		},
		Input: func(testing.TB) *change.Batch {
			return feed(func(_ *pipelinetest.Feed, _ *change.Batch, put func(key, claimant, version int, gone bool)) {
				for v := 1; v < 4; v++ {
					for k := range 3 {
						put(k, v%2, v, false)
						put(k, 1, v, v == 2)
					}
				}
				put(0, 1, 9, true)
				put(0, 0, 9, true)
			})
		},
		Bad: func(testing.TB) *change.Batch { // Remedy: TW-MAP-CLAIM
			return feed(func(f *pipelinetest.Feed, b *change.Batch, put func(key, claimant, version int, gone bool)) {
				put(1, 1, 1, false)
				f.Delete(b, 2)
				put(3, 1, 1, false)
				b.Changes[b.Len()-1].New[4] = b.Span(change.Bytes, []byte{200, 1, 2}) // no row
				put(4, 1, 1, false)
			})
		},
		Rejects: 2,
	})
}
