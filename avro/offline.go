// Offline: a contract's encoder without a registry, to see what it takes.

package avro

import "github.com/tallywire/tallywire/change"

// NewOfflineEncoder makes an Encoder of a contract that registers nothing: what
// it writes names the schema 0, and is for comparing and for finding what would
// be refused. t is the contract's Table or one with the same columns.
func NewOfflineEncoder(c *Contract, t *change.Table) (*Encoder, error) {
	e := &Encoder{table: t, topic: t.Topic}
	return e, e.compileContract(c)
}

// compileContract compiles the fields of a canonical record.
func (e *Encoder) compileContract(c *Contract) error {
	t := e.table
	n, err := parseSchema(c.Schema)
	if err != nil {
		return ErrTable.New("contract of %s: %w", t.Topic, err)
	}
	if e.cols, err = compileFields(n, t); err != nil {
		return err
	}
	if len(e.cols) != len(t.Columns) {
		return ErrTable.New("a row for %s has %d columns, its contract has %d fields", t.Topic, len(t.Columns), len(e.cols))
	}
	e.textKey = true
	return nil
}
