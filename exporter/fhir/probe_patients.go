package fhir

import (
	"context"
	"slices"
)

const (
	// listPatients is how many Patients are counted to find two that have rows.
	listPatients = 4
	// listTypes is how many types are asked whether they take lists of Patients.
	listTypes = 2
)

// patients is probe P9: the ways to ask for the rows of some Patients.
func (p *probe) patients(ctx context.Context) error {
	for _, ask := range []func(context.Context) error{p.patientLists, p.missing, p.hasGroupMember, p.compartmentSearch} {
		if err := ask(ctx); err != nil {
			return err
		}
	}
	return nil
}

// withPatients are the samples whose rows refer to Patients, up to listTypes.
func (p *probe) withPatients() []*sample {
	var found []*sample
	for _, s := range p.samples {
		if s.typ != "Patient" && len(s.patients) > 0 && len(found) < listTypes {
			found = append(found, s)
		}
	}
	return found
}

// patientLists looks for a spelling that all types take: an unknown Patient has no rows, and two together have as many as
// both of them alone.
func (p *probe) patientLists(ctx context.Context) error {
	asked := p.withPatients()
	if len(asked) == 0 || !p.profile.Counts {
		return nil
	}
	for _, spelling := range []ListSpelling{SpelledPatient, SpelledSubject} {
		taken, err := p.takenBy(ctx, asked, spelling)
		if err != nil {
			return err
		}
		if taken {
			p.profile.PatientLists, p.profile.ListSpelling = true, spelling
			return nil
		}
	}
	return nil
}

func (p *probe) takenBy(ctx context.Context, asked []*sample, spelling ListSpelling) (bool, error) {
	got, err := p.among(ctx, asked, "lists of Patients by "+string(spelling), func(ctx context.Context, s *sample) (answer, error) {
		if spelling == SpelledSubject && !s.patients[0].subject {
			return unasked, nil
		}
		got, err := p.joins(ctx, s, spelling)
		if got == no && err == nil { // a write in between changes a sum
			got, err = p.joins(ctx, s, spelling)
		}
		return got, err
	})
	return got == yes, err
}

// joins asks a type.
func (p *probe) joins(ctx context.Context, s *sample, spelling ListSpelling) (answer, error) {
	count := func(ids ...string) (int64, error) {
		return p.count(ctx, Query{Type: s.typ, Criteria: []QueryParam{spelling.Param(ids...)}})
	}
	if n, err := count(UnknownID); err != nil || n > 0 {
		return no, err
	}
	var ids []string
	var sum int64
	for _, patient := range s.patients[:min(listPatients, len(s.patients))] {
		n, err := count(patient.id)
		if err != nil {
			return no, err
		}
		if n > 0 {
			ids, sum = append(ids, patient.id), sum+n
		}
		if len(ids) == 2 {
			break
		}
	}
	if len(ids) < 2 {
		return unasked, nil
	}
	both, err := count(ids...)
	return verdict(both == sum), err
}

// missing asks a type how many rows have the parameter and how many do not: together they are all rows. A server that
// ignores the modifier finds all rows twice.
func (p *probe) missing(ctx context.Context) error {
	if !p.profile.PatientLists {
		return nil
	}
	got, err := p.one(ctx, "the modifier :missing", p.withPatients()[0], func(ctx context.Context, s *sample) (answer, error) {
		param := string(p.profile.ListSpelling) + ":missing"
		for range 2 {
			without, err := p.count(ctx, Query{Type: s.typ, Criteria: []QueryParam{{param, "true"}}})
			if err != nil {
				return no, err
			}
			having, err := p.count(ctx, Query{Type: s.typ, Criteria: []QueryParam{{param, "false"}}})
			if err != nil || having > 0 && without+having == s.count {
				return verdict(having > 0), err
			}
			if s.count, err = p.count(ctx, Query{Type: s.typ}); err != nil { // writes in between change it
				return no, err
			}
		}
		return no, nil
	})
	p.profile.MissingModifier = got == yes
	return err
}

