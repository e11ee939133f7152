# What the firm enters while it is captured: new, changed and deleted.
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

# A person who leaves is locked; one who is deleted leaves the hours to the
# anonymous user.
User.find_by_login("bo").lock!
User.find_by_login("ed").destroy!
ada = User.find_by_login("ada")
ada.update!(lastname: "Birch-Ash")

mill.update!(name: "New mill", custom_field_values: {1 => "Crane & Sons"})
ada.email_address.update!(address: "ada.birch-ash@example.com")
mill.close
road.archive
late = Project.new(identifier: "quay", name: "Quay")
late.enabled_module_names = ["time_tracking"]
late.save!
late.set_parent!(Project.find("harbour"))
TimeEntry.create!(project: late, user: ada, author: ada, activity: TimeEntryActivity.first, hours: 1e-7, spent_on: Date.new(2026, 12, 1))
