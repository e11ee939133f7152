// Package config reads the configuration: strict YAML, every mistake with its
// line, column and the nearest right name. A component's own part is kept as
// syntax and decoded by the component, under the same rules.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
)

// Config is the whole of it, defaults filled in.
type Config struct {
	Kafka      Kafka      `yaml:"kafka" doc:"The broker. Without brokers an embedded one runs, for trying out: its transactions do not survive a kill."`
	Registry   Registry   `yaml:"registry" doc:"The schema registry, any that speaks Confluent's REST API. Without a url an embedded one runs and keeps its schemas in the topic _schemas."`
	Redis      Redis      `yaml:"redis" doc:"State of transforms; it can be rebuilt from Kafka at any time. Without an addr an embedded one runs in memory."`
	Control    Control    `yaml:"control" doc:"The Postgres database for what people look at: parked records, intents of API sinks. Without a dsn an embedded one runs."`
	HTTP       HTTP       `yaml:"http" doc:"The page, /metrics, /healthz, /readyz and /api/status."`
	Log        Log        `yaml:"log" doc:"The log, on standard error."`
	StateDir   string     `yaml:"state_dir" doc:"Where embedded parts keep their data, and this instance its lock." example:"/var/lib/tallywire"`
	Instance   string     `yaml:"instance" doc:"This process's stable name, part of its transactional ids: the same after a restart, another in every other process. Letters, digits, dot, dash and underscore."`
	Partitions int32      `yaml:"partitions" doc:"Partitions of topics that tallywire creates, 1 to 1000. It is frozen from then on: order per key depends on it."`
	Codes      []string   `yaml:"codes" doc:"Directories of code lists (*.csv), relative to this file: what the codes of a system mean in the firm's terms, for code(list, value)." example:"[codes]"`
	Contracts  []string   `yaml:"contracts" doc:"Directories of contracts (*.avsc) beside those that are built in, relative to this file: entities of the firm, and fields that it adds." example:"[contracts]"`
	Encryption Encryption `yaml:"encryption" doc:"What copies of restricted values are sealed with."`
	Sources    Components `yaml:"sources" doc:"What is captured, by name."`
	Transforms Components `yaml:"transforms" doc:"What is made of it, by name."`
	Sinks      Components `yaml:"sinks" doc:"Where it goes, by name."`

	// File is the name that messages use.
	File string `yaml:"-"`
	dec  *decoder
}

// Kafka names the broker.
type Kafka struct {
	Brokers []string `yaml:"brokers" doc:"Bootstrap brokers, host:port each." example:"[kafka-1:9092, kafka-2:9092]"`
	Listen  string   `yaml:"listen" doc:"Where the embedded broker listens."`

	Retention       time.Duration `yaml:"retention" doc:"How long raw records stay, in topics that are made from now on; 0: for ever. Replays reach back as far. At least the largest window that a transform declares."`
	DeleteRetention time.Duration `yaml:"delete_retention" doc:"How long it is seen that a record was deleted (delete.retention.ms), in compacted topics that are made from now on: longer than a reader may be away."`
}

// Encryption has the keys that copies of restricted values are sealed with.
type Encryption struct {
	Keys []secret.Value `yaml:"keys" doc:"Keys of 32 octets in base64 ('openssl rand -base64 32'), env:NAME or file:PATH each. Parked records of topics with restricted fields are sealed with the first, and opened with any. Without one they are not copied: they can be retried for as long as their own topics have them." example:"[env:TALLYWIRE_KEY]"`
}

// Registry names the schema registry.
type Registry struct {
	URL      secret.URL `yaml:"url" doc:"Base URL of the registry; env:NAME or file:PATH when it holds a password." example:"http://registry:8081"`
	Embedded bool       `yaml:"embedded" doc:"Run the embedded one although kafka.brokers names a broker."`
	Listen   string     `yaml:"listen" doc:"Where the embedded registry listens."`
}

