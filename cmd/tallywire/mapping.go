// mapping.go: the rules of a transform by themselves, tested by cases and held
// against what runs, and put in its place.

package main

import "github.com/spf13/cobra"

func (a *app) mappingCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "mapping",
		Short: "Test the rules of a mapping, see what a change of them changes, switch",
	}
	c.AddCommand(a.mappingTestCmd(), a.mappingPreviewCmd(), a.mappingSwitchCmd())
	return c
}
