// Result: what a preview found.

package preview

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tallywire/tallywire/internal/problem"
)

// Result is what a preview found.
type Result struct {
	Transform string     `json:"transform"`
	With      string     `json:"with,omitempty"`
	Against   string     `json:"against"`
	Since     time.Time  `json:"since"`
	Differs   bool       `json:"differs"`
	Sampled   int        `json:"sampled"` // one of so many keys was compared; 1: all
	Raw       []Raw      `json:"raw"`
	Topics    []Topic    `json:"topics"`
	Rejected  []Rejected `json:"rejected"`
	Before    []Rejected `json:"rejected_before,omitempty"` // by the rules of --with
	Skipped   int        `json:"skipped"`                   // keys whose last row is rejected: their records stay as they are
}

// Raw is a raw topic that was read.
type Raw struct {
	Topic   string `json:"topic"`
	Missing bool   `json:"missing,omitempty"`
	Records int64  `json:"records"`
	Unread  int64  `json:"unread,omitempty"` // offsets that the running transform has not read, left out here too
}

// Topic is a canonical topic.
type Topic struct {
	Topic   string   `json:"topic"`
	Missing bool     `json:"missing,omitempty"` // it does not exist yet
	Keys    int      `json:"keys"`
	Equal   int      `json:"equal"`
	Changed int      `json:"changed"`
	New     int      `json:"new"`
	Gone    int      `json:"gone"`
	Fields  []Field  `json:"fields,omitempty"`
	NewKeys []string `json:"new_keys,omitempty"`
	Lost    []string `json:"gone_keys,omitempty"`
}

// Field is a field that differs, in so many keys.
type Field struct {
	Field    string    `json:"field"`
	Keys     int       `json:"keys"`
	Hidden   bool      `json:"hidden,omitempty"` // its values may not be shown
	Examples []Example `json:"examples"`
}

type Example struct {
	Key string  `json:"key"`
	Old *string `json:"old"`
	New *string `json:"new"`
}

// Rejected are rows that are rejected.
type Rejected struct {
	Code    string `json:"code"`
	Rows    int    `json:"rows"`
	Example string `json:"example"`
	At      string `json:"at"` // of the example: topic, partition, offset
}

// rejections counts rows that are rejected, by code.
type rejections struct {
	rows  map[uint64]string // code of the rows whose last version is rejected, by hash of topic and key
	first map[string]Rejected
	loose map[string]int // rows without a key
}

// maxRejected bounds the rows that are remembered; others are only counted.
const maxRejected = 1 << 20

func newRejections() *rejections {
	return &rejections{rows: map[uint64]string{}, first: map[string]Rejected{}, loose: map[string]int{}}
}

func (r *rejections) add(m *rawMeta, err error) {
	code, text := "", err.Error()
	var e *problem.Error
	if errors.As(err, &e) {
		code, text = e.ID, e.Text
	}
	if _, seen := r.first[code]; !seen {
		r.first[code] = Rejected{Code: code, Example: text, At: fmt.Sprintf("%s, partition %d, offset %d", m.topic, m.partition, m.offset)}
	}
	_, known := r.rows[m.row]
	if m.keyed && (known || len(r.rows) < maxRejected) {
		r.rows[m.row] = code
	} else {
		r.loose[code]++
	}
}

// list gives what is left rejected, the most first.
func (r *rejections) list() []Rejected {
	out := []Rejected{}
	for code, bad := range r.first {
		bad.Rows = r.loose[code]
		for _, c := range r.rows {
			if c == code {
				bad.Rows++
			}
		}
		if bad.Rows > 0 {
			out = append(out, bad)
		}
	}
	slices.SortFunc(out, func(a, b Rejected) int {
		if a.Rows != b.Rows {
			return b.Rows - a.Rows
		}
		return strings.Compare(a.Code, b.Code)
	})
	return out
}
