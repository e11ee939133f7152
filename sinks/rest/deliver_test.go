package rest

import (
	"testing"

	"github.com/tallywire/tallywire/internal/demo/erp"
)

// TestDeliversInOrderOfDependency: one batch with everything in the wrong order
// arrives whole, as it was given.
func TestDeliversInOrderOfDependency(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(10)...))
	r.once(10)
	all := r.erp.Records()
	if n := len(all["customers"]) + len(all["employees"]) + len(all["projects"]); n != 9 {
		t.Fatalf("%d master records", n)
	}
	var got map[string]string
	for _, x := range all["timeRegistrationEntries"] {
		if x.Fields["externalReference"] == "ps.time_entry/1" {
			got = x.Fields
		}
	}
	for k, want := range map[string]string{"employeeNumber": "E-002", "jobNumber": "P-002", "customerNumber": "C-002", "jobTaskNumber": "10", "date": "2026-03-02", "quantity": "0.25", "status": "Approved"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if c := all["customers"][0].Fields; c["country"] != "DE" || c["blocked"] != "_x0020_" {
		t.Errorf("customer %v", c)
	}
	if n := r.intents(); n != 0 {
		t.Errorf("%d intents left", n)
	}
}

// TestOnlyApprovedTimeFromGoLiveOn: history or unapproved time in the ledger
// would be billed.
func TestOnlyApprovedTimeFromGoLiveOn(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(0)...))
	r.ok(r.place(entry(11, 1, 1, "status", "draft"), entry(12, 1, 1, "status", "submitted"), entry(13, 1, 1, "status", "rejected"),
		entry(14, 1, 1, "work_date", "2026-02-28"), entry(1, 1, 1, "work_date", "2026-03-01"), gone(entry(15, 1, 1)), entry(2, 1, 1, "status", "draft"), entry(2, 1, 1)))
	r.once(2)
}

// TestUpdatesGoOutAsPatches, and deletes block.
func TestUpdatesGoOutAsPatches(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(1)...))
	r.ok(r.place(customer(1, "name", "First"), customer(1, "name", "Renamed", "number", "C-900"), employee(1, "active", "f"), project(2, 3)))
	all := r.erp.Records()
	find := func(set, number string) map[string]string {
		t.Helper()
		for _, x := range all[set] {
			if x.Fields["number"] == number {
				return x.Fields
			}
		}
		t.Fatalf("no %s %s", set, number)
		return nil
	}
	if got := find("customers", "C-900")["displayName"]; got != "Renamed" {
		t.Errorf("customer is %q", got)
	}
	if got := find("employees", "E-001")["status"]; got != "Inactive" {
		t.Errorf("employee is %q", got)
	}
	if got := find("projects", "P-002")["customerNumber"]; got != "C-003" {
		t.Errorf("project's customer is %q", got)
	}
	if n := len(all["customers"]); n != 3 {
		t.Errorf("%d customers", n)
	}
	r.ok(r.place(gone(customer(1)), gone(employee(2)), gone(project(1, 1))))
	all = r.erp.Records()
	if c, e, p := find("customers", "C-900")["blocked"], find("employees", "E-002")["status"], find("projects", "P-001")["blocked"]; c != "All" || e != "Inactive" || p != "All" {
		t.Errorf("after the deletes: %s %s %s", c, e, p)
	}
	r.ok(r.place(customer(1)))
	all = r.erp.Records()
	if c := find("customers", "C-001")["blocked"]; c != "_x0020_" {
		t.Errorf("a customer that came back is %q", c)
	}
}

// TestApprovedTimeIsFinal: a change behind the back of what was billed comes to
// a person.
func TestApprovedTimeIsFinal(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(3)...))
	fs := r.write(r.place(entry(1, 2, 2, "hours", "9900"), entry(2, 3, 3, "status", "rejected"), gone(entry(3, 1, 1))))
	if len(fs) != 3 {
		t.Fatalf("failures %v", fs)
	}
	for i, f := range fs {
		if f.Index != i || !isCode(f.Err, ErrTimeFinal) || f.WaitsFor != "" {
			t.Errorf("failure %+v", f)
		}
	}
	r.once(3)
	r.ok(r.place(entry(1, 2, 2, "hours", "25"))) // set back
	// Remedy: TW-REST-TIME-FINAL
	r.ok(r.place(entry(4, 1, 1, "hours", "9900"), entry(2, 3, 3, "hours", "50"), entry(3, 1, 1, "hours", "75")))
	r.once(4)
}

// TestResetOfTheGroupPostsNothing: every record comes again from offset 0.
func TestResetOfTheGroupPostsNothing(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	history := r.place(append(firm(20), entry(21, 1, 1, "status", "draft"), entry(21, 1, 1), customer(2, "name", "Later"))...)
	r.ok(history)
	before := r.writes()
	r.restart("two")
	r.ok(history)
	if n := r.writes() - before; n != 0 {
		t.Errorf("the replay made %d writes", n)
	}
	r.once(21)
}

