# What a firm enters in Tryton before anybody captures it, by Tryton's own client
# library: its people and what they cost, time, and invoices in all states.
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

year = set_fiscalyear_invoice_sequences(create_fiscalyear(company))
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
        invoice.invoice_date = year.start_date
    for quantity in quantities:
        line = invoice.lines.new(account=revenue, description="Survey", quantity=quantity)
        line.unit_price = Decimal("33.3333")
    invoice.save()
    for button in clicks:
        invoice.click(button)
