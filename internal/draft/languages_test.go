package draft

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/change"
)

// firm are tables of one language: what each is, and fields with what they come from.
type firm struct {
	tables []*Table
	is     map[string]string // by topic: the table
	from   map[string]string // by topic and field
}

// Lost if this fails: a firm whose tables are not in English gets an empty file.
func TestOtherLanguages(t *testing.T) {
	i, s, n, b, d := change.Int, change.String, change.Decimal, change.Bool, change.Date
	for name, f := range map[string]firm{
		"German": {
			tables: []*Table{
				table("public", "kunden", 0, "id", i, "kundennr", s, "firma", s, "land", s, "ust_id", s, "aktiv", b, "geändert_am", change.TimestampTZ),
				table("public", "mitarbeiter", 0, "id", i, "vorname", s, "nachname", s, "eintrittsdatum", d, "ausgetreten_am", d),
				table("public", "projekte", 0, "id", i, "projektnr", s, "bezeichnung", s, "kunden_id", i, "waehrung", s, "beginn", d, "ende", d),
				table("public", "zeiten", 0, "id", i, "mitarbeiter_id", i, "projekt_id", i, "datum", d, "dauer_minuten", i, "abrechenbar", b, "bemerkung", s, "stundensatz", n),
				table("public", "kostensaetze", 0, "id", i, "mitarbeiter_id", i, "gültig_ab", d, "kostensatz", n, "Währung", s),
				table("public", "rechnungen", 0, "id", i, "rechnungsnr", s, "kunde_id", i, "rechnungsdatum", d, "netto", n),
				table("public", "rechnungspositionen", 0, "id", i, "rechnung_id", i, "projekt_id", i, "beschreibung", s, "menge", n, "einzelpreis", n, "betrag", n),
			},
			is: map[string]string{
				"ps.customer": "kunden", "ps.resource": "mitarbeiter", "ps.project": "projekte", "ps.time_entry": "zeiten", "ps.cost_rate": "kostensaetze",
				"ps.invoice": "rechnungen", "ps.invoice_line": "rechnungspositionen",
			},
			from: map[string]string{
				"ps.customer.number": "kundennr", "ps.customer.name": "firma", "ps.customer.tax_id": "ust_id", "ps.customer.updated_at": "geändert_am",
				"ps.resource.first_name": "vorname", "ps.resource.hired_on": "eintrittsdatum", "ps.resource.left_on": "ausgetreten_am",
				"ps.project.customer_id": "src-{kunden_id}", "ps.project.start_date": "beginn", "ps.project.end_date": "ende", "ps.project.number": "projektnr",
				"ps.time_entry.resource_id": "src-{mitarbeiter_id}", "ps.time_entry.work_date": "datum", "ps.time_entry.hours": `div(row.dauer_minuten, 60, 6, "half_even")`,
				"ps.time_entry.billable": "abrechenbar", "ps.time_entry.note": "bemerkung", "ps.time_entry.bill_rate": `round(row.stundensatz, 4, "half_even")`,
				"ps.cost_rate.valid_from": "gültig_ab", "ps.cost_rate.rate": `round(row.kostensatz, 4, "half_even")`, "ps.cost_rate.currency": "Währung",
				"ps.invoice.number": "rechnungsnr", "ps.invoice.invoice_date": "rechnungsdatum", "ps.invoice.total": `round(row.netto, 2, "half_even")`,
				"ps.invoice_line.invoice_id": "src-{rechnung_id}", "ps.invoice_line.unit_price": `round(row.einzelpreis, 4, "half_even")`, "ps.invoice_line.amount": `round(row.betrag, 2, "half_even")`,
			},
		},
		"German, other words": {
			tables: []*Table{
				table("public", "benutzer", 0, "id", i, "benutzer_name", s, "familienname", s),
				table("public", "buchungen", 0, "id", i, "benutzer_id", i, "projekt_id", i, "datum", d, "stunden", n, "anmerkungen", s),
				table("public", "rechnungs_positionen", 0, "id", i, "rechnung_id", i, "menge", n, "preis", n, "nettobetrag", n),
			},
			is:   map[string]string{"ps.resource": "benutzer", "ps.time_entry": "buchungen", "ps.invoice_line": "rechnungs_positionen"},
			from: map[string]string{"ps.resource.first_name": "benutzer_name", "ps.time_entry.hours": `round(row.stunden, 6, "half_even")`, "ps.time_entry.note": "anmerkungen"},
		},
		"French": {
			tables: []*Table{
				table("public", "clients", 0, "id", i, "numero", s, "raison_sociale", s, "pays", s, "numero_tva", s, "actif", b),
				table("public", "employés", 0, "id", i, "nom", s, "prénom", s, "date_embauche", d, "date_sortie", d),
				table("public", "projets", 0, "id", i, "nom", s, "id_client", i, "devise", s, "date_de_debut", d, "date_de_fin", d),
				table("public", "saisies_temps", 0, "id", i, "employe_id", i, "projet_id", i, "jour", d, "duree_minutes", i, "facturable", b, "commentaire", s, "taux_horaire", n),
				table("public", "factures", 0, "id", i, "num_facture", s, "client_id", i, "date_facture", d, "montant_ht", n),
				table("public", "lignes_de_facture", 0, "id", i, "facture_id", i, "libelle", s, "quantité", n, "prix_unitaire", n, "montant", n),
			},
			is: map[string]string{
				"ps.customer": "clients", "ps.resource": "employés", "ps.project": "projets", "ps.time_entry": "saisies_temps",
				"ps.invoice": "factures", "ps.invoice_line": "lignes_de_facture",
			},
			from: map[string]string{
				"ps.customer.name": "raison_sociale", "ps.customer.tax_id": "numero_tva", "ps.resource.last_name": "nom", "ps.resource.first_name": "prénom", "ps.resource.left_on": "date_sortie",
				"ps.project.name": "nom", "ps.project.customer_id": "src-{id_client}", "ps.project.start_date": "date_de_debut", "ps.project.end_date": "date_de_fin",
				"ps.time_entry.work_date": "jour", "ps.time_entry.hours": `div(row.duree_minutes, 60, 6, "half_even")`, "ps.time_entry.billable": "facturable", "ps.time_entry.note": "commentaire",
				"ps.invoice.invoice_date": "date_facture", "ps.invoice.total": `round(row.montant_ht, 2, "half_even")`, "ps.invoice_line.description": "libelle",
			},
		},
		"Spanish": {
			tables: []*Table{
				table("public", "clientes", 0, "id", i, "codigo", s, "razon_social", s, "país", s, "nif", s, "activo", b),
				table("public", "empleados", 0, "id", i, "nombre", s, "apellidos", s, "fecha_alta", d, "fecha_baja", d),
				table("public", "proyectos", 0, "id", i, "nombre", s, "id_cliente", i, "moneda", s, "fecha_inicio", d, "fecha_fin", d),
				table("public", "partes_de_horas", 0, "id", i, "empleado_id", i, "proyecto_id", i, "fecha", d, "horas", n, "facturable", b, "observaciones", s),
				table("public", "facturas", 0, "id", i, "numero_factura", s, "cliente_id", i, "fecha_factura", d, "importe", n),
				table("public", "lineas_factura", 0, "id", i, "factura_id", i, "descripcion", s, "cantidad", n, "precio_unitario", n, "importe", n),
			},
			is: map[string]string{
				"ps.customer": "clientes", "ps.resource": "empleados", "ps.project": "proyectos", "ps.time_entry": "partes_de_horas",
				"ps.invoice": "facturas", "ps.invoice_line": "lineas_factura",
			},
			from: map[string]string{
				"ps.customer.name": "razon_social", "ps.customer.country": "país", "ps.resource.last_name": "apellidos", "ps.resource.first_name": "nombre", "ps.resource.hired_on": "fecha_alta",
				"ps.project.customer_id": "src-{id_cliente}", "ps.project.start_date": "fecha_inicio", "ps.time_entry.hours": `round(row.horas, 6, "half_even")`, "ps.time_entry.note": "observaciones",
				"ps.invoice.number": "numero_factura", "ps.invoice_line.amount": `round(row.importe, 2, "half_even")`,
			},
		},
		"Dutch": {
			tables: []*Table{
				table("public", "klanten", 0, "id", i, "klantnummer", s, "bedrijfsnaam", s, "land", s, "btw_nummer", s, "actief", b),
				table("public", "medewerkers", 0, "id", i, "voornaam", s, "achternaam", s, "in_dienst", d, "uit_dienst", d),
				table("public", "projecten", 0, "id", i, "naam", s, "klant_id", i, "valuta", s, "begindatum", d, "einddatum", d),
				table("public", "uren", 0, "id", i, "medewerker_id", i, "project_id", i, "datum", d, "duur_minuten", i, "declarabel", b, "omschrijving", s, "uurtarief", n),
				table("public", "facturen", 0, "id", i, "factuur_nr", s, "klant_id", i, "factuurdatum", d, "bedrag", n),
				table("public", "factuurregels", 0, "id", i, "factuur_id", i, "omschrijving", s, "aantal", n, "stukprijs", n, "bedrag", n),
			},
			is: map[string]string{
				"ps.customer": "klanten", "ps.resource": "medewerkers", "ps.project": "projecten", "ps.time_entry": "uren",
				"ps.invoice": "facturen", "ps.invoice_line": "factuurregels",
			},
			from: map[string]string{
				"ps.customer.name": "bedrijfsnaam", "ps.resource.left_on": "uit_dienst", "ps.project.name": "naam", "ps.project.end_date": "einddatum",
				"ps.time_entry.hours": `div(row.duur_minuten, 60, 6, "half_even")`, "ps.time_entry.bill_rate": `round(row.uurtarief, 4, "half_even")`, "ps.invoice.number": "factuur_nr", "ps.invoice_line.quantity": `round(row.aantal, 6, "half_even")`,
			},
		},
		"English": {
			tables: []*Table{
				table("public", "employees", 0, "id", i, "first_name", s, "surname", s, "hired", d, "gone", d),
				table("public", "projects", 0, "id", i, "name", s, "begins", d, "ends", d),
				table("public", "time_entries", 0, "id", i, "employee_id", i, "project_id", i, "date", d, "hours", n, "memo", s),
				table("public", "invoices", 0, "id", i, "number", s, "issued", d, "total", n),
			},
			is: map[string]string{"ps.resource": "employees", "ps.project": "projects", "ps.time_entry": "time_entries", "ps.invoice": "invoices"},
			from: map[string]string{
				"ps.resource.hired_on": "hired", "ps.resource.left_on": "gone", "ps.project.start_date": "begins", "ps.project.end_date": "ends",
				"ps.time_entry.note": "memo", "ps.invoice.invoice_date": "issued",
			},
		},
		"English, other words": {
			tables: []*Table{
				table("public", "employees", 0, "id", i, "first_name", s, "surname", s, "joined", d, "left", d),
				table("public", "projects", 0, "id", i, "name", s, "starts", d, "end", d),
				table("public", "time_entries", 0, "id", i, "employee_id", i, "project_id", i, "date", d, "hours", n, "remarks", s),
				table("public", "invoices", 0, "id", i, "number", s, "issued_on", d, "total", n),
			},
			is: map[string]string{"ps.resource": "employees", "ps.project": "projects", "ps.time_entry": "time_entries", "ps.invoice": "invoices"},
			from: map[string]string{
				"ps.resource.hired_on": "joined", "ps.resource.left_on": "left", "ps.project.start_date": "starts", "ps.project.end_date": "end",
				"ps.time_entry.note": "remarks", "ps.invoice.invoice_date": "issued_on",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rules := drafted(t, f.tables...)
			for _, topic := range slices.Sorted(maps.Keys(f.is)) {
				if r := rules[topic]; r == nil || r.Table.Name != f.is[topic] {
					t.Errorf("%s is not made of %s: %+v", topic, f.is[topic], r)
				}
			}
			for _, at := range slices.Sorted(maps.Keys(f.from)) {
				cut := strings.LastIndex(at, ".")
				if r := rules[at[:cut]]; r == nil {
					t.Errorf("%s: no rule", at)
				} else if x := field(t, r, at[cut+1:]); x.Text != f.from[at] {
					t.Errorf("%s is %q (%s), want %q", at, x.Text, x.Note, f.from[at])
				}
			}
		})
	}
}

