// The seed: eighteen months of the firm's books, the same rows at every start.
// It is made as COPY text on the fly; nothing of it is kept but the people,
// the projects and the hours to invoice.

package firm

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	customersPerEntity = 14
	projectsPerEntity  = 51
	levels             = 6 // of titles
	months             = 18
)

// day is a date as days since 1970-01-01; 0 is none.
type day int32

func dayOf(t time.Time) day { return day(t.Unix() / 86400) }

func (d day) time() time.Time { return time.Unix(int64(d)*86400, 0).UTC() }

func (d day) month() int { // months since FirstDay's
	t := d.time()
	return (t.Year()-FirstDay.Year())*12 + int(t.Month()) - int(FirstDay.Month())
}

type person struct {
	id           int64
	entity       int
	level        int
	hired, left  day
	withoutRate  bool
	first, last  string
	desk         [4]int // indexes of the projects of the month
	deskMonth    int
	deskOccupied int
}

type engagement struct { // a project of the seed
	id         int64
	customer   int64
	entity     int
	start, end day
	open       bool // no end yet
	fixed      bool
	price      int64 // of an hour at level 0, or of a month at a fixed fee; 1/10000 of the currency
}

type seed struct {
	rnd      *rand.Rand
	people   []person
	projects []engagement
	byEntity [][]int // projects
	hours    [][months][levels]int32
}

func newSeed() *seed {
	s := &seed{rnd: rand.New(rand.NewPCG(20260630, 0x7a11)), byEntity: make([][]int, len(entities))}
	s.makePeople()
	s.makeProjects()
	s.hours = make([][months][levels]int32, len(s.projects))
	return s
}

func (s *seed) makePeople() {
	first, today := dayOf(FirstDay), dayOf(Today)
	for e, ent := range entities {
		for i := range ent.people {
			p := person{
				id: int64(len(s.people) + 1), entity: e, level: s.level(), deskMonth: -1,
				first: firstNames[s.rnd.IntN(len(firstNames))], last: lastNames[s.rnd.IntN(len(lastNames))],
			}
			switch {
			case i >= ent.people-1 && e < 2: // hired so lately that payroll has no rate yet
				p.hired, p.withoutRate, p.level = today-day(12+3*e), true, 1
			case s.rnd.IntN(5) == 0: // joined within the eighteen months
				p.hired = first + day(s.rnd.IntN(480))
			default:
				p.hired = first - day(30+s.rnd.IntN(3000))
			}
			if s.rnd.IntN(12) == 0 && !p.withoutRate {
				p.left = max(p.hired, first) + day(90+s.rnd.IntN(420))
				if p.left >= today {
					p.left = 0
				}
			}
			s.people = append(s.people, p)
		}
	}
}

func (s *seed) level() int { return min(s.rnd.IntN(levels), s.rnd.IntN(levels)) }

func (s *seed) makeProjects() {
	first, today := dayOf(FirstDay), dayOf(Today)
	for e := range entities {
		for i := range projectsPerEntity {
			p := engagement{
				id: int64(len(s.projects) + 1), entity: e, fixed: i%4 == 3,
				customer: int64(e*customersPerEntity + s.rnd.IntN(customersPerEntity) + 1),
			}
			if i < projectsPerEntity/3 { // the long ones: there is always work
				p.start, p.open = first-day(s.rnd.IntN(300)), true
			} else {
				p.start = first + day(s.rnd.IntN(500))
				p.end = p.start + day(60+s.rnd.IntN(300))
				p.open = p.end > today
			}
			p.price = int64(900+25*s.rnd.IntN(40)) * 1000
			if p.fixed {
				p.price = int64(20+s.rnd.IntN(60)) * 1000 * 10000
			}
			s.byEntity[e] = append(s.byEntity[e], len(s.projects))
			s.projects = append(s.projects, p)
		}
	}
}

// billRate is the price of an hour, 1/10000 of the currency; fixed-fee
// projects carry the list price.
func (p *engagement) billRate(level int) int64 {
	base := p.price
	if p.fixed {
		base = 1_150_000
	}
	return base + int64(level)*base/5
}

