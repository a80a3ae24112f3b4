package hapi;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.support.DefaultProfileValidationSupport;
import ca.uhn.fhir.validation.*;
import java.io.IOException;
import java.nio.file.*;
import java.util.List;
import org.hl7.fhir.common.hapi.validation.support.*;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;

/** HAPI's validator for R4 over the files of a folder, one resource each, in JSON (.json) or XML (.xml). */
public class Validate {
  public static void main(String[] args) throws IOException {
    System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "error");
    var context = FhirContext.forR4();
    var validator = context.newValidator();
    validator.registerValidatorModule(new FhirInstanceValidator(new ValidationSupportChain(
        new DefaultProfileValidationSupport(context), new CommonCodeSystemsTerminologyService(context),
        new InMemoryTerminologyServerValidationSupport(context), new SnapshotGeneratingValidationSupport(context))));

    List<Path> files;
    try (var found = Files.list(Path.of(args[0]))) {
      files = found.sorted().toList();
    }
    for (var file : files) {
      for (var message : validator.validateWithResult(Files.readString(file)).getMessages()) {
        System.out.println(message.getSeverity().getCode() + "\t" + file.getFileName() + "\t" + message.getLocationString() + "\t"
            + message.getMessage().replaceAll("\\s+", " "));
      }
    }
    System.out.println("validated\t" + files.size());
  }
}
