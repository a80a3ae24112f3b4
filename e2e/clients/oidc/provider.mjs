// An identity server for the tests: oidc-provider with client credentials by private_key_jwt. It takes the clients and the
// secret of the sidecar as JSON, and prints its issuer when it can be asked. The audience says which kind of access token
// a client gets: one that ends in /jwt a JWT, another one an opaque token.
import { createServer } from "node:http";
import { generateKeyPairSync } from "node:crypto";
import Provider from "oidc-provider";

const { clients, secret } = JSON.parse(process.argv[2]);
const scope = "system/*.rs system/Patient.rs system/Condition.read user/Patient.rs";
const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-384" });

const server = createServer();
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, {
    jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), kid: "first", use: "sig", alg: "ES384" }] },
    scopes: scope.split(" "),
    clients: [
      ...clients.map(({ id, key }) => ({
        client_id: id,
        scope,
        grant_types: ["client_credentials"],
        response_types: [],
        redirect_uris: [],
        token_endpoint_auth_method: "private_key_jwt",
        token_endpoint_auth_signing_alg: "ES384",
        jwks: { keys: [key] },
      })),
      { client_id: "sidecar", client_secret: secret, grant_types: [], response_types: [], redirect_uris: [], token_endpoint_auth_method: "client_secret_basic" },
    ],
    clientAuthMethods: ["private_key_jwt", "client_secret_basic"],
    enabledJWA: {
      clientAuthSigningAlgValues: ["ES384"],
      idTokenSigningAlgValues: ["ES384"],
    },
    clientDefaults: { id_token_signed_response_alg: "ES384" },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      introspection: { enabled: true, allowedPolicy: (ctx, client) => client.clientId === "sidecar" },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, audience) => ({
          scope,
          audience,
          accessTokenTTL: 300,
          accessTokenFormat: audience.endsWith("/jwt") ? "jwt" : "opaque",
          jwt: { sign: { alg: "ES384" } },
        }),
      },
    },
  });
  server.on("request", provider.callback());
  console.log(issuer);
});
