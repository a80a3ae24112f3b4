package proxy

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/state"
)

// statementLimit bounds in bytes a CapabilityStatement that is completed; a larger one is passed on as it is.
const statementLimit = 32 << 20

const (
	// bulkData is the CapabilityStatement of the guide that a server with exports instantiates.
	bulkData = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
	// notSupported is the extension that says of a resource type which operations leave it out, or of all by bulkData.
	notSupported = "http://hl7.org/fhir/uv/bulkdata/Extension/operation-not-supported"
)

// operation is the export of one level, which the sidecar adds.
type operation struct {
	level state.Level
	// resource is the type it belongs to, empty for the system.
	resource string
}

// operations are the export operations (Bulk Data guide, CapabilityStatement bulk-data). The system's one is the last,
// because in XML it stands behind the resources.
var operations = []operation{{state.Patient, "Patient"}, {state.Group, "Group"}, {state.System, ""}}

// definition is the address by which clients of every release know the operation.
func (op operation) definition() string { return state.OperationDefinition(op.level, state.Shape3) }

// offer is a name under which an operation can be called, and what defines it.
type offer struct{ name, definition string }

// offers are the names of the operation that are not known yet. The guide lets a server offer releases that do not go
// together side by side, by names of their own and definitions with the version.
func (op operation) offers(known []string) []offer {
	return slices.DeleteFunc([]offer{
		{"export", op.definition()},
		{exportV4Name, state.OperationDefinition(op.level, state.Shape4)},
	}, func(o offer) bool { return knows(known, o.definition) })
}

// declared is what a statement says that decides on what is added to it.
type declared struct {
	release string
	// types are those of its resources, searched those of them that can be searched.
	types, searched []string
}

// resourceFacts are what a resource of a statement says that decides on what is added, in either form.
type resourceFacts struct {
	typ      string
	searched bool
}

func (f *resourceFacts) facts() *resourceFacts { return f }

// declaredBy collects what the resources of a statement say.
func declaredBy[R interface{ facts() *resourceFacts }](release string, resources []R) declared {
	d := declared{release: release}
	for _, resource := range resources {
		of := resource.facts()
		if d.types = append(d.types, of.typ); of.searched {
			d.searched = append(d.searched, of.typ)
		}
	}
	return d
}

// lastOf returns the last resource of a type, the zero value where there is none.
func lastOf[R interface{ facts() *resourceFacts }](resources []R, typ string) (found R) {
	for _, resource := range resources {
		if resource.facts().typ == typ {
			found = resource
		}
	}
	return found
}

// additions are the operations that a statement gets, and for each type the canonical addresses of what leaves it out.
type additions struct {
	operations []operation
	without    map[string][]string
	// stu3 tells that the release has no type canonical: an extension holds a uri, an operation a Reference to its definition.
	stu3 bool
}

// value is the element of an extension that holds an address.
func (a additions) value() string {
	if a.stu3 {
		return "valueUri"
	}
	return "valueCanonical"
}

// additionsTo decides what is added to a statement, so that it is true: no operation of which every kick-off is refused, and
// no type without a word that an operation leaves out.
func (p *Proxy) additionsTo(d declared) additions {
	statement := &fhir.CapabilityStatement{FHIRVersion: d.release, Types: slices.Compact(slices.Sorted(slices.Values(d.searched)))}
	add := additions{without: map[string][]string{}, stu3: strings.HasPrefix(d.release, "3.")}
	for _, op := range operations {
		types, beside, err := p.TypesOf(op.level, statement)
		if err != nil {
			continue // there is no export of this level
		}
		add.operations = append(add.operations, op)
		for _, typ := range d.types {
			if !slices.Contains(types, typ) && !slices.Contains(beside, typ) {
				add.without[typ] = append(add.without[typ], op.definition())
			}
		}
	}
	for typ, definitions := range add.without {
		if len(definitions) == len(add.operations) {
			add.without[typ] = []string{bulkData}
		}
	}
	return add
}

