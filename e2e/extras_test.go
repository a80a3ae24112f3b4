package e2e

import (
	"encoding/json"
	"fmt"
)

const (
	groupTen     = "e2e-ten"     // ten patients of the base set and the one who was written late
	groupNested  = "e2e-nested"  // a patient and the group below; each of the two names the other
	groupInner   = "e2e-inner"   // two patients
	groupEnded   = "e2e-ended"   // members who count and members who no longer do
	groupEmpty   = "e2e-empty"   // nobody
	groupBig     = "e2e-big"     // 40 % of the base set and the one who was written late
	groupDevices = "e2e-devices" // no patient in it, so it is in nobody's compartment

	burstRows = 1_500
)

// planExtras adds what neither set has. Positions below 10 are members of groupTen, position 20 and above are not.
func (d *dataset) planExtras() {
	d.plan(bundleSize, d.supporting()...)
	d.plan(bundleSize, d.oddMembers()...)
	d.plan(bundleSize, d.notMembers()...)
	// HAPI does not index these references: the Patient comes only with the next step.
	d.plan(bundleSize,
		row(`{"resourceType":"Observation","id":"e2e-early-observation","status":"final","code":{"text":"early"},"subject":{"reference":"Patient/e2e-late"}}`),
		row(`{"resourceType":"Encounter","id":"e2e-early-encounter","status":"finished","class":{"code":"AMB"},"subject":{"reference":"Patient/e2e-late"}}`))
	d.plan(bundleSize, row(`{"resourceType":"Patient","id":"e2e-late","gender":"other"}`))
	d.plan(bundleSize, d.groups()...)
	// All rows of a transaction share one lastUpdated, and no page holds this many.
	d.plan(burstRows, d.burst()...)
}

func (d *dataset) patient(position int) string {
	return "Patient/" + d.patients[position]
}

// supporting are resources of types that the base set lacks, most of them in nobody's compartment.
func (d *dataset) supporting() []json.RawMessage {
	return []json.RawMessage{
		row(`{"resourceType":"Location","id":"e2e-location","name":"Ward 1"}`),
		row(`{"resourceType":"Medication","id":"e2e-medication","code":{"text":"Ibuprofen"}}`),
		row(`{"resourceType":"PractitionerRole","id":"e2e-role","active":true,"location":[{"reference":"Location/e2e-location"}]}`),
		row(`{"resourceType":"RelatedPerson","id":"e2e-related","patient":{"reference":%q}}`, d.patient(0)),
		row(`{"resourceType":"Device","id":"e2e-device","patient":{"reference":%q}}`, d.patient(0)),
		row(`{"resourceType":"Device","id":"e2e-device-of-other","patient":{"reference":%q}}`, d.patient(21)),
		row(`{"resourceType":"Device","id":"e2e-device-of-nobody"}`),
		row(`{"resourceType":"Task","id":"e2e-task","status":"draft","intent":"order","for":{"reference":%q}}`, d.patient(0)),
		row(`{"resourceType":"AuditEvent","id":"e2e-audit","type":{"code":"rest"},"recorded":"2020-01-01T00:00:00Z",`+
			`"agent":[{"requestor":true}],"source":{"observer":{"display":"x"}},"entity":[{"what":{"reference":%q}}]}`, d.patient(0)),
		row(`{"resourceType":"Provenance","id":"e2e-provenance-patient","recorded":"2020-01-01T00:00:00Z",`+
			`"agent":[{"who":{"display":"x"}}],"target":[{"reference":%q}]}`, d.patient(0)),
		row(`{"resourceType":"Provenance","id":"e2e-provenance-row","recorded":"2020-01-01T00:00:00Z",` +
			`"agent":[{"who":{"display":"x"}}],"target":[{"reference":"Observation/e2e-exact"}]}`),
		row(`{"resourceType":"Provenance","id":"e2e-provenance-both","recorded":"2020-01-01T00:00:00Z",`+
			`"agent":[{"who":{"display":"x"}}],"target":[{"reference":"Observation/e2e-exact"},{"reference":%q}]}`, d.patient(20)),
		// What a decoder that goes through a float or rewrites strings would spoil.
		row(`{"resourceType":"Observation","id":"e2e-exact","status":"final","code":{"text":"caf\u00e9 \"q\" \\ \/ \ud83d\ude00 naïve 漢字 <&> \t|"},`+
			`"subject":{"reference":%q},"valueQuantity":{"value":1.10,"unit":"µg"},"component":[`+
			`{"code":{"text":"zeros"},"valueQuantity":{"value":100.000}},{"code":{"text":"small"},"valueQuantity":{"value":0.00000010}},`+
			`{"code":{"text":"long"},"valueQuantity":{"value":123456789012345678.123456789}}]}`, d.patient(0)),
	}
}

