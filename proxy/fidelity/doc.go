// Package fidelity proves that a proxy is not noticed: one table of requests and answers, each sent and read byte by byte over
// plain sockets on both sides, which every way of forwarding has to pass. The same table is run through nginx, so that what it
// asks for is what a good proxy does; where nginx differs, the case says why.
//
// A message has to arrive as it was sent, but for what HTTP leaves to a proxy: the order and the case of names of fields, white
// space around values, the sizes of chunks, what belongs to one connection, and who asked (X-Forwarded-*). Behind each case one
// more request goes over the same connections: it has to get its own answer.
package fidelity
