package proxy_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

const (
	definitionBase = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"
	guideStatement = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
	unsupported    = "http://hl7.org/fhir/uv/bulkdata/Extension/operation-not-supported"

	jsonSystem  = `{"name":"export","definition":"` + definitionBase + `export"},{"name":"export-v4","definition":"` + definitionBase + `export|4.0.0-ballot"}`
	jsonPatient = `{"name":"export","definition":"` + definitionBase + `patient-export"},{"name":"export-v4","definition":"` + definitionBase + `patient-export|4.0.0-ballot"}`
	jsonGroup3  = `{"name":"export","definition":"` + definitionBase + `group-export"}`
	jsonGroup4  = `{"name":"export-v4","definition":"` + definitionBase + `group-export|4.0.0-ballot"}`
	jsonGroup   = jsonGroup3 + "," + jsonGroup4

	// STU3 refers to definitions.
	jsonReferred = `{"name":"export","definition":{"reference":"` + definitionBase + `export"}},{"name":"export-v4","definition":{"reference":"` + definitionBase + `export|4.0.0-ballot"}}`
	xmlReferred  = `<operation><name value="export"/><definition><reference value="` + definitionBase + `export"/></definition></operation>` +
		`<operation><name value="export-v4"/><definition><reference value="` + definitionBase + `export|4.0.0-ballot"/></definition></operation>`

	xmlSystem  = `<operation><name value="export"/><definition value="` + definitionBase + `export"/></operation>` + `<operation><name value="export-v4"/><definition value="` + definitionBase + `export|4.0.0-ballot"/></operation>`
	xmlPatient = `<operation><name value="export"/><definition value="` + definitionBase + `patient-export"/></operation>` + `<operation><name value="export-v4"/><definition value="` + definitionBase + `patient-export|4.0.0-ballot"/></operation>`
	xmlGroup3  = `<operation><name value="export"/><definition value="` + definitionBase + `group-export"/></operation>`
	xmlGroup4  = `<operation><name value="export-v4"/><definition value="` + definitionBase + `group-export|4.0.0-ballot"/></operation>`
	xmlGroup   = xmlGroup3 + xmlGroup4
)

// metadataOf answers GET metadata with a body and headers given in pairs.
func metadataOf(t *testing.T, contentType, body string, header ...string) *house {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/fhir/metadata" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(upstream.Close)
	return newHouse(t, upstream.URL+"/fhir", func(c *proxy.Config) { c.TypesOf = typesOfRelease })
}

// typesOfRelease exports all types that can be searched, those of the compartment at the other levels, of which STU3 has none.
// A statement without a release is exported whole.
func typesOfRelease(level state.Level, statement *fhir.CapabilityStatement) (types, beside []string, err error) {
	switch {
	case statement.FHIRVersion == "":
		return []string{"Group", "Patient", "Task"}, nil, nil
	case level == state.System:
		return statement.Types, nil, nil
	case strings.HasPrefix(statement.FHIRVersion, "3."):
		return nil, nil, errors.New("no table")
	}
	return []string{"Group", "Patient"}, []string{"Practitioner"}, nil
}

// whole marks in a row also what says that the server instantiates the guide's statement, in all rows in which anything is
// added.
func whole(format, marked string) string {
	at, text := strings.LastIndex(marked, "}"), `«,"instantiates":["`+guideStatement+`"]»`
	if strings.Contains(format, "xml") {
		at, text = strings.LastIndex(marked, "<rest>"), `«<instantiates value="`+guideStatement+`"/>»`
		if prefixed := strings.LastIndex(marked, "<f:rest>"); prefixed > 0 {
			at, text = prefixed, strings.Replace(text, "<", "<f:", 1)
		}
	}
	if !strings.Contains(marked, "«") || strings.Contains(marked, "instantiates") {
		return marked
	}
	return marked[:at] + text + marked[at:]
}

