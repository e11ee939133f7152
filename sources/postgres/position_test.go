package postgres

import (
	"testing"
)

// Lost if this fails: after 4 billion transactions the last one that was
// captured is one that the server has not given out, and the source stops; or an
// old one is held for it.
func TestFullXID(t *testing.T) {
	const epoch = 1 << 32
	for _, c := range []struct {
		xid  uint32
		near decimal
		want decimal
	}{
		{700, 705, 700},
		{710, 705, 710},
		{3, epoch - 1, epoch + 3}, // it has just begun anew
		{epoch - 2, epoch + 3, epoch - 2},
		{5, 7*epoch + 9, 7*epoch + 5},
		{4_000_000_000, 1000, 4_000_000_000}, // before the first epoch there is none
	} {
		if got := fullXID(c.xid, c.near); got != c.want {
			t.Errorf("%d near %d is %d, want %d", c.xid, c.near, got, c.want)
		}
	}
}

// Lost if this fails: after an upgrade a source does not know how far it was.
func TestTokensOfEachVersion(t *testing.T) {
	for _, token := range []string{
		`{"system_identifier":"7711381119221907572","timeline":1,"slot":"tallywire_psa","lsn":"16/B374D848"}`,
		`{"system_identifier":"7711381119221907572","timeline":1,"slot":"tallywire_psa","lsn":"16/B374D848","state":"loading","attempt":2}`,
		`{"system_identifier":"7711381119221907572","timeline":1,"slot":"tallywire_psa","lsn":"16/B374D848","tx":{"final_lsn":"16/B374D900","delivered":4096,"hash":"00c0ffee00c0ffee","binary":true}}`,
		`{"system_identifier":"7711381119221907572","timeline":1,"slot":"tallywire_psa","lsn":"16/B374D848","xid":"4294967299"}`,
	} {
		p, err := parsePosition([]byte(token))
		if err != nil {
			t.Fatal(err)
		}
		if again := string(p.resume()); again != token {
			t.Errorf("%s is written as %s", token, again)
		}
	}
}
