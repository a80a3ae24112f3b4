// Runs one export with Medplum's own client, node export.mjs BASE TYPES SINCE, and prints what it gets for it.
import { MedplumClient } from '@medplum/core';

const [base, types, since] = process.argv.slice(2);
const url = new URL(base);
const client = new MedplumClient({ baseUrl: url.origin + '/', fhirUrlPath: url.pathname.slice(1) });
console.log(JSON.stringify(await client.bulkExport('', types, since || undefined, { pollStatusOnAccepted: true })));