func jsonWithout(canonical string) string {
	return `{"url":"` + unsupported + `","valueCanonical":"` + canonical + `"}`
}

func xmlWithout(canonical string) string {
	return `<extension url="` + unsupported + `"><valueCanonical value="` + canonical + `"/></extension>`
}

// Each row marks with « » what is added; everything else has to be byte-equal.
var jsonStatements = map[string]string{
	"compact": `{"resourceType":"CapabilityStatement","rest":[{"mode":"server","resource":[{"type":"Patient"«,"operation":[` + jsonPatient + `]»},` +
		`{"type":"Group"«,"operation":[` + jsonGroup + `]»}]«,"operation":[` + jsonSystem + `]»}]}`,
	"pretty": "{\n  \"resourceType\" : \"CapabilityStatement\",\r\n  \"x\" : 1.10,\n  \"rest\" : [ {\n    \"resource\" : [ {\n      \"type\" : \"Patient\",\n" +
		"      \"operation\" : [ {\n        \"name\" : \"everything\"\n      } «," + jsonPatient + "»]\n    }, {\"type\":\"Gro\\u0075p\"\n   «,\"operation\":[" + jsonGroup + "]»} ],\n" +
		"    \"mode\" : \"server\",\n    \"operation\" : [ «" + jsonSystem + "»]\n  } ]\n}\n",
	"no Patient, no Group": `{"rest":[{"mode":"server","resource":[{"type":"Task"}«,{"type":"Patient","operation":[` + jsonPatient + `]},{"type":"Group","operation":[` + jsonGroup + `]}»]` +
		`«,"operation":[` + jsonSystem + `]»}],"resourceType":"CapabilityStatement"}`,
	"empty resource": `{"resourceType":"CapabilityStatement","rest":[{"resource":[«{"type":"Patient","operation":[` + jsonPatient + `]},{"type":"Group","operation":[` + jsonGroup + `]}»],` +
		`"mode":"server"«,"operation":[` + jsonSystem + `]»}]}`,
	"no resource": `{"resourceType":"CapabilityStatement","rest":[{"mode":"client"},{"mode":"server"«,"operation":[` + jsonSystem + `]»` +
		`«,"resource":[{"type":"Patient","operation":[` + jsonPatient + `]},{"type":"Group","operation":[` + jsonGroup + `]}]»}]}`,
	"there already": `{"resourceType":"CapabilityStatement","instantiates":["x","` + guideStatement + `|2.0.0"],"rest":[{"mode":"server","resource":[{"type":"Patient","operation":[` + jsonPatient + `]},` +
		`{"type":"Group","operation":[{"definition":"` + definitionBase + `group-export|2.0.0","name":"export"},` + jsonGroup4 + `]}],"operation":[` + jsonSystem + `]}]}`,
	"the older release there": `{"resourceType":"CapabilityStatement","instantiates":["` + guideStatement + `"],"rest":[{"mode":"server","resource":[{"type":"Patient","operation":[` + jsonPatient + `]},` +
		`{"type":"Group","operation":[` + jsonGroup3 + `«,` + jsonGroup4 + `»]}],"operation":[` + jsonSystem + `]}]}`,
	"instantiates another": `{"resourceType":"CapabilityStatement","instantiates":["x"«,"` + guideStatement + `"»],"rest":[{"mode":"server"«,"operation":[` + jsonSystem + `]»` +
		`«,"resource":[{"type":"Patient","operation":[` + jsonPatient + `]},{"type":"Group","operation":[` + jsonGroup + `]}]»}]}`,
	"left out": `{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1","rest":[{"mode":"server","resource":[` +
		`{"type":"Basic"«,"extension":[` + jsonWithout(guideStatement) + `]»},` +
		`{"type":"Library","interaction":[{"code":"read"},{"code":"search-type"}],"extension":[{"url":"x"}«,` + jsonWithout(definitionBase+"patient-export") + `,` + jsonWithout(definitionBase+"group-export") + `»]},` +
		`{"type":"Binary","extension":[` + jsonWithout("x") + `]},` +
		`{"type":"Practitioner","interaction":[{"code":"search-type"}]},` +
		`{"type":"Group","interaction":[{"code":"search-type"}]«,"operation":[` + jsonGroup + `]»},` +
		`{"type":"Patient","interaction":[{"code":"search-type"}]«,"operation":[` + jsonPatient + `]»}]«,"operation":[` + jsonSystem + `]»}]}`,
	"STU3": `{"resourceType":"CapabilityStatement","fhirVersion":"3.0.2","rest":[{"mode":"server","resource":[{"type":"Patient","interaction":[{"code":"search-type"}]},` +
		`{"type":"Basic"«,"extension":[` + strings.Replace(jsonWithout(guideStatement), "valueCanonical", "valueUri", 1) + `]»}],` +
		`"operation":[{"name":"x","definition":{"reference":"OperationDefinition/x"}}«,` + jsonReferred + `»]}]}`,
	"there already in STU3": `{"resourceType":"CapabilityStatement","fhirVersion":"3.0.2","instantiates":["` + guideStatement + `"],"rest":[{"mode":"server","operation":[` + jsonReferred + `]}]}`,
	"terminology":           `{"resourceType":"TerminologyCapabilities","rest":[{"mode":"server"}]}`,
	"no rest":               `{"resourceType":"CapabilityStatement","status":"active"}`,
	"client only":           `{"resourceType":"CapabilityStatement","rest":[{"mode":"client"}]}`,
	"outcome":               `{"resourceType":"OperationOutcome","issue":[]}`,
	"array":                 `[1,2]`,
	"broken":                `{"resourceType":"CapabilityStatement","rest":[{"mode":"server"`,
	"rest of own shape":     `{"resourceType":"CapabilityStatement","rest":{"mode":"server"}}`,
	"empty":                 ``,
}

