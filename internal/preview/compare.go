// Compare: the records of the keys that a window touches, old beside
// new, within a bound of memory.

package preview

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/rules"
)

// sides is a canonical key, with its record by the old rules and by the new.
type sides struct{ old, new madeRecord }

// madeRecord is the last that was made for a key.
type madeRecord struct {
	made      bool   // false: nothing was
	fields    []byte // appendFields; nil: a delete
	row       uint64 // the row that it was made of
	raw       string // the topic of that
	millis    int64  // of its raw record
	partition int32
}

// overhead is about what a key takes beside its text and its records: a
// sides, and its share of the map.
const overhead = 272

// keep makes r the record of a key, unless a later one is there: of one partition
// the later offset, of several the later time.
func (p *Preview) keep(topic, key string, r madeRecord, old bool) {
	if p.keys[topic] == nil {
		p.keys[topic] = map[string]*sides{}
	}
	k := p.keys[topic][key]
	if k == nil {
		if xxhash.Sum64String(key)%p.sampled != 0 {
			return
		}
		k = &sides{}
		p.keys[topic][key] = k
		p.used += overhead + len(key)
	}
	at := &k.new
	if old {
		at = &k.old
	}
	if at.made && at.partition != r.partition && at.millis > r.millis {
		return
	}
	p.used += len(r.fields) - len(at.fields)
	*at = r
}

// truncate deletes what was made of rows of a partition of a raw topic.
func (p *Preview) truncate(topic string, m *rawMeta, old bool) {
	for _, k := range p.keys[topic] {
		at := &k.new
		if old {
			at = &k.old
		}
		if at.made && at.raw == m.topic && at.partition == m.partition {
			p.used -= len(at.fields)
			at.fields = nil
		}
	}
}

// thin drops every second key while they take more than they may.
func (p *Preview) thin() {
	for p.used > p.Memory {
		p.sampled *= 2
		for _, keys := range p.keys {
			for key, k := range keys {
				if xxhash.Sum64String(key)%p.sampled != 0 {
					p.used -= overhead + len(key) + len(k.old.fields) + len(k.new.fields)
					delete(keys, key)
				}
			}
		}
	}
}

// appendFields are the texts of a record's fields in the order of a contract, each
// after its length; a null has the length 0, others one more than they are long.
func appendFields(b *change.Batch, to *change.Table, c *change.Change) []byte {
	var out []byte
	for i := range to.Columns {
		var text *string
		at := i
		if c.Table != to { // another version of the contract
			at = c.Table.Column(to.Columns[i].Name)
		}
		if at >= 0 {
			text = rules.Text(b, &to.Columns[i], c.New[at])
		}
		if text == nil {
			out = append(out, 0)
			continue
		}
		out = append(binary.AppendUvarint(out, uint64(len(*text))+1), *text...)
	}
	return out
}

// fieldTexts undoes appendFields.
func fieldTexts(p []byte) (out []*string) {
	for len(p) > 0 {
		n, size := binary.Uvarint(p)
		p = p[size:]
		if n == 0 {
			out = append(out, nil)
			continue
		}
		text := string(p[:n-1])
		out, p = append(out, &text), p[n-1:]
	}
	return out
}

// examples are how many keys are named.
const examples = 3

// compare counts and shows.
func (p *Preview) compare(res *Result) {
	res.Sampled = int(p.sampled)
	res.Rejected = p.Now.rejected.list()
	if p.Before != nil {
		res.Before = p.Before.rejected.list()
	}
	res.Differs = len(res.Rejected) > 0
	for _, topic := range slices.Sorted(maps.Keys(p.keys)) {
		out := p.compareTopic(res, topic)
		res.Differs = res.Differs || out.Changed+out.New+out.Gone > 0
		res.Topics = append(res.Topics, out)
	}
}

func (p *Preview) compareTopic(res *Result, topic string) Topic {
	side := p.Now
	if side.rules.Contracts[topic] == nil || !slices.Contains(side.stage.To(), topic) {
		side = p.Before // only the old rules fill it
	}
	contract := side.rules.Contracts[topic]
	out := Topic{Topic: topic, Missing: p.Before == nil && p.missing[topic]}
	fields := make([]Field, len(contract.Fields))
	keyShown := true
	for _, k := range contract.Table.Key {
		keyShown = keyShown && shown(contract.Fields[k])
	}
	for _, key := range slices.Sorted(maps.Keys(p.keys[topic])) {
		k := p.keys[topic][key]
		if p.stays(k) {
			res.Skipped++
			continue
		}
		if key = strings.ReplaceAll(key, "\x1f", "|"); !keyShown {
			key = "(not shown)"
		}
		out.Keys++
		switch {
		case string(k.old.fields) == string(k.new.fields):
			out.Equal++
		case k.old.fields == nil:
			if out.New++; len(out.NewKeys) < examples {
				out.NewKeys = append(out.NewKeys, key)
			}
		case k.new.fields == nil:
			if out.Gone++; len(out.Lost) < examples {
				out.Lost = append(out.Lost, key)
			}
		default:
			out.Changed++
			differing(fields, contract, key, k)
		}
	}
	for _, f := range fields {
		if f.Keys > 0 {
			out.Fields = append(out.Fields, f)
		}
	}
	return out
}

// stays: the last version of the row that a record was made of is rejected, so
// that the record is not the last word.
func (p *Preview) stays(k *sides) bool {
	_, bad := p.Now.rejected.rows[k.new.row]
	bad = bad && k.new.made
	if p.Before != nil && k.old.made {
		_, was := p.Before.rejected.rows[k.old.row]
		bad = bad || was
		if !k.new.made { // the new rules made nothing of the row at all
			_, was = p.Now.rejected.rows[k.old.row]
			bad = bad || was
		}
	}
	return bad
}

func shown(f avro.Field) bool {
	return f.Sensitivity == avro.Public || f.Sensitivity == avro.Internal
}

// differing counts the fields in which the records of a key differ.
func differing(fields []Field, contract *avro.Contract, key string, k *sides) {
	was, is := fieldTexts(k.old.fields), fieldTexts(k.new.fields)
	for i := range fields {
		var old *string // of a contract that did not have the field
		if i < len(was) {
			old = was[i]
		}
		if (old == nil) == (is[i] == nil) && (old == nil || *old == *is[i]) {
			continue
		}
		f := &fields[i]
		f.Field, f.Hidden = contract.Fields[i].Name, !shown(contract.Fields[i])
		if f.Keys++; len(f.Examples) >= examples {
			continue
		}
		x := Example{Key: key}
		if !f.Hidden {
			x.Old, x.New = old, is[i]
		}
		f.Examples = append(f.Examples, x)
	}
}
