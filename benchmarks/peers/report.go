// Report: the medians, and the ratios.

package main

import (
	"context"
	"fmt"
	"slices"
)

func medianOf(fs []figure, by func(figure) float64) float64 {
	var v []float64
	for _, f := range fs {
		v = append(v, by(f))
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func steady(f figure) float64 { return f.steady }

// report prints what was measured and says how many ratios were missed.
func (w *world) report(_ context.Context, res results, load string) (int, error) {
	fmt.Printf("\nload average %s before the start\n", load)
	for _, s := range w.o.only {
		for _, c := range w.o.contenders {
			if fs := res[s][c]; len(fs) > 0 {
				fmt.Printf("%-8s %-14s median %s rows/s steady\n", s, c, thousands(medianOf(fs, steady)))
			}
		}
	}
	return 0, nil
}
