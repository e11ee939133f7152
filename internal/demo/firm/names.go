// The names of the firm, its customers and its people: made up, all of them.

package firm

var firstNames = []string{
	"Ada", "Aaron", "Bahar", "Benno", "Carla", "Cedric", "Dagny", "Deniz", "Edda", "Emre", "Fiona", "Felix",
	"Greta", "Gareth", "Hanna", "Hakim", "Imke", "Ivo", "Jana", "Jonas", "Kaya", "Kieran", "Lena", "Linus",
	"Mara", "Matteo", "Nadia", "Niall", "Oda", "Oscar", "Paula", "Piotr", "Quinn", "Rhea", "Ruben", "Saskia",
	"Søren", "Tamsin", "Theo", "Uma", "Ulrich", "Vera", "Victor", "Wanda", "Wilson", "Xenia", "Yara", "Yannick",
	"Zoë", "Zeno",
}

var lastNames = []string{
	"Abendroth", "Ashdown", "Barlow", "Bessemer", "Caldwell", "Cordes", "Dahlberg", "Dunmore", "Eastlake", "Ehlers",
	"Fairweather", "Falk", "Garrick", "Grünwald", "Hartung", "Holloway", "Ingram", "Isensee", "Jessop", "Jürgens",
	"Kavanagh", "Kestner", "Langford", "Lindqvist", "Marlowe", "Mertens", "Northcott", "Nowak", "Oakden", "Osterloh",
	"Pemberton", "Pohl", "Quennell", "Rademacher", "Redfern", "Sandoval", "Schäfer", "Thackeray", "Tiedemann", "Underhill",
	"Uhlig", "Vance", "Voss", "Whitlock", "Wieland", "Yardley", "Yilmaz", "Zeller", "Ziegler", "O'Hara",
}

var customerFirst = []string{
	"Brackwater", "Coldharbour", "Nordhafen", "Silverbeck", "Rotklee", "Quarry Lane", "Pinewick", "Alder & Finch",
	"Kupferberg", "Longmeadow", "Steinfurth", "Harrowgate", "Blue Kestrel", "Falkenried", "Ostwind", "Copperline",
	"Marschland", "Summerfold", "Tidewell", "Granite Point",
}

var customerSecond = []string{
	"Logistics", "Maschinenbau", "Insurance", "Energy", "Textiles", "Rail", "Foods", "Media", "Water", "Instruments",
}

var projectWork = []string{
	"ERP rollout", "Data platform", "Plant relocation", "Pricing review", "Process audit", "Cloud migration",
	"Post-merger integration", "Warehouse redesign", "Customer portal", "Treasury system", "Payroll change-over",
	"Supply chain study", "Security review", "Field service app", "Reporting factory", "Carbon accounting",
}

var titles = []string{"Analyst", "Consultant", "Senior Consultant", "Manager", "Senior Manager", "Director"}

// taskNames: the last of them is not billable.
var taskNames = []string{"Analysis", "Design", "Delivery", "Testing", "Steering", "Travel and overhead"}

var noteTexts = []string{
	"Workshop with the client", "Follow-up on open points", "Prepared the steering committee", "Data model, second round",
	"Reviewed the migration script", "Interviews on site", "Aligned with finance (§ 4.2)", "Test cases for release 3",
	"Fixed the month-end report", "Rückfragen zur Abnahme geklärt", "Réunion de suivi", "Call re: £ / € conversion",
	"Tab\tand \"quotes\" and a back\\slash", "Two lines:\nthe second one", "Go-live support ✅",
}
