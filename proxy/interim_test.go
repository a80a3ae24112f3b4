package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// onEachWay are requests that go the short way, the long one, and that of the statement.
var onEachWay = map[string]string{
	"short":    "GET /fhir/Patient HTTP/1.1\r\nHost: h\r\n\r\n",
	"long":     "POST /fhir/Patient HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
	"metadata": "GET /fhir/metadata HTTP/1.1\r\nHost: h\r\n\r\n",
}

// Ensure a server that says again and again that it is at work is heard to its end, and one that says nothing else is not.
func TestManyInterimAnswers(t *testing.T) {
	const processing = "HTTP/1.1 102 Processing\r\n\r\n"
	endless := strings.Repeat("HTTP/1.1 102 Processing\r\nX: "+strings.Repeat("y", 10_000)+"\r\n\r\n", 110)
	for way, request := range onEachWay {
		for name, test := range map[string]struct {
			answer string
			many   int
			status int
		}{
			"many":    {strings.Repeat(processing, 30) + plainReply, 30, http.StatusOK},
			"endless": {endless + plainReply, 90, http.StatusBadGateway},
		} {
			t.Run(way+" "+name, func(t *testing.T) {
				h := newHouse(t, "http://"+newRawUpstream(t, replying(test.answer)).address+"/fhir", nil)
				conn := dial(t, h.url)
				if _, err := io.WriteString(conn, request); err != nil {
					t.Fatal(err)
				}
				interim, reader := 0, bufio.NewReader(conn)
				for {
					response, err := http.ReadResponse(reader, nil)
					if err != nil {
						t.Fatal(err)
					}
					response.Body.Close()
					if response.StatusCode >= http.StatusOK {
						if response.StatusCode != test.status || interim < test.many {
							t.Errorf("status %d after %d interim answers", response.StatusCode, interim)
						}
						return
					}
					interim++
				}
			})
		}
	}
}

// Ensure a trailer cannot say how long a body was, announced or not, and that the rest of it arrives.
func TestTrailersAreCleaned(t *testing.T) {
	for way, request := range onEachWay {
		for _, announced := range []string{"", "Trailer: X-Sum, Keep-Alive\r\n"} {
			reply := fmt.Sprintf("HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"+
				"X-Sum: 1\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\nKeep-Alive: x\r\n\r\n", announced)
			h := newHouse(t, "http://"+newRawUpstream(t, replying(reply)).address+"/fhir", nil)
			got, trailer := exchange(t, h.url, request)
			if got.body != "ok" || len(trailer) != 1 || trailer.Get("X-Sum") != "1" {
				t.Errorf("%s, %q: %+v, trailer %v", way, announced, got, trailer)
			}
		}
	}
}