var xmlStatements = map[string]string{
	"compact": `<?xml version="1.0" encoding="UTF-8"?><CapabilityStatement xmlns="http://hl7.org/fhir"><rest><mode value="server"/><resource><type value="Patient"/>«` + xmlPatient + `»</resource>` +
		`<resource><type value="Group"/><operation><name value="x"/><definition value="y"/></operation>«` + xmlGroup + `»</resource>«` + xmlSystem + `»</rest></CapabilityStatement>`,
	"prefix": `<f:CapabilityStatement xmlns:f="http://hl7.org/fhir"><f:rest><f:mode value='server'/><f:resource ><f:type value="Patient"></f:type>«` +
		strings.NewReplacer("</", "</f:", "<", "<f:").Replace(xmlPatient) + `»</f:resource><f:resource><f:type value="Group"/>«` +
		strings.NewReplacer("</", "</f:", "<", "<f:").Replace(xmlGroup) + `»</f:resource>«` + strings.NewReplacer("</", "</f:", "<", "<f:").Replace(xmlSystem) + `»</f:rest></f:CapabilityStatement>`,
	"order of elements": `<CapabilityStatement xmlns="http://hl7.org/fhir"><!-- <rest> --><text><div xmlns="http://www.w3.org/1999/xhtml">&lt;rest&gt;</div></text><rest><mode value="server"/>` +
		"\n  <resource><type value=\"Task\"/></resource>\n  «<resource><type value=\"Patient\"/>" + xmlPatient + `</resource><resource><type value="Group"/>` + xmlGroup + `</resource>»` +
		`<interaction><code value="batch"/></interaction><searchParam><name value="x"/></searchParam><operation><name value="y"/></operation>«` + xmlSystem + `»<compartment value="z"/></rest></CapabilityStatement>`,
	"left out": `<CapabilityStatement xmlns="http://hl7.org/fhir"><kind value="instance"/><instantiates value="x"/>«<instantiates value="` + guideStatement + `"/>»<software><name value="rest"/></software>` +
		`<fhirVersion value="4.0.1"/><rest><mode value="server"/><resource>«` + xmlWithout(guideStatement) + `»<type value="Basic"/></resource>` +
		`<resource>«` + xmlWithout(definitionBase+"patient-export") + xmlWithout(definitionBase+"group-export") + `»<extension url="x"/><type value="Library"/><interaction><code value="search-type"/></interaction></resource>` +
		`<resource>` + xmlWithout("x") + `<type value="Binary"/></resource>` +
		`<resource><type value="Practitioner"/><interaction><code value="search-type"/></interaction></resource>` +
		`<resource><type value="Group"/><interaction><code value="search-type"/></interaction>«` + xmlGroup + `»</resource>` +
		`<resource><type value="Patient"/><interaction><code value="search-type"/></interaction>«` + xmlPatient + `»</resource>«` + xmlSystem + `»</rest></CapabilityStatement>`,
	"STU3": `<CapabilityStatement xmlns="http://hl7.org/fhir">«<instantiates value="` + guideStatement + `"/>»<fhirVersion value="3.0.2"/><rest><mode value="server"/><resource>«` +
		strings.ReplaceAll(xmlWithout(guideStatement), "valueCanonical", "valueUri") + `»<type value="Basic"/></resource>` +
		`<operation><name value="x"/><definition><reference value="OperationDefinition/x"/></definition></operation>«` + xmlReferred + `»</rest></CapabilityStatement>`,
	"there already in STU3": `<CapabilityStatement xmlns="http://hl7.org/fhir"><instantiates value="` + guideStatement + `"/><fhirVersion value="3.0.2"/>` +
		`<rest><mode value="server"/>` + xmlReferred + `</rest></CapabilityStatement>`,
	"there already": `<CapabilityStatement xmlns="http://hl7.org/fhir"><instantiates value="` + guideStatement + `|2.0.0"/><rest><mode value="server"/><resource><type value="Patient"/>` + xmlPatient + `</resource>` +
		`<resource><type value="Group"/>` + strings.ReplaceAll(xmlGroup, `group-export"`, `group-export|2.0.0"`) + `</resource>` + xmlSystem + `</rest></CapabilityStatement>`,
	"the older release there": `<CapabilityStatement xmlns="http://hl7.org/fhir"><instantiates value="` + guideStatement + `"/><rest><mode value="server"/><resource><type value="Patient"/>` + xmlPatient + `</resource>` +
		`<resource><type value="Group"/>` + xmlGroup3 + `«` + xmlGroup4 + `»</resource>` + xmlSystem + `</rest></CapabilityStatement>`,
	"terminology": `<TerminologyCapabilities xmlns="http://hl7.org/fhir"><rest><mode value="server"/></rest></TerminologyCapabilities>`,
	"no rest":     `<CapabilityStatement xmlns="http://hl7.org/fhir"><status value="active"/></CapabilityStatement>`,
	"broken":      `<CapabilityStatement xmlns="http://hl7.org/fhir"><rest><mode value="server"/></CapabilityStatement>`,
	"cut":         `<CapabilityStatement xmlns="http://hl7.org/fhir"><rest><mode value="server"/>`,
	"HTML":        `<!DOCTYPE html><html><body>Please sign in<br></body></html>`,
	"latin":       `<?xml version="1.0" encoding="ISO-8859-1"?><CapabilityStatement><rest><mode value="server"/></rest></CapabilityStatement>`,
}

