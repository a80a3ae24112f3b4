//go:build !figures

package exporter

// Every test repairs by small ranges of ids, from histories that do not fit into the memory that they get.
func init() { repairIDs, changesBytes = 5, 4<<10 }
