package exporter

import "time"

const (
	// firstPageBytes is the size of the first page beside users, leastPageBytes that of the smallest one.
	firstPageBytes = 32 << 10
	leastPageBytes = 8 << 10
	// quick is how long a server may read for a page beside users in any case: about as long as for what they ask for themselves.
	quick = 20 * time.Millisecond
	// keepsCost is the weight that what is known of earlier pages keeps with each one.
	keepsCost = 0.95
)

// pageCost chooses the size of pages beside users. A server that reads for half a second is slow for all who come meanwhile, but some
// need that long to begin any page, and asked for many small ones they would do little else. So it learns what a page costs, a part
// for the search and a part for each byte, by least squares over the latest ones. The bytes of a page shall cost what its search
// costs, or be quick.
type pageCost struct {
	size            float64 // in bytes
	half            bool
	n, x, y, xx, xy float64
}

func newPageCost() *pageCost { return &pageCost{size: firstPageBytes} }

// next is the size of the next page. Every other one is half as large, since pages of one size tell nothing.
func (c *pageCost) next() int64 {
	if c.half {
		return int64(c.size / 2)
	}
	return int64(c.size)
}

// add takes a page into account.
func (c *pageCost) add(bytes int64, took time.Duration) {
	c.half = !c.half
	x, y := float64(bytes), took.Seconds()
	for sum, value := range map[*float64]float64{&c.n: 1, &c.x: x, &c.y: y, &c.xx: x * x, &c.xy: x * y} {
		*sum = *sum*keepsCost + value
	}
	spread := c.n*c.xx - c.x*c.x
	if c.n < 3 || spread < c.x*c.x/100 {
		return
	}
	perByte := (c.n*c.xy - c.x*c.y) / spread
	size := 2 * c.size
	if perByte > 0 {
		search := (c.y - perByte*c.x) / c.n
		size = max(search, quick.Seconds()) / perByte
	}
	c.size = min(max(size, c.size/2, leastPageBytes), 2*c.size, pageBytes)
}
