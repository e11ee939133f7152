// spark.go: the little curve of the capture rate over the last two minutes.

package console

import (
	"fmt"
	"strings"
)

const sparkW, sparkH = 240, 40

// spark gives the points of a polyline in a box of sparkW by sparkH. The
// caller holds the lock.
func (s *Server) spark() string {
	if len(s.samples) < 3 {
		return ""
	}
	ys := make([]float64, 0, len(s.samples)-1)
	top := 1.0
	for i := 1; i < len(s.samples); i++ {
		dt := s.samples[i].at.Sub(s.samples[i-1].at).Seconds()
		y := 0.0
		if dt > 0 {
			y = float64(s.samples[i].in-s.samples[i-1].in) / dt
		}
		ys = append(ys, y)
		top = max(top, y)
	}
	var b strings.Builder
	for i, y := range ys {
		x := float64(sparkW) * float64(windowSize-1-len(ys)+i) / float64(windowSize-2)
		fmt.Fprintf(&b, "%.1f,%.1f ", x, sparkH-2-(sparkH-4)*y/top)
	}
	return strings.TrimSpace(b.String())
}
