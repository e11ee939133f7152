// The Business Central profile: which page each entity goes to, what it says
// there, and how what is read back is compared with it.

package rest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"math/big"
	"net/url"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/change"
)

// Topics that the sink takes, in the order of dependency.
const (
	topicCustomer = "ps.customer"
	topicResource = "ps.resource"
	topicProject  = "ps.project"
	topicTime     = "ps.time_entry"
)

// Topics lists what the sink reads.
func Topics() []string { return []string{topicCustomer, topicResource, topicProject, topicTime} }

// property is one property of an object, its value as normal text: codes in
// upper case, decimals without trailing zeros, dates as 2006-01-02, "" for
// what is empty.
type property struct{ name, value string }

type propertyKind uint8

const (
	text     propertyKind = iota
	code                  // Code[n] in AL: upper case, no blanks around
	date                  // 0001-01-01 when empty
	quantity              // a JSON number of five decimals, as Business Central keeps quantities
	guid                  // all noughts when empty
)

// entity is how one topic is delivered.
type entity struct {
	topic string
	rank  int // order within a batch
	set   string
	// custom: it is a page of ours, not of Business Central.
	custom bool
	// match is the property that finds a record again. It is unique over
	// there: always for the number of a master record; for time as configured.
	match string
	// kinds are the properties that we own, and how they are normalised.
	kinds map[string]propertyKind
	// final: once delivered it is not changed any more.
	final bool
	// gone is what a delete sets.
	gone []property
}

// entities by topic.
var entities = map[string]*entity{
	topicCustomer: {
		topic: topicCustomer, rank: 0, set: "customers", match: "number",
		kinds: map[string]propertyKind{"number": code, "displayName": text, "country": code, "taxRegistrationNumber": text, "email": text, "blocked": text},
		gone:  []property{{"blocked", "All"}},
	},
	topicResource: {
		topic: topicResource, rank: 0, set: "employees", match: "number",
		kinds: map[string]propertyKind{"number": code, "givenName": text, "surname": text, "jobTitle": text, "email": text, "employmentDate": date, "terminationDate": date, "status": text},
		gone:  []property{{"status", "Inactive"}},
	},
	topicProject: {
		topic: topicProject, rank: 1, set: "projects", custom: true, match: "number",
		kinds: map[string]propertyKind{"number": code, "displayName": text, "customerId": guid, "blocked": text},
		gone:  []property{{"blocked", "All"}},
	},
	topicTime: {
		topic: topicTime, rank: 2, set: "timeRegistrationEntries", custom: true, match: "externalReference", final: true,
		// By ids, not numbers: a number may change, and the entry is still the same.
		kinds: map[string]propertyKind{"externalReference": text, "employeeId": guid, "jobId": guid, "jobTaskNumber": code, "date": date, "quantity": quantity, "status": text},
	},
}

// unblocked is how the API writes the blank of an AL enumeration.
const unblocked = "_x0020_"

// page is the path of the entity's set below the base URL.
func (e *entity) page(cfg *Config) string {
	if e.custom {
		return "/api/" + cfg.CustomPages + "/companies(" + cfg.Company + ")/" + e.set
	}
	return "/api/v2.0/companies(" + cfg.Company + ")/" + e.set
}

