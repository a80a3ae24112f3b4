//go:build linux

package main

import "slices"

// spread is the middle, the least and the largest of several values.
type spread struct{ middle, low, high float64 }

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	return spread{sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1]}
}

func median[T any](all []T, value func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, one := range all {
		values[i] = value(one)
	}
	return spreadOf(values).middle
}

func rate(s slice) float64 { return s.perSecond }

// ratio compares two ways round by round: what disturbs a whole round disturbs both.
func ratio(a, b []slice) spread {
	values := make([]float64, len(a))
	for i := range a {
		values[i] = a[i].perSecond / b[i].perSecond
	}
	return spreadOf(values)
}
