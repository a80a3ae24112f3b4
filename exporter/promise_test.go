package exporter_test

import (
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// product is a server that is exported under chaos.
type product struct {
	fhirtest.Personality
	// pause is the settle pause of the product, which a test leaves to the probe; 0 where the test chooses one.
	pause time.Duration
}

// products are the servers of the chaos suite: all that the sample server can be, and some that lack a single thing.
func products() []product {
	var all []product
	for _, personality := range fhirtest.All() {
		one := product{Personality: personality}
		switch one.Name {
		case "google", "healthlake":
			one.pause = time.Minute
		case "ibm":
			one.pause = 125 * time.Second
		}
		all = append(all, one)
	}
	return all
}