func TestMetadataIsCompletedAndElseByteEqual(t *testing.T) {
	for format, rows := range map[string]map[string]string{
		"application/fhir+json;charset=UTF-8": jsonStatements,
		"application/json":                    jsonStatements,
		"application/fhir+xml; charset=utf-8": xmlStatements,
		"text/xml":                            xmlStatements,
	} {
		for name, marked := range rows {
			t.Run(format+"/"+name, func(t *testing.T) {
				marked := whole(format, marked)
				want := strings.NewReplacer("«", "", "»", "").Replace(marked)
				h := metadataOf(t, format, withoutMarked(marked), "ETag", `"7"`)
				got := h.ask(http.MethodGet, h.base+"/metadata?mode=full")
				if got.body != want {
					t.Errorf("statement:\n got %s\nwant %s", got.body, want)
				}
				if got.header.Get("Content-Length") != strconv.Itoa(len(want)) || got.header.Get("Content-Type") != format || got.header.Get("ETag") == `"7"` && strings.Contains(marked, "«") {
					t.Errorf("header: got %q", got.header)
				}
				if strings.Contains(marked, "«") {
					checkParses(t, format, got.body)
				}
			})
		}
	}
}

// withoutMarked cuts out what the marks enclose.
func withoutMarked(marked string) string {
	var out strings.Builder
	for i, part := range strings.Split(marked, "«") {
		if i > 0 {
			_, part, _ = strings.Cut(part, "»")
		}
		out.WriteString(part)
	}
	return out.String()
}

