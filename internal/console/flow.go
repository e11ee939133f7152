// flow.go: from the components' numbers to boxes and arrows with coordinates.
// Who writes a topic and who reads it is taken from what flowed and from what
// is configured, so that an arrow on which nothing came yet is there too.

package console

import (
	"fmt"
	"math"
	"sort"
	"strings"
	"time"

	"github.com/tallywire/tallywire/internal/obs"
)

// Box is one component; the parts of one transform are one box.
type Box struct {
	Kind, Name string
	State      obs.State
	Reason     string
	Progress   string
	Parked     int64
	Waiting    int64
	Lag        int64
	P50, P95   time.Duration // from the commit at the source until durable here
	Rate       float64       // records per second out (a sink's: delivered)

	rank int
	in   map[string]int64 // records by topic
	out  map[string]int64
	lag  map[string]int64

	X, Y, W, H int
}

// Arrow is the topics that one box writes and another reads.
type Arrow struct {
	From, To *Box
	Topics   []string
	Label    string
	Rate     float64 // records per second read
	Lag      int64
	P50, P95 time.Duration

	Path           string
	LabelX, LabelY int
}

// Moving reports whether something went over the arrow lately.
func (a *Arrow) Moving() bool { return a.Rate > 0 }

// Flow is the picture.
type Flow struct {
	Boxes  []*Box
	Arrows []*Arrow
	Width  int
	Height int
}

const (
	boxW, boxH = 196, 104
	gapX       = 176
	gapY       = 64
	laneH      = 62 // room for an arrow that passes over or under boxes
	margin     = 8
)

// group is the box that a component belongs to: "costed.right" is part of "costed".
func group(v obs.View) string {
	name, _, _ := strings.Cut(v.Name, ".")
	return v.Kind + "/" + name
}

// rates gives records per second by "kind/name dir topic".
type rates map[string]float64

func rateKey(v obs.View, dir, topic string) string { return group(v) + " " + dir + " " + topic }

// Wires are the topics that a component is configured to read and to write. A
// name that ends in a dot stands for all topics that start with it.
type Wires struct {
	Kind, Name    string
	Reads, Writes []string
}

// NewFlow lays the picture out.
func NewFlow(views []obs.View, wires []Wires, r rates) *Flow {
	byName := map[string]*Box{}
	var boxes []*Box
	for _, v := range views {
		if v.Kind != "source" && v.Kind != "transform" && v.Kind != "sink" {
			continue
		}
		g := group(v)
		b := byName[g]
		if b == nil {
			_, name, _ := strings.Cut(g, "/")
			b = &Box{
				Kind: v.Kind, Name: name, State: v.State, W: boxW, H: boxH,
				in: map[string]int64{}, out: map[string]int64{}, lag: map[string]int64{},
			}
			byName[g] = b
			boxes = append(boxes, b)
		}
		b.add(v, r)
	}
	for _, w := range wires {
		b := byName[group(obs.View{Kind: w.Kind, Name: w.Name})]
		if b == nil {
			continue
		}
		for _, t := range w.Reads {
			b.in[t] += 0
		}
		for _, t := range w.Writes {
			b.out[t] += 0
		}
	}
	f := &Flow{Boxes: boxes}
	f.connect(r)
	f.rank()
	f.place()
	return f
}

// worse orders states: the box shows the worst of its parts.
var worse = map[obs.State]int{obs.Running: 0, obs.Stopped: 1, obs.Starting: 2, obs.Restoring: 3, obs.Retrying: 4, obs.Halted: 5, obs.Failed: 6}

func (b *Box) add(v obs.View, r rates) {
	if worse[v.State] >= worse[b.State] {
		b.State = v.State
		if v.Reason != "" {
			b.Reason = v.Reason
		}
	}
	if v.Progress != "" {
		b.Progress = v.Progress
	}
	b.P50, b.P95 = max(b.P50, v.P50), max(b.P95, v.P95)
	b.Parked += v.Parked
	b.Waiting += v.Waiting
	for _, t := range v.Topics {
		if t.Direction == "in" {
			b.in[t.Topic] += t.Records
			continue
		}
		b.out[t.Topic] += t.Records
		if !strings.HasPrefix(t.Topic, "_tallywire.") {
			b.Rate += r[rateKey(v, "out", t.Topic)]
		}
	}
	for t, n := range v.Lag {
		b.lag[t] += n
		b.Lag += n
		if _, ok := b.in[t]; !ok {
			b.in[t] = 0 // it reads the topic, though nothing came yet
		}
	}
}

func (f *Flow) connect(r rates) {
	for _, from := range f.Boxes {
		for _, to := range f.Boxes {
			if from == to || from.Kind == "sink" || to.Kind == "source" {
				continue
			}
			a := &Arrow{From: from, To: to, P50: to.P50, P95: to.P95}
			for t := range to.in {
				if strings.HasPrefix(t, "_") || !from.writes(t) {
					continue
				}
				a.Topics = append(a.Topics, t)
				a.Rate += r[to.Kind+"/"+to.Name+" in "+t]
				a.Lag += to.lag[t]
			}
			if len(a.Topics) == 0 {
				continue
			}
			sort.Strings(a.Topics)
			a.Label = topicsLabel(a.Topics)
			f.Arrows = append(f.Arrows, a)
		}
	}
}

func (b *Box) writes(topic string) bool {
	if _, ok := b.out[topic]; ok {
		return true
	}
	for t := range b.out {
		if strings.HasSuffix(t, ".") && strings.HasPrefix(topic, t) {
			return true
		}
	}
	return false
}

