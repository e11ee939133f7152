// Languages: what German, French, Spanish and Dutch call what synonyms.go has in
// English. It is data: a new word stands in a line here. Only words are here that
// mean one thing in tables of a firm, whichever language the others are of.

package draft

import (
	"slices"
	"strings"
)

// abroad are words, and several of them with underscores, without accents and
// without what stands between, by the name that synonyms.go has. Of those that
// take an s in the plural the singular will do.
var abroad = map[string]string{
	// Tables, and columns that lead to them.
	"customer":     "kunde kunden auftraggeber cliente klant klanten opdrachtgever",
	"company":      "firmen unternehmen societe entreprise empresa bedrijf bedrijven",
	"employee":     "mitarbeiter mitarbeitende mitarbeiterin angestellte angestellter angestellten employe salarie collaborateur empleado trabajador trabajadores medewerker werknemer",
	"person":       "personen personne persona persoon",
	"user":         "benutzer nutzer anwender utilisateur usuario gebruiker",
	"consultant":   "berater consultor consultores",
	"project":      "projekt projekte projet proyecto projecten",
	"time_entry":   "zeiten zeiterfassung zeiterfassungen zeiteintrag zeiteintraege zeitbuchung zeitbuchungen arbeitszeit arbeitszeiten stundenbuchung stundenbuchungen temps saisie_temps saisies_temps parte_horas partes_horas registro_horas registros_horas urenregistratie urenregel urenboeking urenboekingen tijdregistratie",
	"timesheet":    "stundenzettel feuille_temps feuilles_temps hoja_horas hojas_horas urenstaat urenstaten",
	"booking":      "buchung buchungen",
	"leistung":     "leistungen",
	"cost_rate":    "kostensatz kostensaetze stundenkostensatz taux_cout tarifa_coste tarifas_coste kostentarief kostentarieven",
	"hourly_cost":  "stundenkosten cout_horaire couts_horaires coste_hora costo_hora uurkosten",
	"invoice":      "rechnung rechnungen faktura fakturen facture factura factuur facturen",
	"invoice_line": "rechnungsposition rechnungspositionen rechnungsposten rechnungszeile rechnungszeilen rechnungs_position rechnungs_positionen ligne_facture lignes_facture linea_factura lineas_factura factuurregel",
	"task":         "aufgabe aufgaben tache tarea taak taken",
	"activity":     "taetigkeit taetigkeiten activite actividad actividades activiteit activiteiten",

	// What they are called.
	"number":          "numero num",
	"code":            "codigo kuerzel",
	"customer_number": "kundennummer kundennr kunden_nr kunden_nummer numero_client numero_cliente klantnummer klantnr",
	"employee_number": "mitarbeiternummer mitarbeiternr mitarbeiter_nr personalnummer personalnr personal_nr matricule numero_empleado personeelsnummer",
	"project_number":  "projektnummer projektnr projekt_nr numero_projet numero_proyecto projectnummer projectnr",
	"invoice_number":  "rechnungsnummer rechnungsnr rechnungs_nr rechnungs_nummer numero_facture num_facture numero_factura num_factura factuurnummer factuurnr",
	"document_number": "belegnummer belegnr beleg_nr",
	"name":            "nom nombre naam",
	"legal_name":      "raison_sociale razon_social",
	"company_name":    "firmenname nom_societe nombre_empresa bedrijfsnaam",
	"title":           "titel titre titulo",
	"description":     "beschreibung libelle descripcion omschrijving",
	"note":            "bemerkung bemerkungen anmerkung anmerkungen notiz notizen remarque nota observacion observaciones opmerking opmerkingen notitie",
	"comment":         "kommentar kommentare commentaire comentario",

	// Customers and people.
	"country":       "pays pais",
	"tax_id":        "ustid ustidnr ust_idnr ust_id_nr ustidnummer umsatzsteuer_id nif cif",
	"tax_number":    "steuernummer steuernr numero_tva num_tva btw_nummer btwnummer btw_nr",
	"invoice_email": "rechnungs_email rechnungsemail email_facturation email_facturacion factuur_email",
	"email":         "courriel correo correo_electronico emailadresse emailadres email_adres",
	"active":        "actif activo actief",
	"first_name":    "prenom voornaam",
	"last_name":     "familienname nom_famille apellido achternaam",
	"job_title":     "berufsbezeichnung poste puesto cargo functie",
	"role":          "rolle",
	"hired_on":      "eintrittsdatum eintritt_am eingetreten eingetreten_am eingestellt_am date_embauche date_entree fecha_alta fecha_contratacion fecha_ingreso in_dienst datum_in_dienst",
	"left_on":       "austrittsdatum austritt_am ausgetreten ausgetreten_am date_sortie date_depart fecha_baja uit_dienst datum_uit_dienst",

	// Projects, hours, rates.
	"status":       "statut estado",
	"state":        "zustand etat",
	"billing_type": "type_facturation tipo_facturacion facturatietype",
	"start":        "anfang beginn debut inicio begin",
	"start_date":   "startdatum anfangsdatum beginndatum fecha_inicio begindatum",
	"end":          "ende fin einde",
	"end_date":     "enddatum fecha_fin einddatum",
	"start_time":   "startzeit beginnzeit heure_debut hora_inicio starttijd begintijd",
	"end_time":     "endzeit heure_fin hora_fin eindtijd",
	"budget_hours": "stundenbudget budgetstunden planstunden heures_prevues heures_budget horas_previstas horas_presupuestadas budgeturen",
	"date":         "datum fecha",
	"day":          "jour dia dag",
	"work_date":    "arbeitsdatum arbeitstag buchungsdatum leistungsdatum date_travail fecha_trabajo werkdatum",
	"hours":        "stunden arbeitsstunden heure horas uren",
	"minutes":      "minuten minutos",
	"seconds":      "sekunden seconde segundos seconden",
	"duration":     "dauer duree duracion duur",
	"billable":     "abrechenbar fakturierbar facturable facturabel factureerbaar declarabel",
	"rate":         "tarif taux tarifa tarief",
	"hourly_rate":  "stundensatz stundentarif taux_horaire tarifa_hora tarifa_horaria precio_hora uurtarief",
	"valid_from":   "gueltig_ab gueltig_von valable_du date_effet valido_desde vigente_desde geldig_vanaf geldig_van",
	"valid_to":     "gueltig_bis valable_au valido_hasta vigente_hasta geldig_tot",

	// Invoices.
	"invoice_date":  "rechnungsdatum date_facture date_emission fecha_factura fecha_emision factuurdatum",
	"document_date": "belegdatum",
	"type":          "typ tipo",
	"kind":          "soort",
	"invoice_type":  "rechnungsart rechnungstyp type_facture tipo_factura",
	"document_type": "belegart",
	"currency":      "waehrung devise moneda divisa valuta",
	"total":         "totaal",
	"net_total":     "total_ht nettosumme",
	"total_amount":  "gesamtbetrag montant_total importe_total totaalbedrag",
	"net_amount":    "netto nettobetrag betrag montant montant_ht importe base_imponible bedrag nettobedrag", // not "amount", which may be hours
	"quantity":      "quantite cantidad aantal hoeveelheid",
	"unit_price":    "einzelpreis stueckpreis prix_unitaire precio_unitario stukprijs eenheidsprijs",
	"price":         "prix precio prijs",

	// When a row came to be, was changed, and is not there any more.
	"created_at": "erstellt erstellt_am angelegt erfasst_am cree_le date_creation creado_el creado_en fecha_creacion aangemaakt aangemaakt_op",
	"updated_at": "geaendert geaendert_am aktualisiert aktualisiert_am modifie_le date_modification date_maj modificado_el actualizado_en fecha_modificacion fecha_actualizacion gewijzigd gewijzigd_op bijgewerkt_op",
	"deleted":    "geloescht supprime eliminado borrado verwijderd",
	"deleted_at": "geloescht_am supprime_le eliminado_en verwijderd_op",
	"inactive":   "inaktiv deaktiviert inactif inactivo inactief",
	"archived":   "archiviert archivado gearchiveerd",
	"blocked":    "gesperrt bloque bloqueado geblokkeerd",

	// Parts of names.
	"line": "ligne linea zeile zeilen",
}

