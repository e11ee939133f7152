-- Tables of the firm's own beside Redmine's, which knows neither rates nor
-- invoices. A line names its project by the identifier that people know, and may
-- be entered before the project is.
CREATE SCHEMA finance;
CREATE TABLE finance.rates (
  login text, valid_from date, rate numeric(12,4) NOT NULL, currency text NOT NULL,
  PRIMARY KEY (login, valid_from)
);
CREATE TABLE finance.invoices (
  number text PRIMARY KEY, customer text NOT NULL, kind text NOT NULL, status text NOT NULL, issued_on date,
  currency text NOT NULL, total numeric(14,2) NOT NULL, changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE finance.invoice_lines (
  invoice text REFERENCES finance.invoices, line integer, project text NOT NULL, description text,
  quantity numeric(16,6) NOT NULL, unit_price numeric(12,4) NOT NULL, amount numeric(14,2) NOT NULL,
  PRIMARY KEY (invoice, line)
);
