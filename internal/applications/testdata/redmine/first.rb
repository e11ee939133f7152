# What a firm enters in Redmine before anybody captures it, by Redmine's own
# models: projects with a parent, people, and hours as people type them.
User.current = User.find_by_login("admin")

def project(identifier, name, parent = nil)
  p = Project.new(identifier: identifier, name: name)
  p.enabled_module_names = ["issue_tracking", "time_tracking"]
  p.trackers = Tracker.all
  p.save!
  p.set_parent!(parent) if parent
  p
end

# The first custom field is number 1, as the example says.
customer = ProjectCustomField.create!(name: "Customer", field_format: "string", is_filter: true)
works = project("harbour", "Harbour “wall”")
jobs = [works, project("harbour-east", "East arm", works), project("mill", "Old mill; 50 %"), project("ring-road", "Ring road")]

works.update!(custom_field_values: {customer.id => "Harbour Board"})
jobs[2].update!(custom_field_values: {customer.id => "Meadow Ltd"})

people = [["ada", "Ada", "Birch"], ["bo", "Bo", "O'Cedar"], ["cy", "Cy", "Dâle"], ["di", "Di", "Elm"], ["ed", "Ed", "Fir"], ["fay", "Fay", "Gorse"]].map do |login, first, last|
  u = User.new(firstname: first, lastname: last, mail: "#{login}@example.com", language: "en")
  u.login = login
  u.password = u.password_confirmation = "a long password"
  u.save!
  jobs.each { |j| Member.create!(project: j, principal: u, roles: [Role.givable.first]) }
  u
end

issue = Issue.create!(project: works, tracker: Tracker.first, subject: "Survey", author: User.current, status: IssueStatus.first, priority: IssuePriority.first)
# The last four are halves of the last digit that is kept, or beside one.
hours = [0.333333, 1.0 / 3, 7.1, 0.1 + 0.2, 8, 0.25, 2.0 / 3, 7.999999999, 100.0 / 7, "1h20", 0.1234565, 0.1234575, 1.0000005, 2.5000005]
500.times do |i|
  job = jobs[i % jobs.size]
  TimeEntry.create!(
    project: job, user: people[i % 5], author: User.current, activity: TimeEntryActivity.first, hours: hours[i % hours.size],
    spent_on: Date.new(2026, 1, 1) + i % 300, comments: (i % 3 == 0 ? nil : "Entry #{i}: it's “done”\nor not"), issue: (issue if job == works && i % 8 == 0)
  )
end
# She is deleted later: the months in which her hours then wait for a rate are few.
8.times do |i|
  TimeEntry.create!(
    project: jobs[1], user: people.last, author: User.current, activity: TimeEntryActivity.first, hours: 1.0 + i / 9.0,
    spent_on: Date.new(2026, 3, 25) + 2 * i
  )
end
