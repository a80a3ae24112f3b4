package proxy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// reading is a kick-off while it is read: what is understood goes into the Kickoff, what is not becomes a fault.
type reading struct {
	*state.Kickoff
	// posted tells that the request is a POST.
	posted bool
	// bases are those on which an absolute reference is one to a resource of this server.
	bases []string
	// maxFileBytes is the size that no file of this sidecar passes, 0 where it has none.
	maxFileBytes int64
	faults       faults
}

func (r *reading) fault(parameter, code, text string) {
	r.faults = append(r.faults, fault{parameter, code, text})
}

// parameter is one that a kick-off takes.
type parameter struct {
	// list tells that it may be repeated; a comma list means the same.
	list bool
	read func(r *reading, values []string)
}

// parameters are those of the guide, with the values of the generic asynchronous pattern.
var parameters = map[string]parameter{
	"_outputFormat":         {read: (*reading).outputFormat},
	"_since":                {read: func(r *reading, values []string) { r.instant("_since", values[0], &r.Since) }},
	"_until":                {read: func(r *reading, values []string) { r.instant("_until", values[0], &r.Until) }},
	"_type":                 {list: true, read: (*reading).types},
	"_typeFilter":           {list: true, read: (*reading).typeFilters},
	"_elements":             {list: true, read: (*reading).elements},
	"patient":               {list: true, read: (*reading).patients},
	"includeAssociatedData": {list: true, read: (*reading).associated},
	"organizeOutputBy":      {read: (*reading).organizeBy},
	// Who allows several manifests has to take a single one.
	"allowPartialManifests": {read: (*reading).partialManifests},
	"_minimumFileSize":      {read: func(r *reading, values []string) { r.fileSize("_minimumFileSize", values[0], &r.MinFileBytes) }},
	"_maximumFileSize":      {read: func(r *reading, values []string) { r.fileSize("_maximumFileSize", values[0], &r.MaxFileBytes) }},
}

// parameters reads all of them, in the order of their names.
func (r *reading) parameters(given map[string][]string) {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		base, _, modified := strings.Cut(name, ":")
		p, known := parameters[base]
		switch {
		case !known:
			r.fault(name, "not-supported", "the parameter "+printable(name)+" is not supported; a kick-off takes "+strings.Join(slices.Sorted(maps.Keys(parameters)), ", "))
		case modified:
			r.fault(base, "invalid", "the parameter "+base+" takes no modifier")
		case !p.list && len(given[name]) > 1:
			r.fault(name, "invalid", "the parameter "+name+" may be given once only")
		default:
			p.read(r, given[name])
		}
	}
	r.compare()
}

// compare holds the parameters against each other.
func (r *reading) compare() {
	if !r.Until.IsZero() && !r.Since.IsZero() && !r.Until.After(r.Since) {
		r.fault("_until", "invalid", "_until is not later than _since")
	}
	if r.MaxFileBytes > 0 && r.MaxFileBytes <= r.MinFileBytes {
		r.fault("_maximumFileSize", "invalid", "_maximumFileSize must be greater than _minimumFileSize")
		r.MinFileBytes, r.MaxFileBytes = 0, 0
	}
	if r.maxFileBytes > 0 && r.MinFileBytes >= r.maxFileBytes {
		r.fault("_minimumFileSize", "not-supported", "_minimumFileSize must be less than "+strconv.FormatInt(r.maxFileBytes, 10)+", the largest size of a file here")
		r.MinFileBytes = 0
	}
	if len(r.Types) > 0 {
		r.Filters = slices.DeleteFunc(r.Filters, func(filter state.TypeFilter) bool {
			outside := !slices.Contains(r.Types, filter.Type)
			if outside {
				r.fault("_typeFilter", "invalid", "_typeFilter filters the type "+filter.Type+", which _type does not name")
			}
			return outside
		})
	}
}

// listed joins repeats and comma lists, which mean the same.
func listed(values []string) []string {
	var all []string
	for _, value := range values {
		all = append(all, strings.Split(value, ",")...)
	}
	return all
}

// outputFormats are the names of NDJSON (Bulk Data guide, _outputFormat).
var outputFormats = []string{"application/fhir+ndjson", "application/ndjson", "ndjson"}

// outputFormat knows each format also with the suffix +gzip, for compressed files. A plus that was not encoded arrives as a
// blank.
func (r *reading) outputFormat(values []string) {
	format, gzip := strings.CutSuffix(strings.ReplaceAll(values[0], " ", "+"), "+gzip")
	if !slices.Contains(outputFormats, format) {
		r.fault("_outputFormat", "not-supported", "_outputFormat must be application/fhir+ndjson, application/ndjson or ndjson, or one of them with +gzip")
		return
	}
	r.Gzip = gzip
}

// dates are the forms of a date, which means its first instant in UTC.
var dates = []string{"2006", "2006-01", time.DateOnly}

func (r *reading) instant(name, value string, into *time.Time) {
	t, err := ParseBound(value)
	if err != nil {
		r.fault(name, "invalid", name+" is "+err.Error())
		return
	}
	*into = t
}

