// Pages: which fields an object has on the standard and on the custom page,
// and what Business Central would check before it commits.

package erp

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

type fieldKind uint8

const (
	text    fieldKind = iota
	code              // text in upper case without surrounding blanks
	date              // 2006-01-02; 0001-01-01 when empty
	decimal           // a JSON number
	guid              // all noughts when empty
)

type field struct {
	name     string
	kind     fieldKind
	max      int // characters; 0: not limited
	readonly bool
	required bool
	custom   bool     // only on the custom page
	enum     []string // the first is the default
}

type set struct {
	name   string
	entity string // its type in messages
	table  string // its table in messages
	fields []field
}

var blocked = []string{"_x0020_", "Ship", "Invoice", "All"}

var sets = map[string]*set{
	"customers": {"customers", "customer", "Customer", []field{
		{name: "number", kind: code, max: 20, required: true},
		{name: "displayName", max: 100, required: true},
		{name: "type", enum: []string{"Company", "Person"}},
		{name: "country", kind: code, max: 10},
		{name: "email", max: 80},
		{name: "taxRegistrationNumber", max: 20},
		{name: "blocked", enum: blocked},
	}},
	"employees": {"employees", "employee", "Employee", []field{
		{name: "number", kind: code, max: 20, required: true},
		{name: "displayName", max: 100, readonly: true},
		{name: "givenName", max: 30, required: true},
		{name: "surname", max: 30},
		{name: "jobTitle", max: 30},
		{name: "email", max: 80},
		{name: "employmentDate", kind: date},
		{name: "terminationDate", kind: date},
		{name: "status", enum: []string{"Active", "Inactive", "Terminated"}},
	}},
	"projects": {"projects", "project", "Job", []field{
		{name: "number", kind: code, max: 20, required: true},
		{name: "displayName", max: 100, required: true},
		{name: "customerId", kind: guid, custom: true},
		{name: "customerNumber", kind: code, max: 20, custom: true},
		{name: "blocked", enum: []string{"_x0020_", "Posting", "All"}, custom: true},
	}},
	"timeRegistrationEntries": {"timeRegistrationEntries", "timeRegistrationEntry", "Time Sheet Detail", []field{
		{name: "employeeId", kind: guid},
		{name: "employeeNumber", kind: code, max: 20},
		{name: "jobId", kind: guid},
		{name: "jobNumber", kind: code, max: 20},
		{name: "jobTaskNumber", kind: code, max: 20},
		{name: "date", kind: date, required: true},
		{name: "quantity", kind: decimal, required: true},
		{name: "status", enum: []string{"Open", "Submitted", "Rejected", "Approved"}},
		{name: "externalReference", max: 100, custom: true},
		{name: "customerNumber", kind: code, max: 20, readonly: true, custom: true},
	}},
}

func (s *set) field(name string, custom bool) *field {
	for i := range s.fields {
		if f := &s.fields[i]; f.name == name && (custom || !f.custom) {
			return f
		}
	}
	return nil
}

// apiError is Business Central's error body and its status.
type apiError struct {
	status int
	Code   string
	Text   string
}

func (e *apiError) Error() string { return e.Code + ": " + e.Text }

func bad(code, format string, args ...any) *apiError {
	return &apiError{400, code, fmt.Sprintf(format, args...)}
}

// parseValue reads one JSON value as the text that the ledger keeps.
func (s *set) parseValue(f *field, raw json.RawMessage) (string, *apiError) {
	wrong := func() *apiError {
		return bad("BadRequest", "Cannot convert the value of property '%s' to its type.", f.name)
	}
	if string(raw) == "null" {
		return "", nil
	}
	if f.kind == decimal {
		var n json.Number
		if raw[0] == '"' || json.Unmarshal(raw, &n) != nil {
			return "", wrong()
		}
		d, ok := canonicalDecimal(n.String())
		if !ok {
			return "", wrong()
		}
		return d, nil
	}
	var v string
	if json.Unmarshal(raw, &v) != nil {
		return "", wrong()
	}
	switch f.kind {
	case code:
		v = strings.ToUpper(strings.TrimSpace(v))
	case date:
		if v == "" || v == "0001-01-01" {
			return "", nil
		}
		if _, err := time.Parse(time.DateOnly, v); err != nil {
			return "", wrong()
		}
	case guid:
		v = strings.ToLower(v)
		if v == "" || v == zeroGUID {
			return "", nil
		}
		if len(v) != 36 {
			return "", wrong()
		}
	}
	if f.max > 0 && len([]rune(v)) > f.max {
		return "", bad("Application_StringExceededLength", "The length of the string is %d, but it must be less than or equal to %d characters. Value: %s", len([]rune(v)), f.max, v)
	}
	if f.enum != nil {
		if v == " " || v == "" {
			return f.enum[0], nil
		}
		if !slices.Contains(f.enum, v) {
			return "", bad("BadRequest", "The value '%s' is not a member of the enumeration of property '%s'.", v, f.name)
		}
	}
	return v, nil
}

