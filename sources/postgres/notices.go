// Notices: what is said of tables whose topics do not hold what they should, in words,
// with what to do.

package postgres

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/obs"
)

// say shows what is missing, and logs what was not before.
func (se *session) say(ms *members) {
	now := ms.notices(se.name, se.cfg.Publication)
	for _, n := range now {
		if !slices.ContainsFunc(ms.said, func(b obs.Notice) bool { return b.Text == n.Text }) {
			se.comp.Log.Warn("tables are not captured whole", "code", n.Code, "what", n.Text, "remedy", n.Remedy)
		}
	}
	ms.said = now
	se.comp.Notices(now...)
}

// notices says what is missing: tables of which the same is in one.
func (ms *members) notices(source, publication string) []obs.Notice {
	type group struct {
		missing
		tables, items []string
	}
	var groups []*group
	add := func(x missing, table, item string) {
		for _, g := range groups {
			if y := g.missing; y.Why == x.Why && y.What == x.What && y.After == x.After && y.Until == x.Until && y.Reloaded == x.Reloaded {
				g.tables, g.items = append(g.tables, table), append(g.items, item)
				return
			}
		}
		groups = append(groups, &group{x, []string{table}, []string{item}})
	}
	for _, x := range ms.all {
		add(x, "publication "+publication, "")
	}
	for id, m := range ms.sorted() {
		for _, x := range m.Missing {
			if m.Load.mends(x) || (x.Why == whyDropped || x.Why == whyLeft) && ms.replaced(m) {
				continue
			}
			add(x, m.String(), ms.items[id])
		}
	}
	var out []obs.Notice
	for _, g := range groups {
		text, remedy := g.says(g.tables, g.items, source, publication)
		out = append(out, obs.Notice{Code: ErrTable.ID, Subjects: g.tables, Text: text, Remedy: remedy, Since: g.At})
	}
	return out
}

// sorted gives all tables in order of name.
func (ms *members) sorted() iter.Seq2[uint32, *member] {
	ids := slices.SortedFunc(maps.Keys(ms.of), func(a, b uint32) int { return cmp.Compare(ms.of[a].String(), ms.of[b].String()) })
	return func(yield func(uint32, *member) bool) {
		for _, id := range ids {
			if !yield(id, ms.of[id]) {
				return
			}
		}
	}
}

