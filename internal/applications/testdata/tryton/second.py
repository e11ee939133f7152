# What the firm enters while it is captured: new, changed and deleted.
import datetime as dt
import os
from decimal import Decimal

from proteus import Model, Wizard, config

at = config.set_trytond(os.environ["TRYTOND_DATABASE_URI"])
at.skip_warning = True
Line, Employee, Price, Invoice = (Model.get(n) for n in ["timesheet.line", "company.employee", "company.employee_cost_price", "account.invoice"])
employee = Employee.find()[0]

first = Line.find([], order=[("id", "ASC")])
copies = [
    {
        "company": line.company.id, "employee": line.employee.id, "work": line.work.id, "date": line.date + dt.timedelta(days=7),
        "duration": line.duration + dt.timedelta(seconds=i), "description": line.description,
    }
    for i, line in enumerate(first)
]
Line._proxy.create(copies, at.context)
for line in first[:20]:
    line.duration += dt.timedelta(minutes=20)
    line.description = "changed"
    line.save()
for line in first[20:30]:
    line.delete()

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
draft.invoice_date = entered(0).invoice_date
draft.save()
draft.click("post")
entered(5).delete()
entered(2).click("cancel")  # was posted: it keeps its number
entered(6).click("cancel")  # was a draft
credit = Wizard("account.invoice.credit", [entered(4)])
credit.form.with_refund = False
credit.execute("credit")
for note in Invoice.find([("state", "=", "draft"), ("reference", "=", None)]):
    note.invoice_date = entered(0).invoice_date
    note.save()
    note.click("post")