// Redis names the store of transforms' state.
type Redis struct {
	Addr     secret.URL `yaml:"addr" doc:"host:port of the server, or redis://user@host:port/database; env:NAME or file:PATH when it holds a password. Its maxmemory-policy must be noeviction." example:"redis:6379"`
	Embedded bool       `yaml:"embedded" doc:"Run the embedded one although kafka.brokers names a broker: state lives in this process, and is rebuilt from Kafka at each start."`
	Listen   string     `yaml:"listen" doc:"Where the embedded one listens; port 0 takes any."`
}

// Control names the control database.
type Control struct {
	DSN      secret.DSN `yaml:"dsn" doc:"DSN of the control database." example:"env:TALLYWIRE_CONTROL_DSN"`
	Embedded bool       `yaml:"embedded" doc:"Run the embedded one although kafka.brokers names a broker: intents of API sinks lie in state_dir then, on this machine."`
	Listen   string     `yaml:"listen" doc:"Where the embedded Postgres listens."`
}

// HTTP is the process's own server.
type HTTP struct {
	Listen string `yaml:"listen" doc:"Address of the page and the metrics. It has no login of its own: keep it on a private address."`
}

// Log is the log.
type Log struct {
	Level  string `yaml:"level" doc:"debug, info, warn or error."`
	Format string `yaml:"format" doc:"text or json."`
}

// Default is a Config with every default.
func Default() *Config {
	return &Config{
		Kafka:    Kafka{Listen: "127.0.0.1:9092", DeleteRetention: 7 * 24 * time.Hour},
		Registry: Registry{Listen: "127.0.0.1:8081"},
		Redis:    Redis{Listen: "127.0.0.1:0"},
		Control:  Control{Listen: "127.0.0.1:5434"},
		HTTP:     HTTP{Listen: "127.0.0.1:8080"},
		Log:      Log{Level: "info", Format: "text"},
		StateDir: ".tallywire", Instance: "one", Partitions: 4,
	}
}

// ContractDirs are the directories of Contracts, as seen from the process.
func (c *Config) ContractDirs() []string { return c.dirs(c.Contracts) }

// CodeDirs are the directories of Codes, as seen from the process.
func (c *Config) CodeDirs() []string { return c.dirs(c.Codes) }

func (c *Config) dirs(written []string) []string {
	out := make([]string, len(written))
	for i, dir := range written {
		if out[i] = dir; !filepath.IsAbs(dir) {
			out[i] = filepath.Join(filepath.Dir(c.File), dir)
		}
	}
	return out
}

// Scalar is a setting that may be a text, a number, true, false or null.
type Scalar struct {
	Kind ScalarKind
	Text string // as it is written, without quotes
}

// ScalarKind tells what a Scalar is.
type ScalarKind uint8

const (
	NullScalar ScalarKind = iota
	TextScalar
	NumberScalar
	BoolScalar
)

// Text is the Scalar of a text.
func Text(s string) Scalar { return Scalar{Kind: TextScalar, Text: s} }

// Within names a place in the text that stands at path, for Component.Place.
func Within(path string, line, column int) string {
	return fmt.Sprintf("%s@%d:%d", path, line, column)
}

// Components are the sources, transforms or sinks in the order of the file.
type Components []*Component

// Component is one of them. The rest of its part is decoded by its maker.
type Component struct {
	Section string // "sources", "transforms" or "sinks"
	Name    string
	Type    string

	node ast.Node
	keys []*ast.MappingValueNode
	dec  *decoder
}

// Path is "sources.psa".
func (c *Component) Path() string { return c.Section + "." + c.Name }

// Where is file, line and path of the component, for messages.
func (c *Component) Where() string { return c.dec.at(c.node, c.Path()) }