// ParseBound reads a value of _since or _until: an instant or a date. Its error says what it is not.
func ParseBound(value string) (time.Time, error) {
	t, err := fhir.ParseInstant(mendPlus(value))
	if err == nil {
		return t, nil
	}
	for _, form := range dates {
		if date, failed := time.Parse(form, value); failed == nil && date.Year() > 0 {
			return date, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w or a date such as 2021-12-08, 2021-12 or 2021", err)
}

// mendPlus puts the plus of a zone back that a client did not encode: it arrives as a blank.
func mendPlus(instant string) string {
	if i := strings.LastIndexByte(instant, ' '); i > 0 && i == len(instant)-len(" 00:00") {
		return instant[:i] + "+" + instant[i+1:]
	}
	return instant
}

func (r *reading) types(values []string) {
	for _, typ := range listed(values) {
		if isWord(typ) { // whether it is a type, in this case, is for the server's statement to say
			r.Types = append(r.Types, typ)
		} else {
			r.fault("_type", "invalid", "_type holds "+printable(typ)+", which is not the name of a resource type")
		}
	}
	slices.Sort(r.Types)
	r.Types = slices.Compact(r.Types)
}

func isTypeName(s string) bool { return isWord(s) && s[0] <= 'Z' }

func isWord(s string) bool { return s != "" && len(s) <= 64 && strings.Trim(s, letters) == "" }

const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// elements takes "Type.element" or "element", elements at the root only.
func (r *reading) elements(values []string) {
	for _, value := range listed(values) {
		typ, element, ofType := strings.Cut(value, ".")
		if !ofType {
			typ, element = "", value
		}
		switch {
		case ofType && !isTypeName(typ), !isElementName(element):
			r.fault("_elements", "invalid", "_elements holds "+printable(value)+", which is not Type.element or element: elements at the root of a resource only")
		case !slices.Contains(r.Elements, value):
			r.Elements = append(r.Elements, value)
		}
	}
}

// isElementName takes the name of a choice with and without its "[x]".
func isElementName(s string) bool {
	s = strings.TrimSuffix(s, "[x]")
	return s != "" && s[0] >= 'a' && s[0] <= 'z' && len(s) <= 64 && strings.Trim(s, letters) == ""
}

// patients takes references to Patients, relative or on a base of this server.
func (r *reading) patients(values []string) {
	switch {
	case r.Level == state.System:
		r.fault("patient", "not-supported", "the parameter patient is not one of an export of the whole system: use Patient/$export")
		return
	case !r.posted:
		r.fault("patient", "not-supported", "the parameter patient is taken in the body of a POST only")
		return
	}
	wrong := 0
	for _, reference := range listed(values) {
		for _, base := range r.bases {
			if rest, ok := strings.CutPrefix(reference, base+"/"); ok {
				reference = rest
				break
			}
		}
		id, ok := strings.CutPrefix(reference, "Patient/")
		if !ok || !isID(id) {
			wrong++
			continue
		}
		r.Patients = append(r.Patients, id)
	}
	if wrong > 0 {
		r.fault("patient", "invalid", strconv.Itoa(wrong)+" of the references in patient are not Patient/[id], relative or on the FHIR base of this server")
	}
	slices.Sort(r.Patients)
	r.Patients = slices.Compact(r.Patients)
}

// isID is as wide as servers are in their ids, and leaves out what would end a list or change an address.
func isID(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 128 && strings.Trim(s, letters+"0123456789-._~") == ""
}

// provenances are the values of includeAssociatedData (Bulk Data guide).
var provenances = []string{"LatestProvenanceResources", "RelevantProvenanceResources"}

func (r *reading) associated(values []string) {
	for _, value := range listed(values) {
		switch {
		case !slices.Contains(provenances, value):
			r.fault("includeAssociatedData", "not-supported", "includeAssociatedData takes "+strings.Join(provenances, " and ")+", not "+printable(value))
		case !slices.Contains(r.Associated, value):
			r.Associated = append(r.Associated, value)
		}
	}
}

func (r *reading) organizeBy(values []string) {
	switch {
	case !isTypeName(values[0]):
		r.fault("organizeOutputBy", "invalid", "organizeOutputBy is not the name of a resource type")
	case !slices.Contains(state.Organizable, values[0]):
		r.fault("organizeOutputBy", "not-supported", "organizeOutputBy takes "+strings.Join(state.Organizable, ", ")+", not "+printable(values[0]))
	default:
		r.OrganizeBy = values[0]
	}
}

func (r *reading) partialManifests(values []string) {
	if values[0] != "true" && values[0] != "false" {
		r.fault("allowPartialManifests", "invalid", "allowPartialManifests is not true or false")
		return
	}
	r.PartialManifests = values[0] == "true"
}

// fileSize takes a number of bytes.
func (r *reading) fileSize(name, value string, into *int64) {
	size, err := strconv.ParseInt(value, 10, 64)
	if err != nil || size <= 0 {
		r.fault(name, "invalid", name+" is not a positive number of bytes")
		return
	}
	*into = size
}

// printable quotes what a client sent, without its odd characters and not longer than a line.
func printable(s string) string {
	clean := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
	if len(clean) > 60 {
		clean = clean[:60] + "..."
	}
	return `"` + clean + `"`
}