// Lost if this fails: a word is kept that finds nothing, or says two things.
func TestWordsOfLanguagesLeadSomewhere(t *testing.T) {
	known := strings.Join(used(), " ")
	seen := map[string]string{}
	for name, words := range abroad {
		if !strings.Contains(" "+known+" ", " "+name+" ") && name != "line" {
			t.Errorf("%s is no name that synonyms.go has", name)
		}
		for _, w := range strings.Fields(words) {
			if seen[w] != "" {
				t.Errorf("%s is %s and %s", w, seen[w], name)
			}
			if accents.Replace(w) != w {
				t.Errorf("%s has an accent and is never found", w)
			}
			seen[w] = name
		}
	}
	for w := range seen {
		if one, many := strings.CutSuffix(w, "s"); many && seen[one] != "" {
			t.Errorf("%s is the plural of one that is there", w)
		}
	}
}

// used are all names that are looked for.
func used() []string {
	out := slices.Concat(against, deleted, begun, ended, countsHours, whole, slices.Collect(maps.Keys(units)))
	for _, e := range known {
		out = append(out, e.tables...)
		for _, names := range e.fields {
			for _, n := range names {
				out = append(out, n, strings.TrimSuffix(n, "_id"))
			}
		}
	}
	return out
}

// Lost if this fails: a word of English is taken for one of another language, and
// a table for what it is not.
func TestEnglishStaysAsItIs(t *testing.T) {
	for _, name := range []string{"pin", "notes", "dates", "landing", "art", "tag", "station", "gift", "die", "bank", "rates", "hours", "invoices", "address", "status", "user_id", "work_date"} {
		w := words(name)
		if got := strings.Join(translated(w), "_"); got != name {
			t.Errorf("%s is taken for %s", name, got)
		}
	}
}