// Decode fills into, a pointer to a struct with defaults set, from the
// component's part; `type` is not part of it. All mistakes come joined.
func (c *Component) Decode(into any) error {
	d := *c.dec
	d.errs = nil
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("BUG: %s decodes into a %T", c.Path(), into))
	}
	fields := fieldsOf(v.Elem())
	seen := map[string]bool{"type": true}
	for _, e := range c.keys {
		k := keyOf(e)
		if k == "type" {
			continue
		}
		if seen[k] {
			d.fail(ErrKey, e.Key, c.Path(), "%q stands here twice", k)
			continue
		}
		seen[k] = true
		f, ok := fields[k]
		if !ok {
			fields["type"] = reflect.Value{} // a right name, too
			d.unknown(e.Key, c.Path(), k, fields)
			continue
		}
		d.value(e.Value, f, join(c.Path(), k))
	}
	return errors.Join(d.errs...)
}

// Lookup decodes one key of the component's part into into, for who is not its
// maker (the page reads the warehouse's dsn). A key that is absent leaves into.
func (c *Component) Lookup(key string, into any) error {
	d := *c.dec
	d.errs = nil
	for _, e := range c.keys {
		if keyOf(e) == key {
			d.value(e.Value, reflect.ValueOf(into).Elem(), join(c.Path(), key))
		}
	}
	return errors.Join(d.errs...)
}

// Without takes components out by name, so that the rest runs alone: to replay
// one whose group must be idle, or to keep one back.
func (c *Config) Without(names []string) error {
	var errs []error
	for _, n := range names {
		found := false
		var all []string
		for _, cs := range []*Components{&c.Sources, &c.Transforms, &c.Sinks} {
			var rest Components
			for _, x := range *cs {
				all = append(all, x.Name)
				if x.Name == n {
					found = true
					continue
				}
				rest = append(rest, x)
			}
			*cs = rest
		}
		if !found {
			errs = append(errs, ErrValue.New("there is no source, transform or sink %q to leave out", n).WithRemedy("Use one of: %s.", list(all)))
		}
	}
	return errors.Join(errs...)
}

// Forgotten tells what a configuration that names a broker leaves out and does
// not say is to be embedded: what is meant for production does not take part of
// its state from the machine that it happens to run on.
func (c *Config) Forgotten() error {
	if len(c.Kafka.Brokers) == 0 {
		return nil
	}
	var errs []error
	for _, p := range []struct {
		section, key string
		embedded     bool
	}{
		{"registry", "url", c.Registry.Embedded},
		{"redis", "addr", c.Redis.Embedded || len(c.Transforms) == 0},
		{"control", "dsn", c.Control.Embedded},
	} {
		if named, _ := text(c.dec.nodes[p.section+"."+p.key]); named == "" && !p.embedded {
			errs = append(errs, ErrValue.New("kafka.brokers names a broker, and no %s.%s says what goes with it", p.section, p.key).
				At("%s", c.dec.at(c.dec.nodes["kafka.brokers"], p.section)).
				WithRemedy("Set %s.%s; or write %s: {embedded: true}, if that is meant.", p.section, p.key, p.section))
		}
	}
	return errors.Join(errs...)
}

// Options of Load and Parse.
type Options struct {
	// Env looks environment variables up; nil: os.LookupEnv.
	Env func(string) (string, bool)
	// Static checks the form of references to secrets but reads none.
	Static bool
}

// Load reads a file.
func Load(file string, o Options) (*Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, ErrFile.New("reading the configuration: %w", err)
	}
	return Parse(file, b, o)
}

