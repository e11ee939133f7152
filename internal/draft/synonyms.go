// Synonyms: what systems call the tables and columns of which the entities of
// the pack are made, the likeliest first. It is data: a new system is a word here,
// one of another language a word in languages.go.

package draft

// entity is how one contract is recognised.
type entity struct {
	topic  string
	tables []string            // singular
	fields map[string][]string // by field: columns
	sure   []string            // fields by which it is recognised whatever the table is called
	under  string              // the field whose column begins the key, as the join wants it
}

var (
	numbers  = []string{"number", "no", "code", "identifier", "short_name", "ref", "reference", "nr", "nummer"}
	changed  = []string{"updated_at", "updated_on", "modified_at", "modified_on", "changed_at", "changed_on", "last_modified", "last_modified_at", "last_updated", "last_update", "last_change", "date_modified", "write_date", "modified", "updated", "mtime", "geaendert_am", "geändert_am"}
	made     = []string{"created_at", "created_on", "entered_at", "entered_on", "inserted_at", "date_created", "create_date", "created", "ctime", "angelegt_am"}
	entities = []string{"legal_entity", "legal_entity_code", "company_code", "entity_code", "company", "company_id", "subsidiary", "subsidiary_id", "business_unit", "mandant"}
	serving  = []string{"legal_entity", "legal_entity_code", "company_code", "entity_code", "subsidiary", "subsidiary_id", "business_unit", "mandant"}
	coins    = []string{"currency", "currency_code", "curr", "ccy", "currency_id", "waehrung"}
	working  = []string{"active", "is_active", "enabled", "is_enabled", "visible", "is_visible", "aktiv"}
	people   = []string{"resource_id", "employee_id", "user_id", "person_id", "consultant_id", "staff_id", "worker_id", "member_id", "contact_id", "author_id", "mitarbeiter_id", "mitarbeiter", "resource", "employee", "user", "consultant", "person", "worker", "performed_by", "done_by", "booked_for", "staff_no"}
	clients  = []string{"customer_id", "client_id", "party_id", "partner_id", "debtor_id", "kunde_id", "kunden_id", "kunde", "customer", "client", "party", "partner", "customer_no", "client_no", "account_id", "account"} // an account may be a ledger's
	jobs     = []string{"project_id", "engagement_id", "job_id", "matter_id", "mandate_id", "assignment_id", "projekt_id", "projekt", "project", "engagement", "job", "matter", "project_no", "job_no", "work_id", "work"}
	starts   = []string{"start_date", "starts_on", "start_on", "started_on", "begin_date", "date_start", "start", "starts", "begins_on", "begins", "begin", "from_date", "beginn"}
	ends     = []string{"end_date", "ends_on", "end_on", "due_date", "date_end", "finish_date", "deadline", "until_date", "end", "ends", "ende"}
	mails    = []string{"email", "mail", "email_address", "e_mail", "work_email"}
)

