package hapi;

import ca.uhn.fhir.context.FhirContext;
import ca.uhn.fhir.context.FhirVersionEnum;
import ca.uhn.fhir.context.support.DefaultProfileValidationSupport;
import ca.uhn.fhir.validation.*;
import java.io.IOException;
import java.nio.file.*;
import java.util.List;
import org.hl7.fhir.common.hapi.validation.support.*;
import org.hl7.fhir.common.hapi.validation.validator.FhirInstanceValidator;

/**
 * HAPI's validator over the files of a folder, one resource each, in JSON (.json) or XML (.xml). They lie in folders that are
 * called as HAPI calls FHIR's releases: DSTU3, R4, R4B.
 */
public class Validate {
  public static void main(String[] args) throws IOException {
    System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "error");
    var root = Path.of(args[0]);
    var count = 0;
    for (var release : sorted(root)) {
      var validator = validatorOf(FhirVersionEnum.valueOf(release.getFileName().toString()));
      for (var file : sorted(release)) {
        count++;
        for (var message : validator.validateWithResult(Files.readString(file)).getMessages()) {
          System.out.println(message.getSeverity().getCode() + "\t" + root.relativize(file) + "\t" + message.getLocationString() + "\t"
              + message.getMessage().replaceAll("\\s+", " "));
        }
      }
    }
    System.out.println("validated\t" + count);
  }

  private static FhirValidator validatorOf(FhirVersionEnum release) {
    var context = FhirContext.forVersion(release); // not cached: each release's definitions fill hundreds of megabytes
    return context.newValidator().registerValidatorModule(new FhirInstanceValidator(new ValidationSupportChain(
        new DefaultProfileValidationSupport(context), new CommonCodeSystemsTerminologyService(context),
        new InMemoryTerminologyServerValidationSupport(context), new SnapshotGeneratingValidationSupport(context))));
  }

  private static List<Path> sorted(Path folder) throws IOException {
    try (var found = Files.list(folder)) {
      return found.sorted().toList();
    }
  }
}
