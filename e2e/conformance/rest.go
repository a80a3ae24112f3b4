package conformance

func transportRows() []Row { return nil }
func parameterRows() []Row { return nil }
func manifestRows() []Row { return nil }
func fileRows() []Row { return nil }
func partialRows() []Row { return nil }
func capabilityRows() []Row { return nil }
func smartRows() []Row { return nil }
