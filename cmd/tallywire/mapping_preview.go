// mapping_preview.go: what changed rules would change, told before they are put
// in place.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
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
	rules, err := rulesOf(cfg)
	if err != nil {
		return err
	}
	stage, err := rules.stage(name)
	if err != nil {
		return err
	}
	p := &preview{name: stage.Name(), budget: f.memory << 20, err: a.err}
	if p.now, err = newPreviewSide(rules, stage); err != nil {
		return err
	}
	if f.with != "" {
		other, err := readRules(f.with)
		if err != nil {
			return err
		}
		stage, err := other.stage(p.name)
		if err != nil {
			return err
		}
		if p.before, err = newPreviewSide(other, stage); err != nil {
			return err
		}
	}
	if p.kafka, err = cluster(ctx, cfg); err != nil {
		return err
	}
	defer p.kafka.Close()
	if p.registry, err = schemaRegistry(cfg); err != nil {
		return err
	}
	res, err := p.run(ctx, time.Now().Add(-back))
	if err != nil {
		return ended(ctx, err)
	}
	res.With, res.Against = f.with, f.against
	if err := a.print(res, func(w io.Writer) { res.print(w) }); err != nil {
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

// previewed is what a preview found.
type previewed struct {
	Transform string         `json:"transform"`
	With      string         `json:"with,omitempty"`
	Against   string         `json:"against"`
	Since     time.Time      `json:"since"`
	Differs   bool           `json:"differs"`
	Sampled   int            `json:"sampled"` // one of so many keys was compared; 1: all
	Raw       []previewedRaw `json:"raw"`
	Topics    []previewedOut `json:"topics"`
	Rejected  []previewedBad `json:"rejected"`
	Before    []previewedBad `json:"rejected_before,omitempty"` // by the rules of --with
	Skipped   int            `json:"skipped"`                   // keys whose last row is rejected: their records stay as they are
}

// previewedRaw is a raw topic that was read.
type previewedRaw struct {
	Topic   string `json:"topic"`
	Missing bool   `json:"missing,omitempty"`
	Records int64  `json:"records"`
	Unread  int64  `json:"unread,omitempty"` // offsets that the running transform has not read, left out here too
}

// previewedOut is a canonical topic.
type previewedOut struct {
	Topic   string           `json:"topic"`
	Missing bool             `json:"missing,omitempty"` // it does not exist yet
	Keys    int              `json:"keys"`
	Equal   int              `json:"equal"`
	Changed int              `json:"changed"`
	New     int              `json:"new"`
	Gone    int              `json:"gone"`
	Fields  []previewedField `json:"fields,omitempty"`
	NewKeys []string         `json:"new_keys,omitempty"`
	Lost    []string         `json:"gone_keys,omitempty"`
}

// previewedField is a field that differs, in so many keys.
type previewedField struct {
	Field    string             `json:"field"`
	Keys     int                `json:"keys"`
	Hidden   bool               `json:"hidden,omitempty"` // its values may not be shown
	Examples []previewedExample `json:"examples"`
}

type previewedExample struct {
	Key string  `json:"key"`
	Old *string `json:"old"`
	New *string `json:"new"`
}

// previewedBad are rows that are rejected.
type previewedBad struct {
	Code    string `json:"code"`
	Rows    int    `json:"rows"`
	Example string `json:"example"`
	At      string `json:"at"` // of the example: topic, partition, offset
}

func (r *previewed) print(w io.Writer) {
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
			fmt.Fprintf(w, "%s: %s\n", t.Topic, counted(int(t.Records), "record"))
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
	for _, t := range r.Topics {
		t.print(w, r.With != "")
	}
	printRejected(w, "rejected", r.Rejected)
	printRejected(w, "rejected by the rules of "+r.With, r.Before)
	if r.Skipped > 0 {
		fmt.Fprintf(w, "\n%s not compared: its last row is rejected, and its record stays as it is\n", counted(r.Skipped, "key"))
	}
	if !r.Differs {
		fmt.Fprint(w, "\nnothing differs\n")
	}
}

func (t *previewedOut) print(w io.Writer, with bool) {
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

func printRejected(w io.Writer, what string, bad []previewedBad) {
	for i, b := range bad {
		if i == 0 {
			fmt.Fprintf(w, "\n%s:\n", what)
		}
		fmt.Fprintf(w, "  %s: %s, such as %s:\n    %s\n", b.Code, counted(b.Rows, "row"), b.At, b.Example)
	}
}

// rejections counts rows that are rejected, by code.
type rejections struct {
	rows  map[uint64]string // code of the rows whose last version is rejected, by hash of topic and key
	first map[string]previewedBad
	loose map[string]int // rows without a key
}

// maxRejected bounds the rows that are remembered; others are only counted.
const maxRejected = 1 << 20

func newRejections() *rejections {
	return &rejections{rows: map[uint64]string{}, first: map[string]previewedBad{}, loose: map[string]int{}}
}

func (r *rejections) add(m *rawMeta, err error) {
	code, text := "", err.Error()
	var e *problem.Error
	if errors.As(err, &e) {
		code, text = e.ID, e.Text
	}
	if _, seen := r.first[code]; !seen {
		r.first[code] = previewedBad{Code: code, Example: text, At: fmt.Sprintf("%s, partition %d, offset %d", m.topic, m.partition, m.offset)}
	}
	_, known := r.rows[m.row]
	if m.keyed && (known || len(r.rows) < maxRejected) {
		r.rows[m.row] = code
	} else {
		r.loose[code]++
	}
}

// list gives what is left rejected, the most first.
func (r *rejections) list() []previewedBad {
	out := []previewedBad{}
	for code, bad := range r.first {
		bad.Rows = r.loose[code]
		for _, c := range r.rows {
			if c == code {
				bad.Rows++
			}
		}
		if bad.Rows > 0 {
			out = append(out, bad)
		}
	}
	slices.SortFunc(out, func(a, b previewedBad) int {
		if a.Rows != b.Rows {
			return b.Rows - a.Rows
		}
		return strings.Compare(a.Code, b.Code)
	})
	return out
}
