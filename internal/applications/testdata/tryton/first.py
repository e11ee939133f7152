# What a firm enters in Tryton before anybody captures it, by Tryton's own client
# library: its people and what they cost, projects, time, and invoices in all states.
import datetime as dt
import os
from decimal import Decimal

from proteus import Model, config
from trytond.modules.account.tests.tools import create_chart, create_fiscalyear, get_accounts
from trytond.modules.account_invoice.tests.tools import set_fiscalyear_invoice_sequences
from trytond.modules.company.tests.tools import create_company, get_company

at = config.set_trytond(os.environ["TRYTOND_DATABASE_URI"])
at.skip_warning = True
Party, Currency = Model.get("party.party"), Model.get("currency.currency")
euro = Currency(name="Euro", symbol="€", code="EUR", numeric_code="978", rounding=Decimal("0.01"))
euro.rates.new(date=dt.date(2020, 1, 1), rate=Decimal("1"))
euro.save()
dollar = Currency(name="Dollar", symbol="$", code="USD", numeric_code="840", rounding=Decimal("0.01"))
dollar.rates.new(date=dt.date(2020, 1, 1), rate=Decimal("1.25"))
dollar.save()
firm = Party(name="Quayside Surveyors")
firm.save()
create_company(firm, euro)
company = get_company()
company.cancel_invoice_out = True
company.save()

Employee = Model.get("company.employee")
for name, prices in [
    ("Ada Birch", [("2025-01-01", "45.5"), ("2026-01-01", "47.25"), ("2026-07-01", "48.0001")]),
    ("Bo Cedar", [("2025-03-01", "0")]),
    ("Cy Dale", [("2025-01-01", "99.9999"), ("2025-01-02", "1234.5")]),
    ("Di Elm", []),
]:
    party = Party(name=name)
    party.save()
    employee = Employee(party=party, company=company)
    for day, price in prices:
        employee.cost_prices.new(date=dt.date.fromisoformat(day), cost_price=Decimal(price))
    employee.save()

Work = Model.get("timesheet.work")
for name in ["Harbour wall", "Old mill", "Ring road, north"]:
    Work(name=name, company=company).save()

durations = [
    dt.timedelta(minutes=20), dt.timedelta(hours=1), dt.timedelta(hours=7, minutes=6), dt.timedelta(seconds=1), dt.timedelta(seconds=59),
    dt.timedelta(seconds=3599), dt.timedelta(hours=30), dt.timedelta(minutes=50), dt.timedelta(hours=2, seconds=7),
    # Halves of the last digit that is kept.
    dt.timedelta(microseconds=1800), dt.timedelta(microseconds=5400), dt.timedelta(hours=1, microseconds=9000),
]
people, works = [e.id for e in Employee.find()], [w.id for w in Work.find()]
lines = [
    {
        "company": company.id, "employee": people[i % len(people)], "work": works[i % len(works)], "duration": durations[i % len(durations)],
        "date": dt.date(2026, 1, 1) + dt.timedelta(days=i % 300), "description": None if i % 4 == 0 else "Plan “%d”, 'quoted'; 50%% done" % i,
    }
    for i in range(1000)
]
Model.get("timesheet.line")._proxy.create(lines, at.context)

year = set_fiscalyear_invoice_sequences(create_fiscalyear(company, (dt.date(2026, 1, 1), dt.date(2026, 12, 31))))
year.click("create_period")
create_chart(company)
revenue = get_accounts(company)["revenue"]
Invoice = Model.get("account.invoice")
for number, (customer, currency, quantities, clicks) in enumerate([
    ("Crane & Sons", euro, [3, 0.5], ["post"]),
    ("Crane & Sons", euro, [10], ["validate_invoice"]),
    ("Meadow Ltd", dollar, [1, 1, 7], ["post"]),
    ("Meadow Ltd", euro, [2], []),
    ("Meadow Ltd", euro, [4], ["post"]),
    ("Crane & Sons", euro, [5], []),
    ("Meadow Ltd", euro, [6], []),
]):
    party = (Party.find([("name", "=", customer)]) or [Party(name=customer)])[0]
    party.save()
    invoice = Invoice(type="out", party=party, currency=currency, reference="entered %d" % number)
    if clicks:
        # Numbers follow dates: what is posted later is dated after all others.
        invoice.invoice_date = year.start_date + dt.timedelta(days=0 if "post" in clicks else 60)
    for quantity in quantities:
        line = invoice.lines.new(account=revenue, description="Survey", quantity=quantity)
        line.unit_price = Decimal("33.3333")
    invoice.save()
    for button in clicks:
        invoice.click(button)

# Projects: works in a tree, invoiced by time, by effort and by progress.
hour, = Model.get("product.uom").find([("name", "=", "Hour")])
category = Model.get("product.category")(name="Services", accounting=True, account_revenue=revenue)
category.save()
template = Model.get("product.template")(name="Survey", type="service", default_uom=hour, list_price=Decimal("90"), account_category=category)
template.save()
service, = template.products
parties = {name: Party.find([("name", "=", name)])[0] for name in ["Crane & Sons", "Meadow Ltd"]}
Project = Model.get("project.work")


def work(name, parent=None, kind="task", price="0", **values):
    made = Project(name=name, type=kind, company=company, parent=parent, product=service, timesheet_available=True)
    made.list_price = Decimal(price)
    for field, value in values.items():
        setattr(made, field, value)
    made.save()
    return made


harbour = work("Harbour wall, 2026", kind="project", price="95.1234", party=parties["Crane & Sons"], project_invoice_method="timesheet")
east = work("East arm", harbour, kind="project", price="101.01", party=parties["Crane & Sons"], project_invoice_method="timesheet")
mill = work("Old mill; 50 %", kind="project", party=parties["Meadow Ltd"], project_invoice_method="effort")
road = work("Ring “road”", kind="project", party=parties["Meadow Ltd"], project_invoice_method="progress")
quay = work("Quay", kind="project", project_invoice_method="manual")
tasks = [
    harbour, work("Soundings", harbour, price="88.8888"), east, work("Piles", east, price="77.7777"),
    work("Roof", mill, price="80.005", effort_duration=dt.timedelta(hours=10, minutes=10), progress=1),
    work("Cellar", mill, price="81.5", effort_duration=dt.timedelta(hours=7), progress=0.5),
    work("Count", road, price="71.3333", effort_duration=dt.timedelta(hours=40), progress=0.25),
    quay,
]
booked = [t.timesheet_works[0].id for t in tasks]
ids = {e.party.name: e.id for e in Employee.find()}
lines = []
for i in range(800):
    who = "Ada Birch" if i // 8 % 2 else "Cy Dale"
    if booked[i % 8] == booked[-1] and 31 <= i % 300 < 59:
        who = "Bo Cedar"
    lines.append({
        "company": company.id, "employee": ids[who], "work": booked[i % 8], "duration": durations[i % len(durations)],
        "date": dt.date(2026, 1, 1) + dt.timedelta(days=i % 300),
    })
Model.get("timesheet.line")._proxy.create(lines, at.context)

for project, day in [(harbour, 30), (mill, 31), (road, 58)]:
    project.click("invoice")
    invoice, = Invoice.find([("state", "=", "draft"), ("description", "=", project.name)])
    invoice.reference = project.name
    invoice.invoice_date = year.start_date + dt.timedelta(days=day)
    invoice.save()
    invoice.click("post")