// TestNewTopicsPostNothing: Kafka started over, the firm is read from the
// source again; the ERP had it all.
func TestNewTopicsPostNothing(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(firm(20)...))
	before := r.writes()
	r.newTopics(2)
	r.restart("two")
	r.ok(r.place(append([]record{entry(90, 1, 1, "status", "draft")}, firm(20)...)...))
	if n := r.writes() - before; n != 0 {
		t.Errorf("the new topics made %d writes", n)
	}
	r.ok(r.place(customer(1, "name", "Newer")))
	if n := r.writes() - before; n != 1 {
		t.Errorf("a change after that made %d writes", n)
	}
	r.once(20)
}

// TestRejectedCustomerHoldsWhatDependsOnIt while the rest flows, and all of it
// arrives when the customer is mended.
func TestRejectedCustomerHoldsWhatDependsOnIt(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.erp.SetFaults(erp.Faults{RejectCustomers: []string{"C-002"}})
	all := r.place(firm(9)...)
	fs := r.write(all)
	var parked []placed
	codes := map[string]int{}
	for _, f := range fs {
		p := all[f.Index]
		parked = append(parked, p)
		switch {
		case p.t == customers && isCode(f.Err, ErrRejected) && f.WaitsFor == "":
			codes["customer"]++
		case p.t == projects && isCode(f.Err, ErrWaits) && f.WaitsFor == "ps.customer/2":
			codes["project"]++
		case p.t == entries && isCode(f.Err, ErrWaits) && f.WaitsFor == "ps.project/2":
			codes["time"]++
		default:
			t.Errorf("%s/%s: %v, waits for %q", p.t.Topic, p.key, f.Err, f.WaitsFor)
		}
	}
	if codes["customer"] != 1 || codes["project"] != 1 || codes["time"] != 3 {
		t.Fatalf("parked %v", codes)
	}
	if n := len(r.times()); n != 6 {
		t.Fatalf("%d entries flowed, want 6", n)
	}
	r.erp.SetFaults(erp.Faults{})
	r.ok(parked)
	r.once(9)
}

// TestTwoKeysWithOneNumberAreNotMerged: the second customer must not overwrite
// the first.
func TestTwoKeysWithOneNumberAreNotMerged(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	fs := r.write(r.place(customer(1), customer(2, "number", "C-001")))
	if len(fs) != 1 || !isCode(fs[0].Err, ErrConflict) {
		t.Fatalf("failures %v", fs)
	}
	fs = r.write(r.place(customer(3, "number", "C-001")))
	if len(fs) != 1 || !isCode(fs[0].Err, ErrConflict) {
		t.Fatalf("failures %v", fs)
	}
	r.ok(r.place(customer(2), customer(3))) // Remedy: TW-REST-CONFLICT
	r.ok(r.place(customer(1)))              // it may be the one that was refused
	if n := len(r.erp.Records()["customers"]); n != 3 {
		t.Errorf("%d customers, want 3: %+v", n, r.erp.Records()["customers"])
	}
}

// A record that the far side has no more. If this failed, it would be made anew
// behind the back of whoever took it out, or never again.
func TestRecordThatIsGone(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	r.ok(r.place(customer(1)))
	if _, err := r.pool.Exec(t.Context(), "update tallywire.delivered set external_id = gen_random_uuid()::text"); err != nil {
		t.Fatal(err)
	}
	fs := r.write(r.place(customer(1, "name", "Newer")))
	if len(fs) != 1 || !isCode(fs[0].Err, ErrGone) {
		t.Fatalf("failures %v", fs)
	}
	if _, err := r.pool.Exec(t.Context(), "delete from tallywire.delivered"); err != nil { // Remedy: TW-REST-GONE
		t.Fatal(err)
	}
	r.ok(r.place(customer(1, "name", "Newer")))
	if cs := r.erp.Records()["customers"]; len(cs) != 1 || cs[0].Fields["displayName"] != "Newer" {
		t.Errorf("the customers are %+v", cs)
	}
}

// TestUnknownTopicAndMissingFieldAreRejected alone.
func TestMissingFieldIsRejectedAlone(t *testing.T) {
	r := newRig(t, erp.Options{}, nil)
	fs := r.write(r.place(customer(1, "number", ""), customer(2), record{contract("ps.invoice"), "1", map[string]string{}}))
	if len(fs) != 2 || !isCode(fs[0].Err, ErrRecord) || !isCode(fs[1].Err, ErrRecord) {
		t.Fatalf("failures %v", fs)
	}
	if n := len(r.erp.Records()["customers"]); n != 1 {
		t.Fatalf("%d customers", n)
	}
	r.ok(r.place(customer(1))) // Remedy: TW-REST-RECORD
	if n := len(r.erp.Records()["customers"]); n != 2 {
		t.Fatalf("%d customers", n)
	}
}
