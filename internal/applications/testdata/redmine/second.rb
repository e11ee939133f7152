# What the firm enters while it is captured: new, changed and deleted. It stops
# twice, until the test has done what it has to do.
def sql(text)
  ActiveRecord::Base.connection.execute(text)
end
User.current = User.find_by_login("admin")

mill = Project.find("mill")
road = Project.find("ring-road")
TimeEntry.order(:id).limit(300).each_with_index do |e, i|
  TimeEntry.create!(
    project: e.project, user: e.user, author: e.author, activity: e.activity, issue: e.issue, spent_on: e.spent_on + 7,
    hours: e.read_attribute(:hours) + i / 7.0, comments: e.comments
  )
end
old = TimeEntry.order(:id).limit(60).to_a
old[0, 20].each { |e| e.update!(hours: e.read_attribute(:hours) / 3, comments: "") }
old[20, 20].each { |e| e.update!(project: mill, issue: nil) }
old[40, 20].each(&:destroy!)

sql("SELECT pg_advisory_lock(1)")

# A person who leaves is locked; one who is deleted leaves the hours to the
# anonymous user.
User.find_by_login("bo").lock!
User.find_by_login("fay").destroy!
ada = User.find_by_login("ada")
ada.update!(lastname: "Birch-Ash")

mill.update!(name: "New mill", custom_field_values: {1 => "Crane & Sons"})
ada.email_address.update!(address: "ada.birch-ash@example.com")
Project.find("harbour-east").set_parent!(mill) # for another customer
sql("SELECT pg_advisory_lock(2)")

mill.close
road.archive
late = Project.new(identifier: "quay", name: "Quay")
late.enabled_module_names = ["time_tracking"]
late.save!
late.set_parent!(Project.find("harbour"))
TimeEntry.create!(project: late, user: ada, author: ada, activity: TimeEntryActivity.first, hours: 1e-7, spent_on: Date.new(2026, 12, 1))

# The firm's own tables.
sql("INSERT INTO finance.invoices VALUES ('F-1011', 'Crane & Sons', 'invoice', 'issued', '2026-11-30', 'EUR', 1234.56, now()), ('F-1012', 'Crane & Sons', 'credit_note', 'issued', '2026-04-02', 'EUR', 0.07, now())")
sql("INSERT INTO finance.invoice_lines VALUES ('F-1011', 1, 'mill', 'Roof', 12.5, 90, 1125), ('F-1011', 2, 'harbour-east', 'Piles', 1, 109.56, 109.56), ('F-1012', 1, 'harbour-east', NULL, 0.1, 0.7, 0.07)")
sql("UPDATE finance.invoices SET status = 'issued', issued_on = '2026-04-30', changed_at = now() WHERE number = 'F-1005'") # was a draft
sql("UPDATE finance.invoices SET status = 'void', changed_at = now() WHERE number = 'F-1002'")
sql("UPDATE finance.invoices SET issued_on = '2026-06-01', changed_at = now() WHERE number = 'F-1007'") # in another month
sql("UPDATE finance.invoice_lines SET project = 'harbour-east' WHERE invoice = 'F-1001' AND line = 1")
sql("DELETE FROM finance.invoice_lines WHERE invoice = 'F-1008'; DELETE FROM finance.invoices WHERE number = 'F-1008'")
sql("UPDATE finance.rates SET rate = 50.0001 WHERE login = 'di' AND valid_from = '2026-04-15'")
sql("UPDATE finance.rates SET valid_from = '2026-05-16' WHERE login = 'ada' AND valid_from = '2026-06-01'")
sql("INSERT INTO finance.rates VALUES ('cy', '2026-01-15', 61, 'EUR'), ('bo', '2026-09-01', 58.8888, 'EUR')")
