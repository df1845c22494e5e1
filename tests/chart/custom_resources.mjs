// Reads a JSON list of objects of custom kinds from stdin, prints a JSON list of what is wrong with each (a list of
// texts; null where the kind is not known here). The validators were compiled from the operators' own definitions;
// they let unknown fields pass, which an API server prunes without a word: a field that is there and that no validator
// looked at is told as unknown.
import { readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const MODELS = new URL("node_modules/@kubernetes-models/", import.meta.url);
// The kind's group, and the beginning of the names of the files that hold its versions.
const SOURCES = {
  "monitoring.coreos.com": ["prometheus-operator", "ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoring"],
  "keda.sh": ["keda", "ComGithubKedacoreKedaV2ApisKeda"],
  "cert-manager.io": ["cert-manager", "ComGithubCertManagerCertManagerPkgApisCertmanager"],
  "gateway.networking.k8s.io": ["gateway-api", "IoK8sSigsGatewayApiApis"],
};

async function validator({ apiVersion, kind }) {
  const [group, version] = apiVersion.split("/");
  if (!(group in SOURCES)) return null;
  const [model, start] = SOURCES[group];
  const folder = new URL(`${model}/_schemas/`, MODELS);
  const wanted = `${start}${version[0].toUpperCase()}${version.slice(1)}${kind}.js`;
  if (!readdirSync(fileURLToPath(folder)).includes(wanted)) return () => [`no ${kind} in ${apiVersion}`];
  const { validate } = await import(new URL(wanted, folder));
  return (object) => {
    const unknown = [];
    const valid = validate(watched(object, unknown));
    const errors = valid ? [] : validate.errors.map((error) => `${error.instancePath}: ${error.message ?? error.keyword}`);
    return [...errors, ...unknown.flatMap((told) => told())];
  };
}

// The object, and a function in `found` for each part that tells which of its fields nobody looked at. A part of
// which nothing was looked at is free: the definition says no more than that it is an object.
function watched(value, found, path = "") {
  if (value === null || typeof value !== "object") return value;
  const seen = new Set();
  const parts = new Map();
  if (!Array.isArray(value)) {
    found.push(() => (seen.size ? Object.keys(value).filter((key) => !seen.has(key)).map((key) => `${path}/${key}: unknown`) : []));
  }
  return new Proxy(value, {
    get(target, key, receiver) {
      if (typeof key === "symbol" || !Object.hasOwn(target, key)) {
        seen.add(String(key));
        return Reflect.get(target, key, receiver);
      }
      seen.add(key);
      if (!parts.has(key)) parts.set(key, watched(target[key], found, `${path}/${key}`));
      return parts.get(key);
    },
  });
}

const answers = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const check = await validator(object);
  answers.push(check && check(object));
}
console.log(JSON.stringify(answers));