var (
	nameForm     = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)
	instanceForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,80}$`)
)

// Parse reads a text; file is the name that messages use. On mistakes the
// error joins all of them, each a *problem.Error that says where; the Config is
// then what could be read, for the components' mistakes to be told as well, or
// nil when it is not YAML. It must not be run.
func Parse(file string, b []byte, o Options) (*Config, error) {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	f, err := parser.ParseBytes(b, 0, parser.AllowDuplicateMapKey()) // duplicates are reported by us, with all the rest
	if err != nil {
		return nil, syntaxError(file, err)
	}
	c := Default()
	c.File = file
	d := &decoder{file: file, env: o.Env, static: o.Static, anchors: map[string]ast.Node{}, nodes: map[string]ast.Node{}}
	c.dec = d
	for _, doc := range f.Docs {
		ast.Walk(anchorFinder(d.anchors), doc)
	}
	if len(f.Docs) > 1 && f.Docs[1].Body != nil {
		d.fail(ErrSyntax, f.Docs[1].Body, "", "a second YAML document starts here")
	}
	if len(f.Docs) > 0 && f.Docs[0].Body != nil {
		d.document(f.Docs[0].Body, c)
	}
	d.bounds(c)
	return c, errors.Join(d.errs...)
}

func (d *decoder) document(n ast.Node, c *Config) {
	n = d.plain(n)
	if _, ok := n.(*ast.NullNode); ok {
		return
	}
	if _, isComment := n.(*ast.CommentGroupNode); isComment {
		return
	}
	es, ok := entries(n)
	if !ok {
		d.fail(ErrType, n, "", "want a mapping, got %s", kindOf(n))
		return
	}
	fields := fieldsOf(reflect.ValueOf(c).Elem())
	seen := map[string]bool{}
	for _, e := range es {
		k := keyOf(e)
		f, ok := fields[k]
		switch {
		case seen[k]:
			d.fail(ErrKey, e.Key, "", "%q stands here twice", k)
		case !ok:
			d.unknown(e.Key, "", k, fields)
		case f.Type() == reflect.TypeFor[Components]():
			f.Set(reflect.ValueOf(d.components(e.Value, k)))
		default:
			d.value(e.Value, f, k)
		}
		seen[k] = true
	}
}

func (d *decoder) components(n ast.Node, section string) Components {
	n = d.plain(n)
	if _, null := n.(*ast.NullNode); null {
		return nil
	}
	es, ok := entries(n)
	if !ok {
		d.fail(ErrType, n, section, "want a mapping of names, got %s", kindOf(n))
		return nil
	}
	var out Components
	seen := map[string]bool{}
	for _, e := range es {
		name := keyOf(e)
		path := join(section, name)
		if seen[name] {
			d.fail(ErrKey, e.Key, section, "%q stands here twice", name)
			continue
		}
		seen[name] = true
		if !nameForm.MatchString(name) {
			d.fail(ErrValue, e.Key, section, "the name %q is not of the form a-z, then a-z, 0-9 or _, 40 at most", name)
			continue
		}
		body := d.plain(e.Value)
		keys, ok := entries(body)
		if !ok {
			d.fail(ErrType, e.Key, path, "want a mapping with at least a type, got %s", kindOf(body))
			continue
		}
		comp := &Component{Section: section, Name: name, node: e.Key, keys: keys, dec: d}
		for _, k := range keys {
			if keyOf(k) == "type" {
				d.value(k.Value, reflect.ValueOf(&comp.Type).Elem(), join(path, "type"))
			}
		}
		if comp.Type == "" {
			d.fail(ErrValue, e.Key, path, "has no type")
			continue
		}
		out = append(out, comp)
	}
	return out
}

// bounds checks what has a range.
func (d *decoder) bounds(c *Config) {
	if c.Partitions < 1 || c.Partitions > 1000 {
		d.fail(ErrValue, d.nodes["partitions"], "partitions", "%d is not between 1 and 1000", c.Partitions)
	}
	if !instanceForm.MatchString(c.Instance) {
		d.fail(ErrValue, d.nodes["instance"], "instance", "%q holds more than letters, digits, dot, dash and underscore, or is longer than 80", c.Instance)
	}
	if !oneOf(c.Log.Level, "debug", "info", "warn", "error") {
		d.fail(ErrValue, d.nodes["log.level"], "log.level", "%q is none of debug, info, warn, error", c.Log.Level)
	}
	if !oneOf(c.Log.Format, "text", "json") {
		d.fail(ErrValue, d.nodes["log.format"], "log.format", "%q is neither text nor json", c.Log.Format)
	}
}

// UnknownType is the error for a component whose type nobody registered.
func (c *Component) UnknownType(known []string) error {
	for _, k := range c.keys {
		if keyOf(k) != "type" {
			continue
		}
		e := ErrValue.New("%s has the type %q, which does not exist", c.Path(), c.Type).At("%s", c.dec.at(k.Value, ""))
		if near := Nearest(c.Type, append([]string(nil), known...)); near != "" {
			e.Text += fmt.Sprintf("; did you mean %q?", near)
		}
		return e.WithRemedy("Use one of: %s.", list(known))
	}
	panic("BUG: a component without a type passed Parse")
}

// Place adds lines and columns to what the component's maker found: to a problem
// that names a path of the component's part those of the path, or of the nearest
// above it that is written; to one that names no place the component's. err may
// be several, joined.
func (c *Component) Place(err error) error {
	e := problem.Of(err)
	if e == nil {
		return err
	}
	if several, is := err.(interface{ Unwrap() []error }); is { //nolint:errorlint // the very join, not one in the chain
		var errs []error
		for _, err := range several.Unwrap() {
			errs = append(errs, c.Place(err))
		}
		return errors.Join(errs...)
	}
	switch {
	case e.Where == "":
		return e.At("%s", c.Where())
	case error(e) == err && (e.Where == c.Path() || strings.HasPrefix(e.Where, c.Path()+".")): //nolint:errorlint // the very same
		path, within, _ := strings.Cut(e.Where, "@")
		return e.At("%s", c.dec.within(c.written(path), path, within))
	}
	return err
}

// within is the place of what stands at line:column of the text that n is.
func (d *decoder) within(n ast.Node, path, within string) string {
	var line, column int
	if _, err := fmt.Sscanf(within, "%d:%d", &line, &column); err != nil || n == nil || n.GetToken() == nil {
		return d.at(n, path)
	}
	p := *n.GetToken().Position
	switch x := n.(type) {
	case *ast.LiteralNode:
		p = *x.Value.GetToken().Position
		written := strings.TrimLeft(x.Value.GetToken().Origin, "\n")
		p.Line += line - 1
		p.Column = len(written) - len(strings.TrimLeft(written, " ")) + column // a block has one indent
	default:
		if t := n.GetToken().Type; t == token.SingleQuoteType || t == token.DoubleQuoteType {
			column++
		}
		p.Column += column - 1
	}
	return fmt.Sprintf("%s:%d:%d: %s", d.file, p.Line, p.Column, path)
}

// written is the node at a path, or at the nearest above it.
func (c *Component) written(path string) ast.Node {
	for len(path) > len(c.Path()) {
		if n := c.dec.nodes[path]; n != nil {
			return n
		}
		path = path[:strings.LastIndexAny(path, ".[")]
	}
	return c.node
}

func list(s []string) string {
	s = append([]string(nil), s...)
	sort.Strings(s)
	out := ""
	for i, x := range s {
		if i > 0 {
			out += ", "
		}
		out += x
	}
	return out
}

func oneOf(s string, of ...string) bool {
	for _, o := range of {
		if s == o {
			return true
		}
	}
	return false
}

type anchorFinder map[string]ast.Node

func (a anchorFinder) Visit(n ast.Node) ast.Visitor {
	if x, ok := n.(*ast.AnchorNode); ok && x.Name != nil {
		a[x.Name.GetToken().Value] = x.Value
	}
	return a
}

func syntaxError(file string, err error) error {
	var y yaml.Error
	if errors.As(err, &y) && y.GetToken() != nil {
		p := y.GetToken().Position
		return ErrSyntax.New("%s", y.GetMessage()).At("%s:%d:%d", file, p.Line, p.Column)
	}
	return ErrSyntax.New("%s", firstLine(err)).At("%s", file)
}