// known are the entities, in an order in which what others refer to comes first.
var known = []entity{
	{
		topic:  "ps.customer",
		tables: []string{"customer", "client", "debtor", "party", "business_partner", "partner", "account", "organisation", "organization", "company", "kunde"},
		fields: map[string][]string{
			"number": append([]string{"customer_number", "customer_no", "client_number", "client_no", "account_number", "account_no", "kundennummer", "kunden_nr", "kundennr"}, numbers...),
			"name":   {"name", "legal_name", "company_name", "display_name", "title", "firma"}, "legal_entity": serving,
			"country": {"country", "country_code", "country_iso", "land"}, "tax_id": {"tax_id", "vat", "vat_id", "vat_number", "vat_no", "tax_number", "ust_id"},
			"email": append([]string{"invoice_email", "billing_email"}, mails...), "active": working, "updated_at": changed,
		},
	},
	{
		topic:  "ps.resource",
		tables: []string{"resource", "employee", "consultant", "staff", "staff_member", "worker", "person", "user", "member", "mitarbeiter", "personal"},
		fields: map[string][]string{
			"number":     append([]string{"personnel_number", "personnel_no", "employee_number", "employee_no", "staff_number", "staff_no", "personalnummer"}, numbers...),
			"first_name": {"first_name", "firstname", "given_name", "forename", "vorname"}, "last_name": {"last_name", "lastname", "surname", "family_name", "nachname", "nom"},
			"email": mails, "legal_entity": entities, "title": {"job_title", "position", "title", "role"},
			"hired_on": {"hired_on", "hire_date", "hired_at", "entry_date", "joined_on", "employed_from", "date_hired", "hired", "joined", "joined_at", "eintritt", "start_date"},
			"left_on":  {"left_on", "leave_date", "exit_date", "terminated_on", "termination_date", "employed_to", "left_at", "left", "gone", "gone_on", "austritt", "end_date"},
			"active":   working, "updated_at": changed,
		},
	},
	{
		topic:  "ps.project",
		tables: []string{"project", "engagement", "job", "matter", "mandate", "projekt", "work"},
		fields: map[string][]string{
			"number": append([]string{"project_number", "project_no", "project_code", "job_number", "job_no", "job_code", "projektnummer"}, numbers...),
			"name":   {"name", "title", "project_name", "job_name", "description", "bezeichnung"}, "customer_id": clients, "legal_entity": entities, "currency": coins,
			"status": {"status", "state", "stage", "phase", "status_id", "state_id"}, "billing_type": {"billing_type", "billing_method", "billing_model", "contract_type", "bill_by", "billing", "abrechnungsart"},
			"start_date": starts, "end_date": ends, "budget_hours": {"budget_hours", "budgeted_hours", "hours_budget", "planned_hours", "estimated_hours", "hours_sold"}, "updated_at": changed,
		},
	},
	{
		topic:  "ps.time_entry",
		tables: []string{"time_entry", "timesheet_line", "timesheet_entry", "time_line", "worklog", "work_log", "time_log", "time_record", "timesheet", "time_sheet", "time_booking", "time_registration", "time_item", "booking", "hour", "leistung", "stunde"},
		sure:   []string{"hours", "work_date"},
		fields: map[string][]string{
			"resource_id": people, "project_id": jobs,
			"task_number": {"task_number", "task_no", "task_code", "task_id", "issue_id", "ticket_id", "activity_id", "work_item_id", "task", "activity", "activity_code"},
			"work_date":   {"work_date", "worked_on", "spent_on", "spent_date", "entry_date", "work_day", "log_date", "logged_on", "date", "day", "started_at", "start_time", "started", "starts_at", "begins_at", "start", "starts", "begins", "begin", "datum", "beginn"},
			"hours":       {"hours", "hours_worked", "worked_hours", "duration_hours", "unit_amount", "quantity", "duration", "time_spent", "worked", "amount", "minutes", "duration_minutes", "minutes_worked", "worked_minutes", "seconds", "duration_seconds", "time_spent_seconds", "stunden", "dauer"},
			"billable":    {"billable", "is_billable", "chargeable", "is_chargeable", "verrechenbar"},
			"status":      {"status", "state", "approval_status", "approval_state", "status_id", "state_id"},
			"note":        {"note", "notes", "comment", "comments", "description", "remark", "remarks", "memo", "memos", "text"},
			"bill_rate":   {"bill_rate", "billing_rate", "billable_rate", "hourly_rate", "charge_rate", "sales_rate"},
			"created_at":  made, "updated_at": changed,
		},
	},
	{
		topic:  "ps.cost_rate",
		tables: []string{"cost_rate", "resource_rate", "employee_rate", "employee_cost", "internal_rate", "labor_rate", "labour_rate", "hourly_cost", "cost_price", "rate", "kostensatz"},
		sure:   []string{"resource_id", "rate", "valid_from"}, under: "resource_id",
		fields: map[string][]string{
			"resource_id": people, "valid_from": {"valid_from", "effective_from", "effective_date", "from_date", "start_date", "starts_on", "date_from", "date_in_effect", "gueltig_ab", "date"},
			"valid_to": {"valid_to", "valid_until", "effective_to", "effective_until", "to_date", "end_date", "ends_on", "date_to", "gueltig_bis"},
			"rate":     {"rate", "cost_rate", "hourly_cost", "cost_per_hour", "hourly_rate", "cost_price", "cost", "amount", "satz"}, "currency": coins, "updated_at": changed,
		},
	},
	{
		topic:  "ps.invoice",
		tables: []string{"invoice", "sales_invoice", "customer_invoice", "bill", "rechnung"},
		fields: map[string][]string{
			"number":      append([]string{"invoice_number", "invoice_no", "document_number", "document_no", "rechnungsnummer"}, numbers...),
			"customer_id": clients, "legal_entity": entities, "kind": {"kind", "type", "invoice_type", "document_type", "doc_type"}, "status": {"status", "state", "invoice_status"},
			"invoice_date": {"invoice_date", "issue_date", "issued_on", "issued_at", "issued", "date", "document_date", "posting_date", "rechnungsdatum"}, "currency": coins,
			"total": {"total", "net_total", "total_net", "untaxed_amount", "amount_untaxed", "untaxed_total", "untaxed_amount_cache", "total_amount", "net_amount", "amount_total", "amount", "summe"}, "updated_at": changed,
		},
	},
	{
		topic:  "ps.invoice_line",
		tables: []string{"invoice_line", "invoice_item", "invoice_position", "invoice_detail", "sales_invoice_line", "bill_line", "rechnungsposition"},
		sure:   []string{"invoice_id", "amount"},
		fields: map[string][]string{
			"invoice_id": {"invoice_id", "bill_id", "document_id", "invoice", "invoice_no", "rechnung_id"}, "project_id": jobs,
			"description": {"description", "text", "title", "name", "memo", "bezeichnung"}, "quantity": {"quantity", "qty", "units", "hours", "count", "menge"},
			"unit_price": {"unit_price", "price", "price_per_unit", "rate", "unit_rate", "preis"}, "amount": {"amount", "net_amount", "line_total", "total", "total_net", "price_total", "betrag"},
		},
	},
}

