// contracts.go: what the canonical topics hold.

package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/config"
)

func (a *app) contractsCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "contracts",
		Short: "List, show, check and register what the canonical topics hold",
		Long: `A contract says what a canonical topic holds: an Avro schema whose fields have
an owner, a sensitivity and, where it applies, a closed list of values, the
field of an amount's currency, and the entity that an id is of. A pack of them
is built in; the directories that "contracts" of the configuration names add
entities, and fields that may be null.`,
	}
	list := &cobra.Command{
		Use: "list", Short: "List the contracts", Args: none,
		Example: "  tallywire contracts list\n  tallywire contracts list -o json | jq -r '.[].topic'",
		RunE:    func(*cobra.Command, []string) error { return a.listContracts() },
	}
	var asAvro bool
	show := &cobra.Command{
		Use: "show TOPIC", Short: "Show the fields of a contract", Args: exactly(1, "one TOPIC"),
		Example: "  tallywire contracts show ps.time_entry\n  tallywire contracts show ps.project --avro > contracts/engagement.avsc   # one to start from",
		RunE:    func(_ *cobra.Command, args []string) error { return a.showContract(args[0], asAvro) },
	}
	show.Flags().BoolVar(&asAvro, "avro", false, "print the Avro schema")
	check := &cobra.Command{
		Use: "check [DIR...]", Short: "Check contracts without a configuration, or those of the configuration",
		Example: "  tallywire contracts check contracts/      # as in CI\n  tallywire contracts check",
		RunE:    func(_ *cobra.Command, dirs []string) error { return a.checkContracts(dirs) },
	}
	c.AddCommand(list, show, check)
	c.AddCommand(a.schemaCmds()...)
	return c
}

// catalogue is that of the configuration or, where there is none, the pack.
func (a *app) catalogue() (avro.Catalogue, error) {
	if a.file == "" && os.Getenv("TALLYWIRE_CONFIG") == "" && !exists(ownFile) {
		return avro.Pack()
	}
	cfg, err := config.Load(a.configFile(), config.Options{Static: true})
	if err != nil {
		return nil, err
	}
	return avro.LoadCatalogue(cfg.ContractDirs()...)
}

func (a *app) listContracts() error {
	all, err := a.catalogue()
	if err != nil {
		return err
	}
	type row struct {
		Topic  string `json:"topic"`
		Fields int    `json:"fields"`
		Owner  string `json:"owner"`
		From   string `json:"from"`
		Doc    string `json:"doc"`
	}
	var rows []row
	for _, t := range all.Topics() {
		c := all[t]
		rows = append(rows, row{t, len(c.Fields), c.Owner, cmp.Or(c.File, "built in"), c.Doc})
	}
	return a.print(rows, func(w io.Writer) {
		fmt.Fprint(w, "TOPIC\tFIELDS\tOWNER\tFROM\tWHAT IT IS\n")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", r.Topic, r.Fields, r.Owner, r.From, r.Doc)
		}
	})
}

func (a *app) showContract(topic string, asAvro bool) error {
	all, err := a.catalogue()
	if err != nil {
		return err
	}
	c := all[topic]
	if c == nil {
		return noContract(topic, all)
	}
	if asAvro {
		_, err := fmt.Fprintln(a.out, strings.TrimSpace(c.Schema))
		return err
	}
	type row struct {
		Name        string           `json:"name"`
		Type        string           `json:"type"`
		Null        bool             `json:"null"`
		Key         bool             `json:"key,omitempty"`
		Sensitivity avro.Sensitivity `json:"sensitivity"`
		Owner       string           `json:"owner"`
		Values      []string         `json:"values,omitempty"`
		Currency    string           `json:"currency,omitempty"`
		References  string           `json:"references,omitempty"`
		Fallback    string           `json:"fallback,omitempty"`
		Default     *string          `json:"default,omitempty"` // its canonical text
		Doc         string           `json:"doc"`
	}
	rows := make([]row, len(c.Fields))
	for i, f := range c.Fields {
		col := &c.Table.Columns[i]
		rows[i] = row{f.Name, col.Type, col.Nullable, slices.Contains(c.Table.Key, i), f.Sensitivity, f.Owner, f.Values, f.Currency, f.References, f.Fallback, nil, f.Doc}
		if f.Default != nil {
			text := f.Default.String()
			rows[i].Default = &text
		}
	}
	return a.print(rows, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n\n", c.Topic, c.Doc)
		fmt.Fprint(w, "FIELD\tTYPE\tNULL\tSENSITIVITY\tMORE\tWHAT IT IS\n")
		for _, r := range rows {
			null, more := "never", []string{}
			if r.Null {
				null = "may be"
			}
			if r.Key {
				more = append(more, "key")
			}
			if r.References != "" {
				more = append(more, "of "+r.References)
			}
			if r.Currency != "" {
				more = append(more, "in "+r.Currency)
			}
			if r.Fallback != "" {
				more = append(more, "else "+r.Fallback)
			}
			if r.Default != nil {
				more = append(more, fmt.Sprintf("else %q", *r.Default))
			}
			if r.Values != nil {
				more = append(more, strings.Join(r.Values, "|"))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Type, null, r.Sensitivity, strings.Join(more, ", "), r.Doc)
		}
	})
}

func (a *app) checkContracts(dirs []string) error {
	var all avro.Catalogue
	var err error
	if len(dirs) > 0 {
		all, err = avro.LoadCatalogue(dirs...)
	} else {
		all, err = a.catalogue()
	}
	if err != nil {
		return err
	}
	own := 0
	for _, c := range all {
		if c.File != "" {
			own++
		}
	}
	res := struct {
		OK        bool `json:"ok"`
		Contracts int  `json:"contracts"`
		Own       int  `json:"own"`
	}{true, len(all), own}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%d contracts are good, %d of them the firm's own or with fields of its own\n", res.Contracts, res.Own)
	})
}