func checkParses(t *testing.T, format, body string) {
	t.Helper()
	if strings.Contains(format, "json") {
		if !json.Valid([]byte(body)) {
			t.Error("the statement is no JSON any more")
		}
		return
	}
	for decoder := xml.NewDecoder(strings.NewReader(body)); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("the statement is no XML any more: %v", err)
		}
	}
}

// Ensure the server is asked for no compression, and that what it compresses all the same is completed: only what cannot be
// unpacked is passed on as it is.
func TestMetadataIsAskedUncompressedAndUnpackedWhenItIsNot(t *testing.T) {
	marked := whole("application/fhir+json", jsonStatements["compact"])
	var packed bytes.Buffer
	writer := gzip.NewWriter(&packed)
	if _, err := io.WriteString(writer, withoutMarked(marked)); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	completed := strings.NewReplacer("«", "", "»", "").Replace(marked)
	for name, test := range map[string]struct{ coding, sent, want, left string }{
		"gzip":           {"gzip", packed.String(), completed, ""},
		"a broken one":   {"gzip", packed.String()[:packed.Len()-9], packed.String()[:packed.Len()-9], "gzip"},
		"another coding": {"br", "x" + packed.String(), "x" + packed.String(), "br"},
	} {
		t.Run(name, func(t *testing.T) {
			h := metadataOf(t, "application/fhir+json", test.sent, "Content-Encoding", test.coding)
			got := h.ask(http.MethodGet, h.base+"/metadata", "Accept-Encoding", "gzip")
			if got.body != test.want || got.header.Get("Content-Encoding") != test.left || got.header.Get("Content-Length") != strconv.Itoa(len(test.want)) {
				t.Errorf("got %q and %q", got.header, got.body)
			}
		})
	}
	upstream := newRawUpstream(t, replying(plainReply))
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	h.ask(http.MethodGet, h.base+"/metadata", "Accept-Encoding", "br, gzip")
	if got := await(t, "request", upstream.seen).header.Get("Accept-Encoding"); got != "identity" {
		t.Errorf("Accept-Encoding: got %q", got)
	}
}

// Ensure the server is asked for what the client asks for, in its format and its mode, and never whether a statement has changed
// that the client does not hold.
func TestMetadataIsAskedAsTheClientAsks(t *testing.T) {
	upstream := newRawUpstream(t, replying(plainReply))
	h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
	h.ask(http.MethodGet, h.base+"/metadata?mode=terminology&_format=xml", "Accept", "text/xml;fhirVersion=4.0",
		"If-None-Match", `"1"`, "If-Modified-Since", "Mon, 02 Jan 2006 15:04:05 GMT")
	asked := await(t, "request", upstream.seen)
	if asked.line != "GET /fhir/metadata?mode=terminology&_format=xml HTTP/1.1" || asked.header.Get("Accept") != "text/xml;fhirVersion=4.0" {
		t.Errorf("the server is asked %s with Accept %q", asked.line, asked.header.Get("Accept"))
	}
	if asked.header.Get("If-None-Match")+asked.header.Get("If-Modified-Since") != "" {
		t.Errorf("the server is asked on condition: %q", asked.header)
	}
}

