package proxy

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
)

// statementLimit bounds in bytes a CapabilityStatement that is completed; a larger one is passed on as it is.
const statementLimit = 32 << 20

// operation is one of the three that the sidecar adds.
type operation struct {
	// resource is the type it belongs to, empty for the system.
	resource   string
	definition string
}

// operations are the export operations (Bulk Data guide, CapabilityStatement bulk-data). All are called "export". The
// system's one is the last, because in XML it stands behind the resources.
var operations = []operation{
	{"Patient", "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/patient-export"},
	{"Group", "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export"},
	{"", "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export"},
}

// withoutVersion cuts the version off a canonical address: any version of an operation is that operation.
func withoutVersion(canonical string) string {
	address, _, _ := strings.Cut(canonical, "|")
	return address
}

// insertion is text that goes into a document at an offset. The rest of the document stays as it is.
type insertion struct {
	at   int64
	text string
}

func insert(document []byte, insertions []insertion) []byte {
	slices.SortStableFunc(insertions, func(a, b insertion) int { return int(a.at - b.at) })
	var out bytes.Buffer
	var done int64
	for _, i := range insertions {
		out.Write(document[done:i.at])
		out.WriteString(i.text)
		done = i.at
	}
	out.Write(document[done:])
	return out.Bytes()
}

// newStatementForwarder forwards GET metadata and completes the answer, so that clients discover the operations.
func (p *Proxy) newStatementForwarder() http.Handler {
	forward := p.newForwarder()
	forward.Rewrite = func(r *httputil.ProxyRequest) {
		p.rewrite(r)
		r.Out.Header.Set("Accept-Encoding", "identity") // a compressed statement could not be completed
	}
	forward.ModifyResponse = func(response *http.Response) error {
		if err := p.completeStatement(response); err != nil {
			return err
		}
		return p.seen(response)
	}
	return verbatim(forward)
}

func (p *Proxy) completeStatement(response *http.Response) error {
	complete := completer(response.Header)
	if response.StatusCode != http.StatusOK || complete == nil {
		return nil
	}
	raw, err := io.ReadAll(io.LimitReader(response.Body, statementLimit+1))
	if err != nil {
		return err
	}
	if len(raw) > statementLimit {
		response.Body = &joined{io.MultiReader(bytes.NewReader(raw), response.Body), response.Body}
		return nil
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	body, err := complete(raw)
	if err != nil { // not what it says it is; that is between the server and its client
		p.Log.WarnContext(response.Request.Context(), "CapabilityStatement passed on as it is", "reason", "it cannot be read")
		body = raw
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	response.ContentLength = int64(len(body))
	response.Header.Set("Content-Length", strconv.Itoa(len(body)))
	response.TransferEncoding = nil
	return nil
}

// completer picks the function for the answer's format, nil where there is none.
func completer(header http.Header) func([]byte) ([]byte, error) {
	if header.Get("Content-Encoding") != "" {
		return nil
	}
	media, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	switch {
	case err != nil:
		return nil
	case strings.HasSuffix(media, "json"):
		return completeJSON
	case strings.HasSuffix(media, "xml"):
		return completeXML
	}
	return nil
}

// joined is a body of which a part was read already.
type joined struct {
	io.Reader
	io.Closer
}