// fill writes all tables and counts their rows.
func (s *seed) fill(ctx context.Context, conn *pgconn.PgConn) (map[string]int64, error) {
	rows := map[string]int64{}
	invoices, lines := &rowWriter{}, &rowWriter{}
	steps := []struct {
		table string
		write func(w *rowWriter) bool // false: no more
	}{
		{"legal_entity", once(s.legalEntities)},
		{"customer", once(s.customers)},
		{"project", once(s.projectRows)},
		{"task", once(s.tasks)},
		{"employee", once(s.employees)},
		{"cost_rate", once(s.costRates)},
		{"time_entry", s.timeEntries()},
		{"invoice", func(w *rowWriter) bool { s.invoices(invoices, lines); w.buf = invoices.buf; return false }},
		{"invoice_line", func(w *rowWriter) bool { w.buf = lines.buf; return false }},
	}
	for _, step := range steps {
		tag, err := conn.CopyFrom(ctx, &rowReader{write: step.write}, "COPY "+step.table+" FROM STDIN")
		if err != nil {
			return nil, fmt.Errorf("seeding the PSA's %s: %w", step.table, err)
		}
		rows[step.table] = tag.RowsAffected()
	}
	return rows, nil
}

func once(f func(*rowWriter)) func(*rowWriter) bool {
	return func(w *rowWriter) bool { f(w); return false }
}

func (s *seed) legalEntities(w *rowWriter) {
	for _, e := range entities {
		w.int(int64(e.id)).text(e.code).text(e.name).text(e.currency).end()
	}
}

func (s *seed) customers(w *rowWriter) {
	for i := range customersPerEntity * len(entities) {
		e := entities[i/customersPerEntity]
		name := customerName(i)
		w.int(int64(i+1)).text(fmt.Sprintf("C%05d", i+1)).text(name).text(e.code).text(e.country).
			text(fmt.Sprintf("%s%09d", e.country, 100_000_007*(i+1)%1_000_000_000)).
			text(fmt.Sprintf("accounts@c%05d.example", i+1)).bool(i%13 != 12).stamp(dayOf(FirstDay)-90, i).end()
	}
}

func customerName(i int) string {
	return customerFirst[i%len(customerFirst)] + " " + customerSecond[(i/len(customerFirst)*3+i)%len(customerSecond)]
}

func (s *seed) projectRows(w *rowWriter) {
	today := dayOf(Today)
	for i, p := range s.projects {
		e := entities[p.entity]
		status, billing := "active", "time_and_materials"
		if !p.open {
			status = "completed"
		}
		if p.fixed {
			billing = "fixed_fee"
		}
		w.int(p.id).text(fmt.Sprintf("P%05d", p.id)).text(projectName(i, p.customer)).int(p.customer).text(e.code).
			text(e.currency).text(status).text(billing).date(p.start).date(p.end)
		if i%5 == 0 {
			w.null()
		} else {
			w.decimal(int64(200+i*13)*100, 2)
		}
		w.stamp(min(p.start, today-1), i).end()
	}
}

func projectName(i int, customer int64) string {
	return projectWork[i%len(projectWork)] + ", " + customerName(int(customer-1))
}

func (s *seed) tasks(w *rowWriter) {
	for _, p := range s.projects {
		for n, name := range taskNames {
			w.int(p.id).text(taskNumber(n)).text(name).bool(n != len(taskNames)-1).end()
		}
	}
}

func taskNumber(n int) string { return strconv.Itoa((n + 1) * 100) }

func (s *seed) employees(w *rowWriter) {
	for i, p := range s.people {
		w.int(p.id).text(fmt.Sprintf("E%05d", p.id)).text(p.first).text(p.last).text(fmt.Sprintf("e%05d@haldenmoor.example", p.id)).
			text(entities[p.entity].code).text(titles[p.level]).date(p.hired).date(p.left).bool(p.left == 0).
			stamp(max(p.hired, dayOf(FirstDay)-30), i).end()
	}
}

// baseRate is what an hour of a level costs, 1/10000 of the currency.
func baseRate(rnd *rand.Rand, level int) int64 {
	return 520_000 + int64(level)*230_000 + int64(rnd.IntN(1200))*150
}

func (s *seed) costRates(w *rowWriter) {
	id := int64(0)
	first, today := dayOf(FirstDay), dayOf(Today)
	for i := range s.people {
		p := &s.people[i]
		if p.withoutRate {
			continue
		}
		from := min(p.hired, first)
		rate := baseRate(s.rnd, p.level)
		for n := 1 + s.rnd.IntN(4); n > 0; n-- {
			id++
			to := max(from, first) + day(60+s.rnd.IntN(170))
			if n == 1 || to >= today {
				to, n = 0, 1
			}
			w.int(id).int(p.id).date(from).date(to).decimal(rate, 4).text(entities[p.entity].currency).stamp(max(from, first), i).end()
			from = to
			rate += rate * int64(10+s.rnd.IntN(60)) / 1000
		}
	}
}