// hasGroupMember asks for the members of a Group, if the server has one with Patients: an unknown Group has none, and a
// known one has nobody who is not in it.
func (p *probe) hasGroupMember(ctx context.Context) error {
	if !p.statement.Offers("Group") || !p.statement.Offers("Patient") {
		return nil
	}
	got, err := p.first(ctx, "_has:Group:member", func(ctx context.Context, _ *sample) (answer, error) {
		id, members, err := p.group(ctx)
		if err != nil || id == "" {
			return unasked, err
		}
		find := func(id string) (found, strangers int, err error) {
			err = p.read(ctx, Query{Type: "Patient", Criteria: []QueryParam{{"_has:Group:member:_id", id}}, Count: 50}, func(e *Entry) {
				found++
				if !slices.Contains(members, e.ID) {
					strangers++
				}
			})
			return found, strangers, err
		}
		found, _, err := find(UnknownID)
		if err != nil || found > 0 {
			return no, err
		}
		found, strangers, err := find(id)
		return verdict(found > 0 && strangers == 0), err
	})
	p.profile.HasGroupMember = got
	return err
}

// group returns a Group with the ids of the Patients in it, an empty id where there is none.
func (p *probe) group(ctx context.Context) (id string, members []string, err error) {
	err = p.read(ctx, Query{Type: "Group", Count: probeRows}, func(e *Entry) {
		group, err := ParseGroup(e.Resource)
		if id != "" || err != nil { // a Group that cannot be read is not one to ask about
			return
		}
		for _, member := range group.Members {
			if typ, patient, _, ok := splitReference(member.Reference); ok && typ == "Patient" {
				id, members = e.ID, append(members, patient)
			}
		}
	})
	return id, members, err
}

// compartmentSearch asks for the compartment of a Patient. Its controls are a Patient that nobody knows, and a type that
// belongs to no Patient: one server answers with all rows of it.
func (p *probe) compartmentSearch(ctx context.Context) error {
	compartment, err := PatientCompartment(p.profile.FHIRVersion)
	asked := p.withPatients()
	if err != nil || len(asked) == 0 {
		return nil //nolint:nilerr // a release without a table has no compartment to ask about
	}
	got, err := p.one(ctx, "Patient/{id}/{type}", asked[0], func(ctx context.Context, s *sample) (answer, error) {
		id := s.patients[0].id
		found, strangers := 0, 0
		err := p.read(ctx, Query{Type: s.typ, Patient: id, Count: 50}, func(e *Entry) {
			found++
			if !refersTo(compartment, e, id, p.client.Bases()) {
				strangers++
			}
		})
		if err != nil || found == 0 || strangers > 0 {
			return no, err
		}
		if got, err := p.noCompartment(ctx, s.typ, UnknownID); got != yes || err != nil {
			return got, err
		}
		foreign, err := p.foreignType(ctx, compartment)
		if err != nil || foreign == "" {
			return yes, err
		}
		return p.noCompartment(ctx, foreign, id)
	})
	p.profile.CompartmentSearch = got == yes
	return err
}

func refersTo(compartment *Compartment, e *Entry, id string, bases []string) bool {
	found := false
	err := compartment.References(e.Type, e.Resource, func(_, reference string) bool {
		got, local := LocalReference("Patient", reference, bases)
		found = local && got == id
		return !found
	})
	return err == nil && found
}

// noCompartment asks for a compartment that has to be empty.
func (p *probe) noCompartment(ctx context.Context, typ, id string) (answer, error) {
	rows := 0
	err := p.read(ctx, Query{Type: typ, Patient: id, Count: 1}, func(*Entry) { rows++ })
	return nothing(rows == 0, err)
}

// foreignType returns a type with rows that is in no Patient's compartment, or nothing.
func (p *probe) foreignType(ctx context.Context, compartment *Compartment) (string, error) {
	for _, typ := range []string{"Organization", "Practitioner", "Location", "Medication"} {
		if !p.statement.Offers(typ) || compartment.Contains(typ) {
			continue
		}
		rows := 0
		err := p.read(ctx, Query{Type: typ, Count: 1}, func(*Entry) { rows++ })
		if err != nil && !isAnswer(err) {
			return "", err
		}
		if rows > 0 {
			return typ, nil
		}
	}
	return "", nil
}
