// ledger.go: the ERP's ledger against the PSA: every customer, employee and
// project, and each approved time entry from go-live on, exactly once.

package demo

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/demo/erp"
)

// ledgerSet is what the PSA says that one set of the ERP must hold.
type ledgerSet struct {
	set, key string // the set, and the property that identifies a record
	topic    string // of which a parked record explains that it is missing
	id       string // the column of sql that is the canonical key
	sql      string // columns are named like the ERP's properties; the first is the canonical key
}

// The queries say in SQL over the PSA what the sink says in Go over canonical
// records, so that one checks the other.
var ledgerSets = []ledgerSet{
	{"customers", "number", "ps.customer", "id", `
select id::text, upper(btrim(number)) as number, name as "displayName", upper(coalesce(country,'')) as country, coalesce(tax_id,'') as "taxRegistrationNumber",
  coalesce(email,'') as email, case when active then '_x0020_' else 'All' end as blocked from customer where $1::date is not null`},
	{"employees", "number", "ps.resource", "id", `
select id::text, upper(btrim(number)) as number, first_name as "givenName", last_name as surname, coalesce(title,'') as "jobTitle", coalesce(email,'') as email,
  coalesce(hired_on::text,'') as "employmentDate", coalesce(left_on::text,'') as "terminationDate",
  case when active then 'Active' else 'Inactive' end as status from employee where $1::date is not null`},
	{"projects", "number", "ps.project", "id", `
select p.id::text, upper(btrim(p.number)) as number, p.name as "displayName", upper(btrim(c.number)) as "customerNumber"
  from project p join customer c on c.id = p.customer_id where $1::date is not null`},
	{"timeRegistrationEntries", "externalReference", "ps.time_entry", "id", `
select t.id::text, 'ps.time_entry/' || t.id as "externalReference", upper(btrim(e.number)) as "employeeNumber", upper(btrim(p.number)) as "jobNumber",
  upper(btrim(c.number)) as "customerNumber", upper(btrim(t.task_number)) as "jobTaskNumber", t.work_date::text as date, trim_scale(t.hours)::text as quantity, 'Approved' as status
  from time_entry t join employee e on e.id = t.employee_id join project p on p.id = t.project_id join customer c on c.id = p.customer_id
 where t.status = 'approved' and t.work_date >= $1::date`},
}

// wantedRecord is one record that the ledger must hold.
type wantedRecord struct {
	id    string
	props map[string]string
}

func readWanted(ctx context.Context, tx pgx.Tx, s ledgerSet, goLive time.Time) (map[string]wantedRecord, error) {
	rows, err := tx.Query(ctx, s.sql, goLive)
	if err != nil {
		return nil, fmt.Errorf("reading what the ERP's %s should be: %w", s.set, err)
	}
	out := map[string]wantedRecord{}
	for rows.Next() {
		vals, err := rows.Values()
		if err != nil {
			return nil, fmt.Errorf("reading what the ERP's %s should be: %w", s.set, err)
		}
		w := wantedRecord{props: map[string]string{}}
		for i, f := range rows.FieldDescriptions() {
			text, ok := vals[i].(string)
			if !ok {
				return nil, fmt.Errorf("BUG: column %s of %s is no text", f.Name, s.set)
			}
			if i == 0 {
				w.id = text
				continue
			}
			w.props[f.Name] = text
		}
		out[w.props[s.key]] = w
	}
	return out, rows.Err()
}

// compareLedger gives the differences of one set, and how many records of the
// ledger were compared. Of parked, by topic and key, it says "parked" instead.
func compareLedger(s ledgerSet, want map[string]wantedRecord, have []erp.Record, parked map[[2]string]bool) (compared, held int64, diffs []Difference) {
	seen := map[string]int{}
	for i := range have {
		r := &have[i]
		k := r.Fields[s.key]
		compared++
		seen[k]++
		diff := func(format string, args ...any) {
			diffs = append(diffs, Difference{Where: "erp." + s.set, Key: k, What: fmt.Sprintf(format, args...)})
		}
		w, ok := want[k]
		switch {
		case seen[k] > 1:
			diff("stands %d times in the ledger", seen[k])
			continue
		case !ok:
			diff("stands in the ledger, and the PSA has no such record to post")
			continue
		case parked[[2]string{s.topic, w.id}]:
			held++
			continue // its newest version waits for a person
		}
		names := make([]string, 0, len(w.props))
		for n := range w.props {
			names = append(names, n)
		}
		sort.Strings(names)
		for _, n := range names {
			if got := r.Fields[n]; got != w.props[n] && (n != "quantity" || trimZeros(got) != trimZeros(w.props[n])) {
				diff("%s is %q, the PSA says %q", n, got, w.props[n])
			}
		}
	}
	keys := make([]string, 0, len(want))
	for k := range want {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if seen[k] > 0 {
			continue
		}
		if parked[[2]string{s.topic, want[k].id}] {
			held++
			continue
		}
		diffs = append(diffs, Difference{Where: "erp." + s.set, Key: k, What: "is missing from the ledger"})
	}
	return compared, held, diffs
}

func trimZeros(s string) string {
	if !strings.Contains(s, ".") {
		return s
	}
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}