// timeEntries writes a day of the firm per call.
func (s *seed) timeEntries() func(*rowWriter) bool {
	d, today := dayOf(FirstDay), dayOf(Today)
	id := int64(0)
	return func(w *rowWriter) bool {
		for d.time().Weekday() == time.Saturday || d.time().Weekday() == time.Sunday {
			d++
		}
		for i := range s.people {
			p := &s.people[i]
			if p.hired > d || p.left != 0 && p.left < d || s.rnd.IntN(14) == 0 { // not here, or on leave
				continue
			}
			s.sitDown(p, d)
			quarters := 30 + s.rnd.IntN(7) // of an hour
			for n := 3 + s.rnd.IntN(3); n > 0 && quarters > 0; n-- {
				q := quarters
				if n > 1 {
					q = min(quarters, 1+s.rnd.IntN(quarters/n*2))
				}
				quarters -= q
				id++
				s.entry(w, id, p, d, today, int32(q))
			}
		}
		d++
		return d <= today
	}
}

// sitDown chooses a person's projects of the month.
func (s *seed) sitDown(p *person, d day) {
	m := d.month()
	if p.deskMonth == m {
		return
	}
	p.deskMonth, p.deskOccupied = m, 0
	mine := s.byEntity[p.entity]
	for try := 0; p.deskOccupied < len(p.desk) && try < 40; try++ {
		k := mine[s.rnd.IntN(len(mine))]
		if pr := &s.projects[k]; pr.start <= d && (pr.end == 0 || d <= pr.end) {
			p.desk[p.deskOccupied] = k
			p.deskOccupied++
		}
	}
	if p.deskOccupied == 0 { // the first of each entity never end
		p.desk[0], p.deskOccupied = mine[0], 1
	}
}

func (s *seed) entry(w *rowWriter, id int64, p *person, d, today day, quarters int32) {
	k := p.desk[s.rnd.IntN(p.deskOccupied)]
	pr := &s.projects[k]
	task := s.rnd.IntN(len(taskNames))
	billable := task != len(taskNames)-1
	status, touched := "approved", d+day(1+s.rnd.IntN(6))
	if age := today - d; age < 14 {
		touched = min(touched, today)
		switch n := s.rnd.IntN(100); {
		case age == 0 && n < 70:
			status = "draft"
		case n < 52:
		case n < 76:
			status = "submitted"
		case n < 94:
			status = "draft"
		default:
			status = "rejected"
		}
	} else if s.rnd.IntN(400) == 0 {
		status = "rejected"
	}
	if status == "approved" && billable {
		s.hours[k][d.month()][p.level] += quarters
	}
	w.int(id).int(p.id).int(pr.id).text(taskNumber(task)).date(d).decimal(int64(quarters)*25, 2).bool(billable).text(status)
	switch n := s.rnd.IntN(6); n {
	case 0, 1:
		w.text(noteTexts[s.rnd.IntN(len(noteTexts))])
	default:
		w.null()
	}
	if billable {
		w.decimal(pr.billRate(p.level), 4)
	} else {
		w.null()
	}
	w.stamp(d, int(id)).stamp(touched, int(id)+1).end()
}

// invoices writes the invoices of all months, one per project and month, and
// now and then a credit note in the month after.
func (s *seed) invoices(inv, lines *rowWriter) {
	var id, line int64
	for m := range months {
		first := FirstDay.AddDate(0, m, 0)
		last := dayOf(FirstDay.AddDate(0, m+1, -1))
		for k := range s.projects {
			p := &s.projects[k]
			total, at := int64(0), line
			id++
			add := func(text string, quantity, price, cents int64) {
				line++
				total += cents
				lines.int(line).int(id).int(p.id).text(text+", "+first.Format("January 2006")).decimal(quantity, 2).decimal(price, 4).decimal(cents, 2).end()
			}
			worked := false
			for level, q := range s.hours[k][m] {
				worked = worked || q > 0
				if q > 0 && !p.fixed {
					price := p.billRate(level)
					add(titles[level], int64(q)*25, price, (int64(q)*price+200)/400)
				}
			}
			if p.fixed && worked {
				add("Fixed fee", 100, p.price, p.price/100)
			}
			if line == at {
				id--
				continue
			}
			status, date := "issued", last
			switch {
			case m == months-1 && k%2 == 1: // June is not closed yet
				status, date = "draft", 0
			case id%53 == 0:
				status = "void"
			}
			s.invoice(inv, id, p, "invoice", status, date, last, total)
			if id%29 == 0 && status == "issued" && m+1 < months {
				cents := total / 5
				id++
				line++
				lines.int(line).int(id).int(p.id).text("Goodwill, "+first.Format("January 2006")).decimal(100, 2).decimal(cents*100, 4).decimal(cents, 2).end()
				s.invoice(inv, id, p, "credit_note", "issued", last+day(10), last+day(10), cents)
			}
		}
	}
}