// query finds records by what makes them unique; two would be one too many.
func (e *entity) query(cfg *Config, ref string) string {
	q := url.Values{"$filter": {e.match + " eq '" + strings.ReplaceAll(ref, "'", "''") + "'"}, "$top": {"2"}}
	return e.page(cfg) + "?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}

// normal brings a value into the form in which both sides are compared.
func (k propertyKind) normal(v string) string {
	switch k {
	case code:
		return strings.ToUpper(strings.TrimSpace(v))
	case date:
		if v == "0001-01-01" {
			return ""
		}
	case guid:
		if v = strings.ToLower(v); v == "00000000-0000-0000-0000-000000000000" {
			return ""
		}
	case quantity:
		// The contract's hours have six decimals; rounded here, what is compared
		// is what is kept.
		if r, ok := new(big.Rat).SetString(v); ok && len(v) < 100 && !strings.ContainsAny(v, "eE/") {
			v = r.FloatString(5)
		}
		if strings.Contains(v, ".") {
			v = strings.TrimSuffix(strings.TrimRight(v, "0"), ".")
		}
	}
	return v
}

// wanted is what the far side shall have of one change.
type wanted struct {
	ref    string // value of the entity's match property
	props  []property
	digest []byte
}

func (e *entity) want(ref string, props []property) *wanted {
	for i := range props {
		props[i].value = e.kinds[props[i].name].normal(props[i].value)
	}
	slices.SortFunc(props, func(a, b property) int { return strings.Compare(a.name, b.name) })
	return &wanted{ref: e.kinds[e.match].normal(ref), props: props, digest: digest(e, props)}
}

// digest is over the properties sorted by name.
func digest(e *entity, props []property) []byte {
	h := sha256.New()
	h.Write([]byte(e.topic))
	for _, p := range props {
		h.Write([]byte("\n" + p.name + "=" + p.value))
	}
	return h.Sum(nil)
}

// digestOf is the digest of what the far side has, over all of the entity's
// properties.
func (e *entity) digestOf(o object) []byte {
	props := make([]property, 0, len(e.kinds))
	for name, k := range e.kinds {
		props = append(props, property{name, k.normal(o.text(name))})
	}
	slices.SortFunc(props, func(a, b property) int { return strings.Compare(a.name, b.name) })
	return digest(e, props)
}

// same reports whether the far side has every property as wanted.
func (e *entity) same(w *wanted, o object) bool {
	for _, p := range w.props {
		if e.kinds[p.name].normal(o.text(p.name)) != p.value {
			return false
		}
	}
	return true
}

// body is the JSON of w.
func (e *entity) body(w *wanted) []byte {
	m := make(map[string]any, len(w.props))
	for _, p := range w.props {
		switch k := e.kinds[p.name]; {
		case k == quantity:
			m[p.name] = json.Number(p.value)
		case k == date && p.value == "":
			m[p.name] = "0001-01-01"
		case k == guid && p.value == "":
			m[p.name] = "00000000-0000-0000-0000-000000000000"
		default:
			m[p.name] = p.value
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("BUG: properties that are no JSON: " + err.Error())
	}
	return b
}

// exists reports whether a refusal says that the key is taken.
func exists(e *callError) bool {
	return e.fate == refused && e.code == "Internal_EntityWithSameKeyExists"
}

// row reads fields of a change by name.
type row struct {
	b    *change.Batch
	t    *change.Table
	vals []change.Value
	// missing collects the names of fields that are not there.
	missing []string
}

func (r *row) value(name string) change.Value {
	i := r.t.Column(name)
	if i < 0 || i >= len(r.vals) || r.vals[i].IsUnchanged() {
		r.missing = append(r.missing, name)
		return change.NullValue()
	}
	return r.vals[i]
}

func (r *row) text(name string) string { return string(r.b.AppendText(nil, r.value(name))) }

// need is text that may not be empty.
func (r *row) need(name string) string {
	s := r.text(name)
	if s == "" {
		r.missing = append(r.missing, name)
	}
	return s
}

func (r *row) yes(name string) bool {
	v := r.value(name)
	return v.Kind() == change.Bool && v.Bool()
}

// refs are the records that a change refers to.
func (e *entity) refs(r *row) []ident {
	switch e.topic {
	case topicProject:
		return []ident{{topicCustomer, r.need("customer_id")}}
	case topicTime:
		return []ident{{topicResource, r.need("resource_id")}, {topicProject, r.need("project_id")}}
	}
	return nil
}

// state says how a master record stands.
func state(on bool, yes, no string) string {
	if on {
		return yes
	}
	return no
}

// build says what the far side shall have; id gives the external id of a
// reference.
func (e *entity) build(r *row, key string, id func(ident) string) *wanted {
	refs := e.refs(r)
	switch e.topic {
	case topicCustomer:
		n := r.need("number")
		return e.want(n, []property{
			{"number", n},
			{"displayName", r.text("name")},
			{"country", r.text("country")},
			{"taxRegistrationNumber", r.text("tax_id")},
			{"email", r.text("email")},
			{"blocked", state(r.yes("active"), unblocked, "All")},
		})
	case topicResource:
		n := r.need("number")
		return e.want(n, []property{
			{"number", n},
			{"givenName", r.text("first_name")},
			{"surname", r.text("last_name")},
			{"jobTitle", r.text("title")},
			{"email", r.text("email")},
			{"employmentDate", r.text("hired_on")},
			{"terminationDate", r.text("left_on")},
			{"status", state(r.yes("active"), "Active", "Inactive")},
		})
	case topicProject:
		n := r.need("number")
		return e.want(n, []property{
			{"number", n}, {"displayName", r.text("name")}, {"customerId", id(refs[0])}, {"blocked", unblocked},
		})
	case topicTime:
		ref := e.topic + "/" + key
		return e.want(ref, []property{
			{"externalReference", ref},
			{"employeeId", id(refs[0])},
			{"jobId", id(refs[1])},
			{"jobTaskNumber", r.text("task_number")},
			{"date", r.need("work_date")},
			{"quantity", r.need("hours")},
			{"status", "Approved"},
		})
	}
	panic("BUG: no build for " + e.topic)
}

// due reports whether a change is one that the far side shall have.
func (e *entity) due(r *row, cfg *Config) bool {
	if e.topic != topicTime {
		return true
	}
	v := r.value("work_date")
	return r.text("status") == "approved" && v.Kind() == change.Date && v.Int() >= cfg.GoLive.Unix()/86400
}

func equal(a, b []byte) bool { return bytes.Equal(a, b) }
