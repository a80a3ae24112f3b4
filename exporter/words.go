package exporter

import "fmt"

// numbered is a number with the words for one or for several.
func numbered[N int | int64](n N, one, several string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", one)
	}
	return fmt.Sprintf("%d %s", n, several)
}