// english is abroad by word.
var english = func() map[string]string {
	out := map[string]string{}
	for name, words := range abroad {
		for _, w := range strings.Fields(words) {
			out[w] = name
		}
	}
	return out
}()

// accents are letters by what stands for them where there are none.
var accents = strings.NewReplacer("ä", "ae", "ö", "oe", "ü", "ue", "ß", "ss", "à", "a", "â", "a", "á", "a", "ç", "c", "é", "e", "è", "e", "ê", "e", "ë", "e",
	"í", "i", "î", "i", "ï", "i", "ñ", "n", "ó", "o", "ô", "o", "ú", "u", "ù", "u", "û", "u", "œ", "oe")

// between are words that say nothing: date_de_debut.
var between = []string{"de", "del", "du", "des"}

// translated are the words of a name in English, those that are known: of several
// that are known together, as these.
func translated(w []string) []string {
	var out []string
	w = slices.DeleteFunc(slices.Clone(w), func(x string) bool { return slices.Contains(between, x) })
	const most = 4 // words that are known together
	for i := 0; i < len(w); {
		n := min(most, len(w)-i)
		for ; n > 0; n-- {
			word := accents.Replace(strings.Join(w[i:i+n], "_"))
			name, ok := english[word]
			if one, many := strings.CutSuffix(word, "s"); !ok && many {
				name, ok = english[one]
			}
			if ok {
				out = append(out, strings.Split(name, "_")...)
				break
			}
		}
		if n == 0 {
			out, n = append(out, w[i]), 1
		}
		i += n
	}
	return out
}

// also is a name with what else it is called: in English, and id_customer as
// customer_id.
func also(w []string) []string {
	out := []string{strings.Join(w, "_")}
	for _, x := range [][]string{w, translated(w)} {
		names := []string{strings.Join(x, "_")}
		if len(x) > 1 && x[0] == "id" {
			names = append(names, strings.Join(x[1:], "_")+"_id")
		}
		for _, n := range names {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}
