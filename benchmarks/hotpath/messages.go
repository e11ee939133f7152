// Messages: the octets of pgoutput with `binary`, as Postgres sends them.

package main

import (
	"encoding/binary"
	"fmt"
)

// batchRows is the number of changes of one batch.
const batchRows = 1000

const (
	relationID = 16402
	topic      = "psa.public.time_entry"
)

// column is one of the table that is measured: a time entry, rows of about 165
// octets.
type column struct {
	name string
	oid  uint32
	mod  int32
}

func numericMod(precision, scale int32) int32 { return precision<<16 | scale + 4 }

var columns = []column{
	{"id", 20, -1},
	{"employee_id", 23, -1},
	{"project_id", 23, -1},
	{"task_id", 23, -1},
	{"work_date", 1082, -1},
	{"minutes", 23, -1},
	{"bill_rate", 1700, numericMod(12, 4)},
	{"cost_rate", 1700, numericMod(12, 4)},
	{"billable", 16, -1},
	{"status", 25, -1},
	{"note", 25, -1},
	{"created_at", 1184, -1},
	{"updated_at", 1184, -1},
}

var operations = []struct {
	name string
	op   byte
}{{"insert", 'I'}, {"update", 'U'}, {"delete", 'D'}}

func appendCell(p, data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(append(p, 'b'), uint32(len(data))), data...)
}

// money is numeric_send of n × 10^-4, n below 10^12.
func money(n int64) []byte {
	digits := []int64{n / 1_0000_0000, n / 1_0000 % 1_0000, n % 1_0000}
	weight := int16(1)
	for len(digits) > 1 && digits[0] == 0 {
		digits, weight = digits[1:], weight-1
	}
	for len(digits) > 1 && digits[len(digits)-1] == 0 {
		digits = digits[:len(digits)-1]
	}
	p := binary.BigEndian.AppendUint16(nil, uint16(len(digits)))
	p = binary.BigEndian.AppendUint16(p, uint16(weight))
	p = append(p, 0, 0, 0, 4)
	for _, d := range digits {
		p = binary.BigEndian.AppendUint16(p, uint16(d))
	}
	return p
}

// tuple is the row with an id; version tells an old row from a new one.
func tuple(p []byte, id, version int64) []byte {
	int4 := func(n int64) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }
	int8 := func(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }
	const june = 835_000_000_000_000 // µs since 2000: in June 2026
	p = binary.BigEndian.AppendUint16(p, uint16(len(columns)))
	p = appendCell(p, int8(1_000_000+id))
	p = appendCell(p, int4(id%250))
	p = appendCell(p, int4(id%150))
	p = appendCell(p, int4(id%600))
	p = appendCell(p, int4(9_600+id%60))
	p = appendCell(p, int4(15*(1+id%40)))
	p = appendCell(p, money(1_450_000+2_500*(id%80)))
	p = appendCell(p, money(612_500+1_234*(id%90)))
	p = appendCell(p, []byte{byte(id & 1)})
	p = appendCell(p, []byte([]string{"draft", "submitted", "approved"}[(id+version)%3]))
	p = appendCell(p, fmt.Appendf(nil, "Workshop %d with the customer: requirements, open points, next steps", id%97))
	p = appendCell(p, int8(june+id*61_000_003))
	return appendCell(p, int8(june+id*61_000_003+version*3_600_000_001))
}

// messages are batchRows messages of one operation; updates and deletes have
// the full old row.
func messages(op byte) [][]byte {
	out := make([][]byte, batchRows)
	for i := range out {
		id := int64(i)
		p := binary.BigEndian.AppendUint32([]byte{op}, relationID)
		switch op {
		case 'I':
			p = tuple(append(p, 'N'), id, 0)
		case 'U':
			p = tuple(append(p, 'O'), id, 0)
			p = tuple(append(p, 'N'), id, 1)
		case 'D':
			p = tuple(append(p, 'O'), id, 0)
		}
		out[i] = p
	}
	return out
}