func (s *seed) invoice(w *rowWriter, id int64, p *engagement, kind, status string, date, touched day, cents int64) {
	e := entities[p.entity]
	w.int(id).text(invoiceNumber(kind, id)).int(p.customer).text(e.code).text(kind).text(status).date(date).
		text(e.currency).decimal(cents, 2).stamp(touched, int(id)).end()
}

func invoiceNumber(kind string, id int64) string {
	if kind == "credit_note" {
		return fmt.Sprintf("CN%07d", id)
	}
	return fmt.Sprintf("IN%07d", id)
}

// rowWriter makes rows of COPY's text format (PostgreSQL documentation, COPY,
// "Text Format").
type rowWriter struct {
	buf []byte
	mid bool
}

func (w *rowWriter) sep() {
	if w.mid {
		w.buf = append(w.buf, '\t')
	}
	w.mid = true
}

func (w *rowWriter) end() {
	w.buf = append(w.buf, '\n')
	w.mid = false
}

func (w *rowWriter) null() *rowWriter {
	w.sep()
	w.buf = append(w.buf, '\\', 'N')
	return w
}

func (w *rowWriter) int(v int64) *rowWriter {
	w.sep()
	w.buf = strconv.AppendInt(w.buf, v, 10)
	return w
}

func (w *rowWriter) bool(v bool) *rowWriter {
	w.sep()
	if v {
		w.buf = append(w.buf, 't')
	} else {
		w.buf = append(w.buf, 'f')
	}
	return w
}

func (w *rowWriter) text(v string) *rowWriter {
	w.sep()
	for i := range len(v) {
		switch c := v[i]; c {
		case '\t':
			w.buf = append(w.buf, '\\', 't')
		case '\n':
			w.buf = append(w.buf, '\\', 'n')
		case '\\':
			w.buf = append(w.buf, '\\', '\\')
		default:
			w.buf = append(w.buf, c)
		}
	}
	return w
}

// decimal writes unscaled × 10^-scale, not negative.
func (w *rowWriter) decimal(unscaled int64, scale int) *rowWriter {
	w.sep()
	pow := int64(1)
	for range scale {
		pow *= 10
	}
	w.buf = strconv.AppendInt(w.buf, unscaled/pow, 10)
	w.buf = append(w.buf, '.')
	for frac := unscaled % pow; pow > 1; {
		pow /= 10
		w.buf = append(w.buf, byte('0'+frac/pow%10))
	}
	return w
}

func (w *rowWriter) date(d day) *rowWriter {
	if d == 0 {
		return w.null()
	}
	w.sep()
	w.buf = appendDate(w.buf, d)
	return w
}

func appendDate(b []byte, d day) []byte {
	y, m, dd := d.time().Date()
	b = append(b, byte('0'+y/1000), byte('0'+y/100%10), byte('0'+y/10%10), byte('0'+y%10), '-')
	b = append(b, byte('0'+int(m)/10), byte('0'+int(m)%10), '-')
	return append(b, byte('0'+dd/10), byte('0'+dd%10))
}

// stamp is a moment of the working day d, told apart by n.
func (w *rowWriter) stamp(d day, n int) *rowWriter {
	w.sep()
	w.buf = appendDate(w.buf, d)
	sec := 8*3600 + n*7919%(10*3600)
	w.buf = append(w.buf, ' ', byte('0'+sec/36000), byte('0'+sec/3600%10), ':', byte('0'+sec/600%6), byte('0'+sec/60%10), ':', byte('0'+sec/10%6), byte('0'+sec%10), '.')
	us := n * 104729 % 1_000_000
	for pow := 100_000; pow > 0; pow /= 10 {
		w.buf = append(w.buf, byte('0'+us/pow%10))
	}
	w.buf = append(w.buf, '+', '0', '0')
	return w
}

// rowReader feeds COPY from a function that writes some rows per call.
type rowReader struct {
	write func(*rowWriter) bool
	w     rowWriter
	at    int
	done  bool
}

func (r *rowReader) Read(p []byte) (int, error) {
	for r.at == len(r.w.buf) {
		if r.done {
			return 0, io.EOF
		}
		r.w.buf, r.at = r.w.buf[:0], 0
		r.done = !r.write(&r.w)
	}
	n := copy(p, r.w.buf[r.at:])
	r.at += n
	return n, nil
}