const zeroGUID = "00000000-0000-0000-0000-000000000000"

// canonicalDecimal is the shortest exact decimal text.
func canonicalDecimal(s string) (string, bool) {
	if len(s) > 40 || strings.ContainsAny(s, "eE/") { // an exponent could ask for gigabytes
		return "", false
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return "", false
	}
	n, exact := r.FloatPrec()
	if !exact {
		return "", false
	}
	return r.FloatString(n), true
}

// change puts the values of a body into fields. Only what was sent is changed.
func (s *set) change(fields map[string]string, body map[string]json.RawMessage, custom bool) *apiError {
	for name, raw := range body {
		if strings.HasPrefix(name, "@") || name == "id" {
			continue
		}
		f := s.field(name, custom)
		if f == nil {
			return bad("BadRequest", "The property '%s' does not exist on type 'Microsoft.NAV.%s'. Make sure to only use property names that are defined by the type.", name, s.entity)
		}
		if f.readonly {
			return bad("Internal_ServerError", "Control '%s' is read-only.", name)
		}
		v, err := s.parseValue(f, raw)
		if err != nil {
			return err
		}
		fields[name] = v
	}
	return nil
}

// check validates what is about to be committed and fills in what the server
// computes. self is the record being changed, or nil for a new one.
func (s *set) check(x *index, fields, sent map[string]string, self *Record, duplicates bool) *apiError {
	for i := range s.fields {
		f := &s.fields[i]
		if fields[f.name] == "" && f.enum != nil {
			fields[f.name] = f.enum[0]
		}
		if f.required && fields[f.name] == "" {
			return bad("Application_FieldValidationException", "%s must have a value in %s. It cannot be zero or empty.", f.name, s.table)
		}
	}
	for _, name := range indexed[s.name] {
		if name == "externalReference" && duplicates {
			continue
		}
		for _, other := range x.find(s.name, name, fields[name]) {
			if self == nil || other.ID != self.ID {
				return bad("Internal_EntityWithSameKeyExists", "The record in table %s already exists. Identification fields and values: %s='%s'", s.table, name, fields[name])
			}
		}
	}
	switch s.name {
	case "employees":
		fields["displayName"] = strings.TrimSpace(fields["givenName"] + " " + fields["surname"])
	case "projects":
		_, err := s.relate(x, fields, sent, "customers", "Customer", "customerId", "customerNumber")
		return err
	case "timeRegistrationEntries":
		if fields["employeeId"] == "" && fields["employeeNumber"] == "" {
			return bad("Application_FieldValidationException", "Employee No. must have a value in %s. It cannot be zero or empty.", s.table)
		}
		if _, err := s.relate(x, fields, sent, "employees", "Employee", "employeeId", "employeeNumber"); err != nil {
			return err
		}
		job, err := s.relate(x, fields, sent, "projects", "Job", "jobId", "jobNumber")
		if err != nil {
			return err
		}
		if job != nil {
			fields["customerNumber"] = job.Fields["customerNumber"]
		}
	}
	return nil
}

// relate finds the record that an id or number refers to, and sets both.
func (s *set) relate(x *index, fields, sent map[string]string, to, table, id, number string) (*Record, *apiError) {
	missing := func(name string) *apiError {
		return bad("Internal_InvalidTableRelation", "The field %s of table %s contains a value (%s) that cannot be found in the related table (%s).", name, s.table, fields[name], table)
	}
	_, byNumber := sent[number]
	_, byID := sent[id]
	switch {
	case fields[id] != "" && (byID || !byNumber):
		r := x.byID[to+"/"+fields[id]]
		if r == nil {
			return nil, missing(id)
		}
		if byNumber && byID && fields[number] != "" && fields[number] != r.Fields["number"] {
			return nil, bad("BadRequest", "The values of %s and %s do not belong together.", id, number)
		}
		fields[number] = r.Fields["number"]
		return r, nil
	case fields[number] != "":
		rs := x.find(to, "number", fields[number])
		if len(rs) == 0 {
			return nil, missing(number)
		}
		fields[id] = rs[0].ID
		return rs[0], nil
	}
	fields[id], fields[number] = "", ""
	return nil, nil
}

// body renders a record as its page shows it.
func (s *set) body(r *Record, custom bool) map[string]any {
	out := map[string]any{"@odata.etag": r.ETag(), "id": r.ID, "lastModifiedDateTime": r.Modified.UTC().Format(time.RFC3339Nano)}
	for i := range s.fields {
		f := &s.fields[i]
		if f.custom && !custom {
			continue
		}
		v := r.Fields[f.name]
		switch f.kind {
		case decimal:
			out[f.name] = json.Number(orElse(v, "0"))
		case date:
			out[f.name] = orElse(v, "0001-01-01")
		case guid:
			out[f.name] = orElse(v, zeroGUID)
		default:
			out[f.name] = v
		}
	}
	return out
}

func orElse(v, empty string) string {
	if v == "" {
		return empty
	}
	return v
}
