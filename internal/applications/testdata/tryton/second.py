# What the firm enters while it is captured: new, changed and deleted. It stops
# twice, until the test has done what it has to do.
import datetime as dt
import os
from decimal import Decimal

import psycopg2
from proteus import Model, Wizard, config

at = config.set_trytond(os.environ["TRYTOND_DATABASE_URI"])
at.skip_warning = True
Line, Employee, Price, Invoice, Project = (
    Model.get(n) for n in ["timesheet.line", "company.employee", "company.employee_cost_price", "account.invoice", "project.work"]
)
gates = psycopg2.connect(os.environ["TRYTOND_DATABASE_URI"])
gates.autocommit = True


def stop(number):
    gates.cursor().execute("SELECT pg_advisory_lock(%s)", [number])


employee = Employee.find()[0]

first = Line.find([], order=[("id", "ASC")])
copies = [
    {
        "company": line.company.id, "employee": line.employee.id, "work": line.work.id, "date": line.date + dt.timedelta(days=7),
        "duration": line.duration + dt.timedelta(seconds=i), "description": line.description,
    }
    for i, line in enumerate(first[:1000] + first[-200:])
]
Line._proxy.create(copies, at.context)
for line in first[:20]:
    line.duration += dt.timedelta(minutes=20)
    line.description = "changed"
    line.save()
for line in first[20:30]:
    line.delete()

stop(1)
east, quay, road, mill, cellar, count, soundings, harbour = (
    Project.find([("name", "=", name)])[0]
    for name in ["East arm", "Quay", "Ring “road”", "Old mill; 50 %", "Cellar", "Count", "Soundings", "Harbour wall, 2026"]
)
east.parent = mill  # with its task, its hours and what was invoiced of them
east.save()
quay.parent = road  # is no project of its own any more
quay.save()
soundings.type = "project"  # is one now
soundings.parent = None
soundings.save()
stop(2)

employee.cost_prices.new(date=dt.date(2026, 10, 1), cost_price=Decimal("51.3333"))
employee.save()
price = Price.find([("cost_price", "=", Decimal("1234.5"))])[0]
price.cost_price = Decimal("1234.5678")
price.save()
Price.find([("cost_price", "=", Decimal("0"))])[0].delete()


def entered(number):
    invoice, = Invoice.find([("reference", "=", "entered %d" % number)])
    return invoice


entered(1).click("post")  # was validated
draft = entered(3)
draft.invoice_date = entered(1).invoice_date
draft.save()
draft.click("post")
entered(5).delete()
entered(2).click("cancel")  # was posted: it keeps its number
entered(6).click("cancel")  # was a draft
credit = Wizard("account.invoice.credit", [entered(4)])
credit.form.with_refund = False
credit.execute("credit")
for note in Invoice.find([("state", "=", "draft"), ("reference", "=", None)]):
    note.invoice_date = entered(1).invoice_date
    note.save()
    note.click("post")


def invoiced(project, day):
    project.click("invoice")
    invoice, = Invoice.find([("state", "=", "draft"), ("description", "=", project.name)])
    invoice.invoice_date = entered(1).invoice_date + dt.timedelta(days=day)
    invoice.save()
    invoice.click("post")
    return invoice


cellar.progress = 1
cellar.save()
count.progress = 0.75
count.save()
mill.name = "New mill"
mill.save()
invoiced(road, 1)
invoiced(harbour, 40)
invoiced(mill, 41)
of = {project: Invoice.find([("reference", "=", project)])[0] for project in ["Old mill; 50 %", "Ring “road”"]}
credit = Wizard("account.invoice.credit", [of["Old mill; 50 %"]])
credit.form.with_refund = False
credit.execute("credit")
note, = Invoice.find([("state", "=", "draft"), ("description", "=", "Old mill; 50 %")])
note.invoice_date = entered(1).invoice_date + dt.timedelta(days=60)
note.save()
note.click("post")
of["Ring “road”"].click("cancel")  # was posted
