package join

// TellAtOnce has so many be told in one transaction.
func (r *Right) TellAtOnce(n int) { r.most = n }