// topicsLabel is the one topic, or what they have in common and how many.
func topicsLabel(ts []string) string {
	if len(ts) == 1 {
		return ts[0]
	}
	p := ts[0]
	for _, t := range ts[1:] {
		for !strings.HasPrefix(t, p) {
			p = p[:len(p)-1]
		}
	}
	if i := strings.LastIndexByte(p, '.'); i >= 0 {
		return fmt.Sprintf("%s.* · %d topics", p[:i], len(ts))
	}
	return fmt.Sprintf("%d topics", len(ts))
}

// rank puts each box one column right of the last that feeds it; sinks are last.
func (f *Flow) rank() {
	for range f.Boxes { // a longest path has no more hops than boxes
		for _, a := range f.Arrows {
			if a.To.rank <= a.From.rank && a.From.rank < len(f.Boxes) {
				a.To.rank = a.From.rank + 1
			}
		}
	}
	last := 0
	for _, b := range f.Boxes {
		if b.Kind == "transform" && b.rank == 0 {
			b.rank = 1
		}
		last = max(last, b.rank)
	}
	sinksAt := 0
	for _, b := range f.Boxes {
		if b.Kind != "sink" {
			sinksAt = max(sinksAt, b.rank+1)
		}
	}
	if sinksAt == 0 {
		sinksAt = last
	}
	for _, b := range f.Boxes {
		if b.Kind == "sink" {
			b.rank = sinksAt
		}
	}
}

func (f *Flow) place() {
	cols := map[int][]*Box{}
	maxRank, tallest := 0, 1
	for _, b := range f.Boxes {
		cols[b.rank] = append(cols[b.rank], b)
		maxRank = max(maxRank, b.rank)
		tallest = max(tallest, len(cols[b.rank]))
	}
	for _, c := range cols { // the last in the alphabet on top: warehouse above erp
		sort.SliceStable(c, func(i, j int) bool { return c[i].Name > c[j].Name })
	}
	body := tallest*boxH + (tallest-1)*gapY
	mid := margin + laneH + body/2
	f.Height = 2*margin + 2*laneH + body
	f.Width = 2*margin + (maxRank+1)*boxW + maxRank*gapX
	for rank, c := range cols {
		h := len(c)*boxH + (len(c)-1)*gapY
		for i, b := range c {
			b.X = margin + rank*(boxW+gapX)
			b.Y = mid - h/2 + i*(boxH+gapY)
		}
	}
	// Where several arrows leave or enter one side, they spread over it.
	outs, ins := map[*Box][]*Arrow{}, map[*Box][]*Arrow{}
	for _, a := range f.Arrows {
		outs[a.From] = append(outs[a.From], a)
		ins[a.To] = append(ins[a.To], a)
	}
	lane := func(a *Arrow) int { // -1 above, 0 straight, +1 below
		if a.To.rank-a.From.rank <= 1 {
			return 0
		}
		if a.To.Y+boxH/2 <= mid {
			return -1
		}
		return 1
	}
	for _, as := range outs {
		sort.SliceStable(as, func(i, j int) bool {
			if li, lj := lane(as[i]), lane(as[j]); li != lj {
				return li < lj
			}
			return as[i].To.Y < as[j].To.Y
		})
	}
	for _, as := range ins {
		sort.SliceStable(as, func(i, j int) bool {
			if li, lj := lane(as[i]), lane(as[j]); li != lj {
				return li < lj
			}
			return as[i].From.Y < as[j].From.Y
		})
	}
	port := func(as []*Arrow, a *Arrow) int {
		for i := range as {
			if as[i] == a {
				return boxH * (i + 1) / (len(as) + 1)
			}
		}
		return boxH / 2
	}
	for _, a := range f.Arrows {
		x1, y1 := a.From.X+boxW, a.From.Y+port(outs[a.From], a)
		x2, y2 := a.To.X-7, a.To.Y+port(ins[a.To], a)
		switch lane(a) {
		case 0:
			c := gapX / 2
			a.Path = fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+c, y1, x2-c, y2, x2, y2)
			a.LabelX, a.LabelY = (x1+x2)/2, (y1+y2)/2
		default:
			y := margin + laneH - 18
			if lane(a) > 0 {
				y = f.Height - margin - laneH + 18
			}
			c := gapX / 3
			a.Path = fmt.Sprintf("M%d %dC%d %d %d %d %d %dL%d %dC%d %d %d %d %d %d",
				x1, y1, x1+c, y1, x1+c, y, x1+2*c, y, x2-2*c, y, x2-c, y, x2-c, y2, x2, y2)
			a.LabelX, a.LabelY = (x1+x2)/2, y
		}
	}
}

// number prints with a separator of thousands.
func number[T int | int64](n T) string {
	s := fmt.Sprint(n)
	neg := strings.HasPrefix(s, "-")
	s = strings.TrimPrefix(s, "-")
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	if neg {
		return "−" + b.String()
	}
	return b.String()
}

// amount puts separators into the exact text of a decimal.
func amount(s string) string {
	whole, frac, has := strings.Cut(s, ".")
	neg := strings.HasPrefix(whole, "-")
	whole = strings.TrimPrefix(whole, "-")
	var b strings.Builder
	for i, c := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(c)
	}
	out := b.String()
	if has {
		out += "." + frac
	}
	if neg {
		return "−" + out
	}
	return out
}

func perSecond(r float64) string {
	switch {
	case r == 0:
		return "0"
	case r < 10:
		return fmt.Sprintf("%.1f", r)
	}
	return number(int64(math.Round(r)))
}

func took(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f d", d.Hours()/24)
}