// oddMembers are in a compartment by a path other than the usual subject or patient, some in two compartments.
func (d *dataset) oddMembers() []json.RawMessage {
	return []json.RawMessage{
		row(`{"resourceType":"Observation","id":"e2e-two-observation","status":"final","code":{"text":"x"},"subject":{"reference":%q},"performer":[{"reference":%q}]}`,
			d.patient(20), d.patient(0)),
		row(`{"resourceType":"AllergyIntolerance","id":"e2e-two-recorder","patient":{"reference":%q},"recorder":{"reference":%q}}`, d.patient(21), d.patient(1)),
		row(`{"resourceType":"AllergyIntolerance","id":"e2e-two-asserter","patient":{"reference":%q},"asserter":{"reference":%q}}`, d.patient(22), d.patient(2)),
		row(`{"resourceType":"Condition","id":"e2e-two-condition","subject":{"reference":%q},"asserter":{"reference":%q}}`, d.patient(23), d.patient(3)),
		row(`{"resourceType":"Procedure","id":"e2e-two-procedure","status":"completed","subject":{"reference":%q},"performer":[{"actor":{"reference":%q}}]}`,
			d.patient(24), d.patient(4)),
		row(`{"resourceType":"Observation","id":"e2e-only-performer","status":"final","code":{"text":"x"},"performer":[{"reference":%q}]}`, d.patient(5)),
		row(`{"resourceType":"Observation","id":"e2e-versioned","status":"final","code":{"text":"x"},"subject":{"reference":"%s/_history/1"}}`, d.patient(6)),
		row(`{"resourceType":"Communication","id":"e2e-sender","status":"completed","sender":{"reference":%q}}`, d.patient(7)),
		row(`{"resourceType":"DocumentReference","id":"e2e-author","status":"current","author":[{"reference":%q}],"content":[{"attachment":{"title":"x"}}]}`, d.patient(8)),
		row(`{"resourceType":"Appointment","id":"e2e-appointment","status":"booked","participant":[{"actor":{"reference":"Location/e2e-location"},"status":"accepted"},`+
			`{"actor":{"reference":%q},"status":"accepted"}]}`, d.patient(2)),
		row(`{"resourceType":"Coverage","id":"e2e-coverage","status":"active","beneficiary":{"reference":%q},"payor":[{"reference":%q}]}`, d.patient(20), d.patient(3)),
		row(`{"resourceType":"List","id":"e2e-list","status":"current","mode":"working","source":{"reference":%q}}`, d.patient(4)),
		row(`{"resourceType":"Schedule","id":"e2e-schedule","actor":[{"reference":%q}]}`, d.patient(5)),
		row(`{"resourceType":"Person","id":"e2e-person","link":[{"target":{"reference":%q}}]}`, d.patient(1)),
		// A link would pull a Patient who is no member into a Group's export.
		row(`{"resourceType":"Patient","id":"e2e-linked","link":[{"other":{"reference":%q},"type":"seealso"}]}`, d.patient(0)),
	}
}

// notMembers look as if they were in a compartment and are in none.
func (d *dataset) notMembers() []json.RawMessage {
	return []json.RawMessage{
		row(`{"resourceType":"Observation","id":"e2e-contained","status":"final","code":{"text":"x"},"contained":[{"resourceType":"Patient","id":"p"},` +
			`{"resourceType":"Practitioner","id":"q"}],"subject":{"reference":"#p"},"performer":[{"reference":"#q"}]}`),
		row(`{"resourceType":"Observation","id":"e2e-of-device","status":"final","code":{"text":"x"},"subject":{"reference":"Device/e2e-device"}}`),
		row(`{"resourceType":"Observation","id":"e2e-of-group","status":"final","code":{"text":"x"},"subject":{"reference":"Group/%s"}}`, groupTen),
		row(`{"resourceType":"Observation","id":"e2e-logical","status":"final","code":{"text":"x"},"subject":{"identifier":{"value":"1"},"display":"by number only"}}`),
		row(`{"resourceType":"Observation","id":"e2e-focus","status":"final","code":{"text":"x"},"focus":[{"reference":%q}]}`, d.patient(0)),
	}
}

func (d *dataset) groups() []json.RawMessage {
	member := func(reference, more string) string {
		return fmt.Sprintf(`{"entity":{"reference":%q}%s}`, reference, more)
	}
	var ten, big []string
	for position := range d.patients {
		if position < 10 {
			ten = append(ten, member(d.patient(position), ""))
		}
		if position%5 < 2 {
			big = append(big, member(d.patient(position), ""))
		}
	}
	late := member("Patient/e2e-late", "")
	return []json.RawMessage{
		group(groupTen, append(ten, late)...),
		group(groupNested, member(d.patient(10), ""), member("Group/"+groupInner, "")),
		group(groupInner, member(d.patient(11), ""), member(d.patient(20), ""), member("Group/"+groupNested, "")),
		group(groupEnded,
			member(d.patient(12), ""),
			member(d.patient(13), `,"inactive":true`),
			member(d.patient(14), `,"period":{"start":"2019-01-01","end":"2020-01-01"}`),
			member(d.patient(15), `,"period":{"start":"2999-01-01"}`),
			member(d.patient(16), `,"period":{"start":"2019-01-01T00:00:00+02:00"},"inactive":false`),
			member(d.patient(17), `,"period":{"end":"2999"}`)),
		group(groupEmpty),
		group(groupBig, append(big, late)...),
		row(`{"resourceType":"Group","id":%q,"type":"device","actual":true,"member":[{"entity":{"reference":"Device/e2e-device"}}]}`, groupDevices),
	}
}

func group(id string, members ...string) json.RawMessage {
	list := ""
	for number, member := range members {
		if number > 0 {
			list += ","
		}
		list += member
	}
	if list != "" {
		list = `,"member":[` + list + `]`
	}
	return row(`{"resourceType":"Group","id":%q,"type":"person","actual":true%s}`, id, list)
}

func (d *dataset) burst() []json.RawMessage {
	rows := make([]json.RawMessage, 0, burstRows)
	for number := range burstRows {
		rows = append(rows, row(`{"resourceType":"Observation","id":"e2e-burst-%04d","status":"final","code":{"text":"burst"},`+
			`"subject":{"reference":%q},"valueQuantity":{"value":%d.10}}`, number, d.patient(number%len(d.patients)), number))
	}
	return rows
}
