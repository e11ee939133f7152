package history

import (
	"testing"

	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
