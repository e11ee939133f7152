package join

import "time"

// TellAtOnce has so many be told in one transaction, and none ahead of the left group,
// however busy the machine is.
func (r *Right) TellAtOnce(n int) { r.most, r.patience = n, time.Hour }
