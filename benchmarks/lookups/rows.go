// Rows: what is in the canonical topics, and what each entry must cost.

package main

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
)

const (
	partitions = 4
	projects   = 500
	customers  = 100
	employees  = 300
	intervals  = 4 // of rates, for each employee: the quarters of a year
	fanEntries = 100_000
)

// The year, as days since 1970, and the length of an interval.
var (
	yearBegins = change.Days(2026, 1, 1)
	quarter    = int64(91)
)

// data is what one section writes. The entry of index 0 is sent ahead, to find
// out that a contender is ready.
type data struct {
	right   []*kgo.Record
	entries []*kgo.Record
	changed *kgo.Record // the rate of the section fan
	costs   []int64     // by entry; ten digits after the point
	after   []int64     // once the rate has changed
	touched int         // entries whose cost that changes
	live    []liveEntry // none of those
	head    int32       // the schema of the keys
}

// rate of an employee's interval, four digits after the point.
func rate(employee, interval int) int64 { return int64(400_000 + employee*1_700 + interval*25_000) }

func entryKey(i int) string { return fmt.Sprintf("te-%07d", i) }

// newData makes the rows; skewed ones give one rate of employee 0 to many
// entries.
func newData(ctx context.Context, reg *avro.Registry, entries int, skewed bool) (*data, error) {
	pack, err := avro.Pack()
	if err != nil {
		return nil, err
	}
	d := &data{}
	enc := map[string]*encoder{}
	for _, topic := range rightTopics {
		if enc[topic], err = newEncoder(ctx, reg, pack[topic]); err != nil {
			return nil, err
		}
	}
	entry, err := newEncoder(ctx, reg, pack[leftTopic])
	if err != nil {
		return nil, err
	}
	if d.head, _, err = reg.RegisterContract(ctx, pack[leftTopic]); err != nil {
		return nil, err
	}
	right := func(topic string, f fields) error {
		r, err := enc[topic].record(f)
		d.right = append(d.right, r)
		return err
	}
	for i := range customers {
		if err := right("ps.customer", fields{
			"customer_id": fmt.Sprintf("c-%03d", i), "number": fmt.Sprintf("K%05d", 10_000+i), "name": fmt.Sprintf("Customer %d and Sons", i),
			"legal_entity": "DE01", "country": "DE", "active": true,
		}); err != nil {
			return nil, err
		}
	}
	for i := range projects {
		if err := right("ps.project", fields{
			"project_id": fmt.Sprintf("p-%03d", i), "number": fmt.Sprintf("P%05d", 20_000+i), "name": fmt.Sprintf("Project number %d", i),
			"customer_id": fmt.Sprintf("c-%03d", i%customers), "legal_entity": "DE01", "currency": "EUR", "status": "active", "billing_type": "time",
		}); err != nil {
			return nil, err
		}
	}
	costRate := func(employee, interval int, amount int64) fields {
		resource := fmt.Sprintf("r-%03d", employee)
		from := yearBegins + int64(interval)*quarter
		f := fields{
			"cost_rate_id": fmt.Sprintf("%s/%d", resource, interval), "resource_id": resource, "valid_from": change.DateValue(from),
			"rate": change.DecimalValue(amount, 4), "currency": "EUR",
		}
		if interval < intervals-1 {
			f["valid_to"] = change.DateValue(from + quarter)
		}
		return f
	}
	for e := range employees {
		for i := range intervals {
			if err := right("ps.cost_rate", costRate(e, i, rate(e, i))); err != nil {
				return nil, err
			}
		}
	}
	const hit = 1 // the interval of employee 0 that changes
	raised := rate(0, hit) + 12_500
	if d.changed, err = enc["ps.cost_rate"].record(costRate(0, hit, raised)); err != nil {
		return nil, err
	}
	many := 0
	if skewed {
		many = min(fanEntries, entries/3)
	}
	for i := range entries + 1 {
		// Without common divisors, so that all combinations occur.
		employee, day := 1+i%(employees-1), int64(i*7%360)
		if i%3 == 1 && d.touched < many {
			employee, day = 0, hit*quarter+int64(i%int(quarter))
			d.touched++
		}
		interval := int(min(day/quarter, intervals-1))
		hours := int64(250_000 * (1 + i%32)) // quarters of an hour
		row := fields{
			"time_entry_id": entryKey(i), "resource_id": fmt.Sprintf("r-%03d", employee), "project_id": fmt.Sprintf("p-%03d", i*13%projects),
			"task_number": fmt.Sprint(i % 90), "work_date": change.DateValue(yearBegins + day), "hours": change.DecimalValue(hours, 6), "billable": i%5 != 0,
			"status": "approved", "note": "workshop and minutes",
		}
		r, err := entry.record(row)
		if err != nil {
			return nil, err
		}
		d.entries = append(d.entries, r)
		if skewed && i > 0 && employee != 0 && len(d.live) < liveMost {
			longer := hours + 250_000
			row["hours"] = change.DecimalValue(longer, 6)
			if r, err = entry.record(row); err != nil {
				return nil, err
			}
			d.live = append(d.live, liveEntry{r, i, longer * rate(employee, interval)})
		}
		cost := hours * rate(employee, interval)
		d.costs = append(d.costs, cost)
		if employee == 0 {
			cost = hours * raised
		}
		d.after = append(d.after, cost)
	}
	return d, nil
}

// fields of a record by name: string, bool or change.Value; updated_at is
// filled in, and what is missing is null.
type fields map[string]any

// encoder makes the records of a contract.
type encoder struct {
	table *change.Table
	enc   *avro.Encoder
	batch *change.Batch
	text  []byte
}

func newEncoder(ctx context.Context, reg *avro.Registry, c *avro.Contract) (*encoder, error) {
	enc, err := avro.NewEncoder(ctx, reg, c.Table)
	return &encoder{table: c.Table, enc: enc, batch: change.Get()}, err
}

func (e *encoder) record(f fields) (*kgo.Record, error) {
	b := e.batch
	b.Reset()
	row := b.Row(len(e.table.Columns))
	for i := range e.table.Columns {
		name := e.table.Columns[i].Name
		if name == "updated_at" {
			row[i] = change.TimestampTZValue(1_767_225_600_000_000)
		}
		switch v := f[name].(type) {
		case string:
			row[i] = b.SpanString(change.String, v)
		case bool:
			row[i] = change.BoolValue(v)
		case change.Value:
			row[i] = v
		}
	}
	c := b.Append(e.table, change.Update)
	c.New = row
	key, err := e.enc.AppendKey(nil, b, c)
	if err != nil {
		return nil, err
	}
	value, err := e.enc.AppendValue(nil, b, c)
	if err != nil {
		return nil, fmt.Errorf("encoding a row of %s: %w", e.table.Topic, err)
	}
	e.text = change.AppendKey(e.text[:0], b, c)
	return &kgo.Record{Topic: e.table.Topic, Key: key, Value: value, Partition: kafka.Partition(e.text, partitions)}, nil
}
