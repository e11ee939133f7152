// mapping_preview.go: what changed rules would change, told before they are put
// in place.

package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/preview"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/rules"
)

type previewFlags struct {
	against string
	with    string
	memory  int
}

func (a *app) mappingPreviewCmd() *cobra.Command {
	f := previewFlags{}
	c := &cobra.Command{
		Use:   "preview [TRANSFORM]",
		Short: "Show what changed rules would change, over rows of the last hours",
		Long: `preview reads the raw topics of a transform for a window back from now, applies
the rules of the configuration, and compares what comes out with what the
canonical topics hold now: the last record of each key that the window touches.
It tells per topic how many keys are equal, changed (and in which fields), new
and gone, and which rows would be rejected. With --with it compares with what
the rules of another file make of the same rows; keys that only those make are
then seen too.

It writes nothing: no group, no topic, no offset. It reads up to what the running
transform has read, so that what is under way does not count as a difference.
Memory is bounded by --memory: when the records of all touched keys take more,
it goes on with every second key, then every fourth, chosen by their hash, and
says so. Values are shown of public and internal fields only. The window goes by
the time of the records, which is that of the commit at the source.

Exit codes: 0 nothing differs; 3 something does, or a row would be rejected.`,
		Example: `  tallywire mapping preview -c new.yml --against 24h
  tallywire mapping preview canonical -c new.yml --with tallywire.yml --against 7d
  tallywire mapping preview -c new.yml -o json | jq '.topics[] | {topic, changed, fields}'`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return none(c, args[1:])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mappingPreview(cmd.Context(), strings.Join(args, ""), f)
		},
	}
	c.Flags().StringVar(&f.against, "against", "24h", "how far back, such as 90m, 24h or 7d")
	c.Flags().StringVar(&f.with, "with", "", "compare with the rules of this configuration, not with the canonical topics")
	c.Flags().IntVar(&f.memory, "memory", 256, "MiB that the records compared may take, 1 or more")
	return c
}

// window is --against.
func (f *previewFlags) window() (time.Duration, error) {
	text := f.against
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, usage{fmt.Errorf("--against is a time such as 90m, 24h or 7d, not %q", text)}
	}
	return d, nil
}

func (a *app) mappingPreview(ctx context.Context, name string, f previewFlags) error {
	back, err := f.window()
	if err != nil {
		return err
	}
	if f.memory < 1 {
		return usage{fmt.Errorf("--memory is 1 or more, not %d", f.memory)}
	}
	cfg, err := loadForReading(a.runningFile())
	if err != nil {
		return err
	}
	book, err := rules.Of(cfg)
	if err != nil {
		return err
	}
	stage, err := book.Stage(name, switched)
	if err != nil {
		return err
	}
	p := &preview.Preview{Memory: f.memory << 20, Progress: a.err}
	if p.Now, err = preview.NewSide(book, stage); err != nil {
		return err
	}
	if f.with != "" {
		other, err := rules.Read(f.with)
		if err != nil {
			return err
		}
		stage, err := other.Stage(stage.Name(), switched)
		if err != nil {
			return err
		}
		if p.Before, err = preview.NewSide(other, stage); err != nil {
			return err
		}
	}
	if p.Kafka, err = cluster(ctx, cfg); err != nil {
		return err
	}
	defer p.Kafka.Close()
	if p.Registry, err = schemaRegistry(cfg); err != nil {
		return err
	}
	res, err := p.Run(ctx, time.Now().Add(-back))
	if err != nil {
		return ended(ctx, err)
	}
	res.With, res.Against = f.with, f.against
	if err := a.print(res, func(w io.Writer) { printPreview(w, res) }); err != nil {
		return err
	}
	if res.Differs {
		return exit(exitDiffer)
	}
	return nil
}

// loadForReading reads a configuration for who reads from Kafka and nothing else:
// of the secrets only the registry's has to be there.
func loadForReading(file string) (*config.Config, error) {
	cfg, err := config.Load(file, config.Options{})
	if cfg == nil {
		return nil, err
	}
	for _, e := range problem.Reports(err) {
		if e.Code != config.ErrSecret.ID || strings.HasSuffix(e.Where, ": registry.url") {
			return nil, err
		}
	}
	return cfg, nil
}