// knows tells whether a canonical address is among those that are known. One without a version stands for each of them.
func knows(known []string, canonical string) bool {
	return slices.ContainsFunc(known, func(one string) bool {
		address, _, _ := strings.Cut(one, "|")
		return one == canonical || address == canonical
	})
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

// newStatementForwarder forwards GET and HEAD of metadata and completes the answer, so that clients discover the operations.
// The answer to HEAD needs the completed statement, too: it has its length.
func (p *Proxy) newStatementForwarder() http.Handler {
	forward := p.newLongWay()
	forward.Rewrite, forward.ModifyResponse = p.rewriteForStatement, p.statementAnswered
	to := verbatim(forward)
	return p.exchanged(func(w http.ResponseWriter, r *http.Request, x *exchange) {
		to.ServeHTTP(w, x.carried(r))
	})
}

// rewriteForStatement asks for a statement that can be completed.
func (p *Proxy) rewriteForStatement(r *httputil.ProxyRequest) {
	p.rewrite(r)
	r.Out.Method = http.MethodGet
	r.Out.Header.Set("Accept-Encoding", "identity") // a compressed one could not be
	// The server's own 304 would tell of another statement than the client holds after an update of the sidecar.
	r.Out.Header.Del("If-None-Match")
	r.Out.Header.Del("If-Modified-Since")
}

func (p *Proxy) statementAnswered(response *http.Response) error {
	x := exchangeOf(response.Request.Context())
	if err := p.completeStatement(response, x.request); err != nil {
		return err
	}
	return x.accept(response)
}

// completeStatement completes the answer to a client's request.
func (p *Proxy) completeStatement(response *http.Response, client *http.Request) error {
	complete := completer(response.Header)
	if response.StatusCode != http.StatusOK || complete == nil {
		return withoutBody(response, client.Method)
	}
	raw, err := io.ReadAll(io.LimitReader(response.Body, statementLimit+1))
	if err != nil {
		return err
	}
	if len(raw) > statementLimit {
		response.Body = &joined{io.MultiReader(bytes.NewReader(raw), response.Body), response.Body}
		return withoutBody(response, client.Method)
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	text, err := unpacked(response.Header, raw)
	body := raw
	if err == nil {
		body, err = complete(text, p.additionsTo)
	}
	if err != nil { // not what it says it is; that is between the server and its client
		p.Log.WarnContext(client.Context(), "CapabilityStatement passed on as it is", "reason", "it cannot be read")
		body = raw
	} else {
		response.Header.Del("Content-Encoding")
	}
	response.Body = io.NopCloser(bytes.NewReader(body))
	response.ContentLength = int64(len(body))
	response.Header.Set("Content-Length", strconv.Itoa(len(body)))
	response.TransferEncoding = nil
	if response.Header.Get("ETag") != "" {
		tag := fmt.Sprintf(`W/"%x"`, sha256.Sum256(body))
		response.Header.Set("ETag", tag)
		if matches(client.Header.Values("If-None-Match"), tag) {
			response.StatusCode, response.Status = http.StatusNotModified, ""
			response.Header.Del("Content-Length")
			response.ContentLength = 0
			response.Body = http.NoBody
		}
	}
	return withoutBody(response, client.Method)
}

// withoutBody takes the body off the answer to a HEAD, and leaves its length.
func withoutBody(response *http.Response, method string) error {
	if method != http.MethodHead {
		return nil
	}
	err := response.Body.Close()
	response.Body = http.NoBody
	return err
}

// matches tells whether a tag is among those of If-None-Match, weakly compared (RFC 9110, section 13.1.2).
func matches(header []string, tag string) bool {
	opaque := strings.TrimPrefix(tag, "W/")
	for _, value := range header {
		for one := range strings.SplitSeq(value, ",") {
			if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == opaque {
				return true
			}
		}
	}
	return false
}

// completer picks the function for the answer's format, nil where there is none.
func completer(header http.Header) func([]byte, func(declared) additions) ([]byte, error) {
	if coding := header.Get("Content-Encoding"); coding != "" && coding != blob.Gzip {
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

// unpacked is a statement without the compression of a server that compresses whether it is asked to or not.
func unpacked(header http.Header, raw []byte) ([]byte, error) {
	if header.Get("Content-Encoding") == "" {
		return raw, nil
	}
	reader, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(reader, statementLimit+1))
	if err == nil && len(text) > statementLimit {
		err = errStatement
	}
	return text, err
}

// joined is a body of which a part was read already.
type joined struct {
	io.Reader
	io.Closer
}
