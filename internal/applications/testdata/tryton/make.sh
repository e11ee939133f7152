# Makes Tryton's tables in the database that PGDATABASE names.
set -eu
export TRYTONPASSFILE=/tmp/password
echo unused >$TRYTONPASSFILE
trytond-admin -d "$PGDATABASE" --all --email admin@example.com --language en
trytond-admin -d "$PGDATABASE" --activate-dependencies -u timesheet_cost project_invoice
