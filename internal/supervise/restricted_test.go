package supervise

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/internal/config"
	_ "github.com/tallywire/tallywire/transforms/mapping"
)

// Shown if this fails: parked rates, since nobody knows that they are rates.
func TestWhatIsRestricted(t *testing.T) {
	cfg, err := config.Parse("test.yml", []byte(`
encryption: {keys: [env:KEY]}
transforms:
  canonical:
    type: map
    topics:
      - {from: hcm.public.rate, to: ps.cost_rate, key: "hcm-{id}"}
      - {from: hcm.public.rate, to: ps.resource, key: "rate-{id}"}
      - {from: psa.public.person, to: ps.resource, key: "psa-{id}"}
`), config.Options{Env: func(string) (string, bool) { return base64.StdEncoding.EncodeToString(make([]byte, 32)), true }})
	if err != nil {
		t.Fatal(err)
	}
	env := Bare(cfg)
	if _, err := Build(env, cfg); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(slices.Sorted(maps.Keys(env.Restricted)), " "); got != "hcm.public.rate ps.cost_rate ps.time_entry_costed" {
		t.Errorf("restricted are %s", got)
	}
	if env.Seal == nil {
		t.Error("the key is not used")
	}
}