func TestMetadataLeavesOtherAnswersAlone(t *testing.T) {
	statement := withoutMarked(jsonStatements["compact"])
	for name, test := range map[string]struct{ method, path, reply string }{
		"not modified": {"GET", "/metadata", "HTTP/1.1 304 Not Modified\r\nETag: \"7\"\r\n\r\n"},
		"error":        {"GET", "/metadata", "HTTP/1.1 500 Oops\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(statement)) + "\r\n\r\n" + statement},
		"text":         {"GET", "/metadata", "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " + strconv.Itoa(len(statement)) + "\r\n\r\n" + statement},
		"other path":   {"GET", "/metadata/x", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(statement)) + "\r\n\r\n" + statement},
		"post":         {"POST", "/metadata", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(statement)) + "\r\n\r\n" + statement},
	} {
		t.Run(name, func(t *testing.T) {
			upstream := newRawUpstream(t, replying(test.reply))
			h := newHouse(t, "http://"+upstream.address+"/fhir", nil)
			got := h.ask(test.method, h.base+test.path)
			_, want, _ := strings.Cut(test.reply, "\r\n\r\n")
			if got.body != want {
				t.Errorf("body:\n got %s\nwant %s", got.body, want)
			}
		})
	}
}

// Ensure HEAD tells the length and the tag of what GET answers.
func TestMetadataHead(t *testing.T) {
	h := metadataOf(t, "application/fhir+json", withoutMarked(jsonStatements["compact"]), "ETag", `W/"7"`)
	whole := h.ask(http.MethodGet, h.base+"/metadata")
	head := h.ask(http.MethodHead, h.base+"/metadata")
	if head.status != http.StatusOK || head.body != "" || head.header.Get("ETag") == "" {
		t.Errorf("HEAD: got %d, %q, %v", head.status, head.body, head.header)
	}
	for _, name := range []string{"Content-Length", "Content-Type", "ETag"} {
		if head.header.Get(name) != whole.header.Get(name) {
			t.Errorf("%s: HEAD says %q, GET %q", name, head.header.Get(name), whole.header.Get(name))
		}
	}
}

// Ensure a client that has the statement is told so by the tag of the completed one, and never by the server's own.
func TestMetadataIsNotModified(t *testing.T) {
	h := metadataOf(t, "application/fhir+json", withoutMarked(jsonStatements["compact"]), "ETag", `W/"7"`)
	tag := h.ask(http.MethodGet, h.base+"/metadata").header.Get("ETag")
	for asked, want := range map[string]int{
		tag: http.StatusNotModified, `"x", ` + tag: http.StatusNotModified, strings.TrimPrefix(tag, "W/"): http.StatusNotModified, "*": http.StatusNotModified,
		`W/"7"`: http.StatusOK, `"7"`: http.StatusOK,
	} {
		got := h.ask(http.MethodGet, h.base+"/metadata", "If-None-Match", asked)
		if got.status != want || got.header.Get("ETag") != tag || (got.body == "") != (want == http.StatusNotModified) {
			t.Errorf("%s: got %d, %q with %d bytes", asked, got.status, got.header.Get("ETag"), len(got.body))
		}
	}
}

func TestMetadataTooLargeIsPassedOn(t *testing.T) {
	statement := withoutMarked(jsonStatements["compact"]) + strings.Repeat(" ", 33<<20)
	h := metadataOf(t, "application/json", statement)
	if got := h.ask(http.MethodGet, h.base+"/metadata"); got.body != statement {
		t.Errorf("body: got %d bytes, want %d", len(got.body), len(statement))
	}
}