func printPreview(w io.Writer, r *preview.Result) {
	old := "what the topics hold"
	if r.With != "" {
		old = "the rules of " + r.With
	}
	fmt.Fprintf(w, "%s over the last %s, beside %s:\n\n", r.Transform, r.Against, old)
	read := int64(0)
	for _, t := range r.Raw {
		read += t.Records
		switch {
		case t.Missing:
			fmt.Fprintf(w, "%s: there is no such topic\n", t.Topic)
		case t.Records == 0:
			fmt.Fprintf(w, "%s: no records since %s\n", t.Topic, r.Since.Format(time.DateTime+" MST"))
		default:
			fmt.Fprintf(w, "%s: %s\n", t.Topic, plural(int(t.Records), "record"))
		}
		if t.Unread > 0 {
			fmt.Fprintf(w, "  up to %d more are not read yet by the running transform, and were left out\n", t.Unread)
		}
	}
	if read == 0 {
		fmt.Fprint(w, "\nnothing to compare: a longer --against reads further back\n")
		return
	}
	if r.Sampled > 1 {
		fmt.Fprintf(w, "\none of %d keys was compared, the others did not fit into --memory\n", r.Sampled)
	}
	fmt.Fprint(w, "\nTOPIC\tKEYS\tEQUAL\tCHANGED\tNEW\tGONE\n")
	for _, t := range r.Topics {
		if t.Keys == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", t.Topic, t.Keys, t.Equal, t.Changed, t.New, t.Gone)
	}
	for i := range r.Topics {
		printTopic(w, &r.Topics[i], r.With != "")
	}
	printRejected(w, "rejected", r.Rejected)
	printRejected(w, "rejected by the rules of "+r.With, r.Before)
	if r.Skipped > 0 {
		fmt.Fprintf(w, "\n%s not compared: its last row is rejected, and its record stays as it is\n", plural(r.Skipped, "key"))
	}
	if !r.Differs {
		fmt.Fprint(w, "\nnothing differs\n")
	}
}

func printTopic(w io.Writer, t *preview.Topic, with bool) {
	if t.Missing && t.Keys > 0 {
		fmt.Fprintf(w, "\n%s does not exist yet\n", t.Topic)
	}
	if len(t.Fields) > 0 {
		fmt.Fprintf(w, "\n%s, changed:\n  FIELD\tKEYS\tKEY\tOLD\tNEW\n", t.Topic)
	}
	for _, f := range t.Fields {
		name, keys := f.Field, strconv.Itoa(f.Keys)
		for _, x := range f.Examples {
			was, is := shownText(x.Old), shownText(x.New)
			if f.Hidden {
				was, is = "(not shown)", "(not shown)"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", name, keys, x.Key, short(was), short(is))
			name, keys = "", ""
		}
	}
	if t.New > 0 {
		fmt.Fprintf(w, "\n%s, new: %s\n", t.Topic, someOf(t.NewKeys, t.New))
		if t.New == t.Keys && !with && !t.Missing {
			fmt.Fprint(w, "  where the rules make other keys than before, --with OLD.yml shows those that stay behind\n")
		}
	}
	if t.Gone > 0 {
		fmt.Fprintf(w, "\n%s, gone: %s\n", t.Topic, someOf(t.Lost, t.Gone))
	}
}

func someOf(keys []string, all int) string {
	text := strings.Join(keys, ", ")
	if more := all - len(keys); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// short keeps a value on one line.
func short(s string) string {
	if r := []rune(s); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return s
}

func printRejected(w io.Writer, what string, bad []preview.Rejected) {
	for i, b := range bad {
		if i == 0 {
			fmt.Fprintf(w, "\n%s:\n", what)
		}
		fmt.Fprintf(w, "  %s: %s, such as %s:\n    %s\n", b.Code, plural(b.Rows, "row"), b.At, b.Example)
	}
}