// says what is missing of tables, and what is to be done.
// items are the tables as the publication is to list them, "" where that is not known.
func (x *missing) says(tables, items []string, source, publication string) (text, remedy string) {
	of, first := strings.Join(tables, ", "), tables[0]
	when := ""
	if x.After != 0 {
		when = fmt.Sprintf(" after %s", x.After)
	}
	switch {
	case x.Until != 0 && x.After != 0:
		when += fmt.Sprintf(" and before %s", x.Until)
	case x.Until != 0:
		when = fmt.Sprintf(" before %s", x.Until)
	}
	reload := fmt.Sprintf("tallywire reload %s %s", source, strings.Join(tables, " "))
	anew := reload + " reads its rows anew, beside the stream."
	most := reload + " --sweep reads its rows anew, beside the stream, and deletes what was made of rows that are not there any more."
	// since says what is still missing of a table that was read anew.
	since := func(text string) string {
		if x.Reloaded {
			return text + "; its rows were read anew since, and what was deleted meanwhile is still in its topic"
		}
		return text
	}
	leave := fmt.Sprintf("If they are not wanted, leave it out: \"!%s\" in `tables`.", first)
	switch x.Why {
	case whyNew:
		return fmt.Sprintf("%s: the rows that were there when it was published, before %s, are not in its topic", of, x.Until), anew + " " + leave
	case whyOut:
		if x.Until != 0 {
			return since(fmt.Sprintf("%s: the publication did not have it for a time; changes that were committed%s are missing", of, when)), most
		}
		changes := "its changes"
		if x.After != 0 {
			changes = "changes that are committed" + when
		}
		list := "tallywire doctor prints the statement that lists it."
		if !slices.Contains(items, "") {
			list = fmt.Sprintf("Who owns the publication and the tables runs:\nALTER PUBLICATION %s ADD TABLE %s;", pgx.Identifier{publication}.Sanitize(), strings.Join(items, ", "))
		}
		return fmt.Sprintf("%s: is not in publication %q: %s do not come", of, publication, changes),
			fmt.Sprintf("%s\nIts changes come from then on; its rows of before by %s. %s", list, reload, leave)
	case whyAgain:
		return since(fmt.Sprintf("%s: was taken out of the publication and listed again%s; changes that were committed between, if there was a time between, are missing", of, when)), most
	case whyKey:
		if x.Until != 0 {
			return since(fmt.Sprintf("%s: had no key for a time; changes that were committed%s are missing", of, when)), most
		}
		return fmt.Sprintf("%s: has no key, or partitions have none: its changes do not come", of),
			fmt.Sprintf("Give it one: ALTER TABLE … ADD PRIMARY KEY (…), or REPLICA IDENTITY USING INDEX …; then have the publication list it, where it does not, and run %s. %s", reload, leave)
	case whyTopic:
		if x.Until != 0 {
			return since(fmt.Sprintf("%s: could have no topic for a time; changes that were committed%s are missing", of, when)), most
		}
		return x.What + ": its changes do not come", ErrTopic.Remedy
	case whyMoved:
		return fmt.Sprintf("%s: has another topic since some time%s; its rows of before are in topic %s", of, when, x.What), anew + " They stay in the other topic, too."
	case whySecret:
		if x.Until != 0 {
			return since(fmt.Sprintf("%s: was not captured for a time, since it looks as if it held secrets; changes that were committed%s are missing", of, when)), most
		}
		return fmt.Sprintf("%s: %s: changes that are committed%s are not captured", of, x.What, when), ErrSecret.Remedy
	case whyHidden:
		return fmt.Sprintf("%s: column %s is captured otherwise than before%s; rows that were not changed since have it as it was, or not at all", of, x.What, when), anew + " Former records keep it for as long as the topic keeps them."
	case whyWhere:
		return fmt.Sprintf("%s: the publication has another condition than is configured now (%s)", of, cmp.Or(x.What, "none")),
			fmt.Sprintf("Who owns the publication runs:\nBEGIN; ALTER PUBLICATION %[1]s DROP TABLE …; ALTER PUBLICATION %[1]s ADD TABLE %[2]s; COMMIT\nThen %[3]s", pgx.Identifier{publication}.Sanitize(), strings.Join(items, ", "), most)
	case whyAltered:
		return fmt.Sprintf("%s: was altered%s: if it left out an operation meanwhile, such changes of all tables are missing", of, when), "If it did, start the source over (docs/recovery.md)."
	case whyDropped:
		return fmt.Sprintf("%s: was dropped%s; its rows stay in its topic, and in what was made of them", of, when),
			fmt.Sprintf("Where another table has its name now: %s To keep its rows as they are, leave it out: \"!%s\" in `tables`.", most, first)
	case whyLeft:
		switch {
		case x.Until != 0:
			return since(fmt.Sprintf("%s: had another name for a time; changes that were committed%s are missing", of, when)), most
		case slices.Contains(tables, x.What):
			return fmt.Sprintf("%s: is a partition of another table now, or no table: changes that are committed%s do not come", of, when), leave
		}
		return fmt.Sprintf("%s: is %s now, which `tables` does not match: changes that are committed%s do not come", of, x.What, when), "Give it its name back, or have `tables` match the new one, and reload it then. " + leave
	case whyRenamed:
		if x.Reloaded {
			return fmt.Sprintf("%s: was renamed from %s%s; the topic of that name keeps its rows of before", of, x.What, when), "Where that matters, start the source over (docs/recovery.md)."
		}
		return fmt.Sprintf("%s: was renamed from %s%s; its rows of before are in the topic of that name", of, x.What, when), anew + " They stay in the other topic, too."
	case whyColumn:
		return fmt.Sprintf("%s: column %s was added with a default%s; rows that were not changed since do not have it in the topic", of, x.What, when), anew
	case whyFilter:
		if x.Reloaded {
			return fmt.Sprintf("%s: the publication has another row filter since some time%s; rows that it leaves out are still in its topic", of, when), most
		}
		return fmt.Sprintf("%s: the publication has another row filter since some time%s; rows that the former one left out, and were not changed since, are not in its topic", of, when), most
	case whyAttached:
		return fmt.Sprintf("%s: partition %s was attached%s; the rows that it had by then are not in the topic", of, x.What, when), anew
	case whyReplaced:
		return since(fmt.Sprintf("%s: another table has that name%s; rows of the former one are still in its topic", of, when)), most
	case whyRewritten:
		return since(fmt.Sprintf("%s: partition %s has another file%s: it was emptied by itself, or rewritten; rows that it had may still be in the topic", of, x.What, when)), most
	case whyPartition:
		return fmt.Sprintf("%s: partition %s was detached or dropped%s; its rows stay in the topic, and in what was made of them", of, x.What, when), "Where they are to go: " + most
	}
	return fmt.Sprintf("%s: %s%s", of, x.Why, when), most
}
