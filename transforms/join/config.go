// Package join enriches the rows of one canonical topic with rows of others,
// and emits them again when those change. config.go is what a user writes.
//
// A join is two consumer groups. The right one, <name>.right, keeps the latest
// row of each reference in Redis, and for each change tells the left rows that
// depend on it, by records on a refresh topic that is partitioned like the left
// one. The left one, <name>, keeps the left rows and who depends on what, and
// is the only one that emits: one place per key, so that order holds
// (invariant 8).
//
// Why nothing is missed: each side writes its own state, and only then, after
// the answer, reads the other's. Of a left and a right row that meet, whoever
// reads second sees the other: either the left row is evaluated with the right
// one, or the right one finds it among its dependents and has it evaluated
// again. For a chain (a customer by way of the project) the middle row and its
// own index are written together by the right side, before it looks for
// dependents, so the same holds for each hop.
package join

// Config is a transform of type join.
type Config struct {
	Left       string            `yaml:"left" doc:"The canonical topic whose rows are enriched." example:"ps.time_entry"`
	Output     string            `yaml:"output" doc:"The canonical topic that is written; its key is that of left." example:"ps.time_entry_costed"`
	References []Reference       `yaml:"references" doc:"What is looked up, in this order; the first that is missing is what a row waits for."`
	Fields     map[string]string `yaml:"fields" doc:"Field of the output: a field of left, a field of a reference as reference.field, or a product a * b. Fields that are not named take the left field of their own name."`
	Agree      []Agree           `yaml:"agree" doc:"Fields that must be equal, or the row waits. Of several rows in force one is taken that agrees with left and with references before it."`
	WaitingFor string            `yaml:"waiting_for" doc:"The field of the output that tells what a row waits for, null when it waits for nothing. Products are null while it waits."`
}

// Reference is one lookup.
type Reference struct {
	Name    string   `yaml:"name" doc:"Name of the reference, for fields and in waiting_for." example:"project"`
	Topic   string   `yaml:"topic" doc:"The canonical topic of the rows." example:"ps.project"`
	On      string   `yaml:"on" doc:"What names the row: a field of left, or a field of an earlier reference as reference.field." example:"project.customer_id"`
	InForce *InForce `yaml:"in_force" doc:"Of several rows take the one in force on a day: from <= day, and to is null or later than day; of several one that agrees, then the latest from, then the highest key."`
}

// InForce chooses among the rows of a group by date.
type InForce struct {
	From    string `yaml:"from" doc:"The field with the first day." example:"valid_from"`
	To      string `yaml:"to" doc:"The field with the day after the last; null: open." example:"valid_to"`
	At      string `yaml:"at" doc:"The field of left with the day." example:"work_date"`
	GroupBy string `yaml:"group_by" doc:"The field by which the rows are grouped and that on names. The key of the rows must be this field's value, a slash, and the rest: so that a deleted row, of which only the key is known, still tells its group." example:"resource_id"`
}

// Agree is a pair of fields.
type Agree struct {
	Field string `yaml:"field" doc:"A reference's field." example:"project.currency"`
	With  string `yaml:"with" doc:"The field that must be equal to it." example:"cost_rate.currency"`
}

// Defaults is the join that gives time entries their cost; whatever part is
// configured replaces that part of it.
func Defaults() Config {
	return Config{
		Left: "ps.time_entry", Output: "ps.time_entry_costed",
		References: []Reference{
			{Name: "project", Topic: "ps.project", On: "project_id"},
			{Name: "customer", Topic: "ps.customer", On: "project.customer_id"},
			{Name: "cost_rate", Topic: "ps.cost_rate", On: "resource_id", InForce: &InForce{From: "valid_from", To: "valid_to", At: "work_date", GroupBy: "resource_id"}},
		},
		Fields: map[string]string{
			"project_number": "project.number", "customer_id": "project.customer_id", "customer_name": "customer.name",
			"legal_entity": "project.legal_entity", "currency": "project.currency",
			"cost_rate_id": "cost_rate.cost_rate_id", "rate": "cost_rate.rate", "cost": "hours * cost_rate.rate",
		},
		Agree:      []Agree{{Field: "project.currency", With: "cost_rate.currency"}},
		WaitingFor: "waiting_for",
	}
}
