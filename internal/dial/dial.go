// Package dial opens connections that do not outlive their network. A peer that
// is gone without a word, since its host was cut off or a firewall forgot the
// connection, is noticed within a minute: by default TCP sends again for a
// quarter of an hour, and reads that wait for what never comes look like work.
package dial

import (
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Patience is how long a peer may leave what was sent to it without any answer
// of its kernel. What its process does meanwhile does not count.
const Patience = time.Minute

// dialer asks an idle peer four times within Patience.
var dialer = net.Dialer{
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: Patience / 4, Interval: Patience / 4, Count: 3},
	Control:         control,
}

// Postgres makes connections of cfg be opened so.
func Postgres(cfg *pgconn.Config) { cfg.DialFunc = dialer.DialContext }