// against are columns that say that something is not active, or is there no more.
var against = []string{"inactive", "is_inactive", "archived", "is_archived", "disabled", "is_disabled", "closed", "is_closed", "blocked", "is_blocked", "deleted", "is_deleted", "archived_at", "deactivated_at", "disabled_at", "deleted_at", "deleted_on", "left_at", "gone", "is_gone", "gone_on", "left", "has_left", "inactive_since", "ended_on", "closed_at", "closed_on"}

// deleted are those of them by which rows are marked as gone.
var deleted = []string{"deleted_at", "deleted_on", "deleted", "is_deleted"}

// advice is what a field may be when no column is it.
var advice = map[string]string{
	"legal_entity": `a firm with one legal entity writes its code: "=CODE"`,
	"currency":     `a firm with one currency writes it: "=EUR"`,
	"billing_type": `a constant will do: "=time_and_material"`,
	"billable":     "true, if the customer pays for all of them",
	"active":       "true, if all of them are",
	"kind":         `a table of invoices alone: "=invoice"`,
	"task_number":  `entries that are on no task: "=none"`,
}

// whole are columns that hold a person's whole name.
var whole = []string{"name", "full_name", "fullname", "display_name", "login", "username"}

// countsHours are words of columns that count hours.
var countsHours = []string{"hour", "hours", "hrs", "stunden"}

// begun and ended are columns that say from when to when somebody worked.
var (
	begun = []string{"start_time", "started_at", "starts_at", "begins_at", "time_start", "start", "starts", "started", "begin", "begins"}
	ended = []string{"end_time", "ended_at", "ends_at", "stopped_at", "finished_at", "time_end", "end", "ends", "ended"}
)

// units are words of columns that count parts of an hour.
var units = map[string]int{"minute": 60, "minutes": 60, "min": 60, "mins": 60, "second": 3600, "seconds": 3600, "sec": 3600, "secs": 3600}
