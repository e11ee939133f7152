# Makes Redmine's tables in the database that PGDATABASE names.
set -eu
mkdir -p /var/log/redmine/default /var/cache/redmine/default/tmp
cd /usr/share/redmine
bundle exec rake db:migrate
bundle exec rake redmine:load_default_data # in a process that knows the tables
