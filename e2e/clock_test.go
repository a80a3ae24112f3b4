package e2e

var clockBinary = &build{}
