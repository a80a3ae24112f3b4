package fhirtest

import (
	"slices"
	"strings"
)

// resourceTypes are the types of R4 that servers offer, without the regulatory family of substances and products.
var resourceTypes = strings.Fields(`
Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse AuditEvent Basic Binary
BiologicallyDerivedProduct BodyStructure Bundle CapabilityStatement CarePlan CareTeam CatalogEntry ChargeItem
ChargeItemDefinition Claim ClaimResponse ClinicalImpression CodeSystem Communication CommunicationRequest
CompartmentDefinition Composition ConceptMap Condition Consent Contract Coverage CoverageEligibilityRequest
CoverageEligibilityResponse DetectedIssue Device DeviceDefinition DeviceMetric DeviceRequest DeviceUseStatement
DiagnosticReport DocumentManifest DocumentReference EffectEvidenceSynthesis Encounter Endpoint EnrollmentRequest
EnrollmentResponse EpisodeOfCare EventDefinition Evidence EvidenceVariable ExampleScenario ExplanationOfBenefit
FamilyMemberHistory Flag Goal GraphDefinition Group GuidanceResponse HealthcareService ImagingStudy Immunization
ImmunizationEvaluation ImmunizationRecommendation ImplementationGuide InsurancePlan Invoice Library Linkage List
Location Measure MeasureReport Media Medication MedicationAdministration MedicationDispense MedicationKnowledge
MedicationRequest MedicationStatement MessageDefinition MessageHeader MolecularSequence NamingSystem NutritionOrder
Observation ObservationDefinition OperationDefinition Organization OrganizationAffiliation Patient
PaymentNotice PaymentReconciliation Person PlanDefinition Practitioner PractitionerRole Procedure Provenance
Questionnaire QuestionnaireResponse RelatedPerson RequestGroup ResearchDefinition ResearchElementDefinition
ResearchStudy ResearchSubject RiskAssessment RiskEvidenceSynthesis Schedule SearchParameter ServiceRequest Slot
Specimen SpecimenDefinition StructureDefinition StructureMap Subscription Substance SupplyDelivery SupplyRequest Task
TerminologyCapabilities TestReport TestScript ValueSet VerificationResult VisionPrescription`)

// fewTypes are those of a small clinic's records, the first and the last one by name, and some that stay empty.
var fewTypes = strings.Fields(`
Account AllergyIntolerance Appointment AuditEvent Binary Bundle Condition Device DocumentReference Encounter Group
Immunization Location Medication MedicationRequest Observation Organization Patient Practitioner PractitionerRole Provenance Task
VisionPrescription`)

// AllTypes lists the types of R4 that a server offers where its personality names none.
func AllTypes() []string { return slices.Clone(resourceTypes) }

// FewTypes lists what a server offers in tests that are not about how many types there are: an export asks for each of them
// several times, so that more empty ones cost most of its time and show nothing.
func FewTypes() []string { return slices.Clone(fewTypes) }
