// Shows the OpenAPI document of the node that served the page. All text goes in as text, never as HTML.

const METHODS = ["get", "post", "put", "patch", "delete"];
const main = document.getElementById("main");

function make(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) made[name] = value;
  made.append(...children);
  return made;
}

function nameOf(schema) {
  return schema.$ref.split("/").pop();
}

/** A schema in a few words; those with a name become links. */
function told(schema) {
  if (!schema || Object.keys(schema).length === 0) return ["anything"];
  if (schema.$ref) return [make("a", { href: `#${nameOf(schema)}` }, nameOf(schema))];
  const options = schema.anyOf ?? schema.oneOf;
  if (options) return options.flatMap((option, index) => (index ? [" or ", ...told(option)] : told(option)));
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" | ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return ["list of ", ...told(schema.items)];
  if (schema.type === "object" && schema.additionalProperties && typeof schema.additionalProperties === "object") {
    return ["object of ", ...told(schema.additionalProperties)];
  }
  return [[schema.type ?? "anything", ...bounds(schema)].join(", ")];
}

function bounds(schema) {
  const names = { minimum: "at least", maximum: "at most", minLength: "length from", maxLength: "length to", pattern: "like" };
  return Object.entries(names).filter(([key]) => key in schema).map(([key, word]) => `${word} ${schema[key]}`);
}

function table(rows) {
  const body = make("tbody");
  for (const [name, schema, required, where] of rows) {
    const type = make("td", {}, ...told(schema));
    if (schema.default !== undefined) type.append(` = ${JSON.stringify(schema.default)}`);
    body.append(make("tr", {}, make("td", {}, make("code", {}, name)), type,
      make("td", {}, [where, required ? "required" : ""].filter(Boolean).join(", ")),
      make("td", {}, schema.description ?? "")));
  }
  return make("table", {}, body);
}

function operation(path, method, declared, prefix) {
  const inside = make("div", {}, make("p", {}, declared.description ?? ""));
  const parameters = (declared.parameters ?? []).map((each) => [each.name, each.schema, each.required, each.in]);
  if (parameters.length) inside.append(table(parameters));
  const body = declared.requestBody?.content["application/json"]?.schema;
  if (body) inside.append(make("p", {}, "Body: ", ...told(body)));
  for (const [status, answer] of Object.entries(declared.responses)) {
    if (answer.$ref) continue;
    const [kind, content] = Object.entries(answer.content ?? {})[0] ?? [];
    const shape = content ? told(content["x-rookery-item"] ?? content.schema) : ["nothing"];
    inside.append(make("p", {}, `${status}: `, ...shape, kind === "text/event-stream" ? " (server-sent events)" : ""));
  }
  const scope = make("span", { className: "scope" }, declared["x-rookery-scope"] ?? "");
  const head = make("summary", {}, make("span", { className: "method" }, method.toUpperCase()),
    make("code", {}, prefix + path), " ", make("span", { className: "soft" }, declared.summary ?? ""), scope);
  const made = make("details", { id: declared.operationId }, head, inside);
  made.dataset.text = `${path} ${declared.operationId} ${declared.summary}`.toLowerCase();
  return made;
}

function schemaOf(name, schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([key, value]) => [key, value, required.has(key), ""]);
  const made = make("details", { id: name }, make("summary", {}, make("code", {}, name)),
    make("div", {}, make("p", {}, schema.description ?? ""), rows.length ? table(rows) : make("p", {}, ...told(schema))));
  made.dataset.text = name.toLowerCase();
  return made;
}

function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

async function show() {
  const answer = await fetch(new URL("v1/openapi.json", document.baseURI));
  const api = await answer.json();
  document.getElementById("version").textContent = `Version ${api.info.version}`;
  const subjects = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((each) => methods[each])) {
      const subject = methods[method].tags[0];
      if (!subjects.has(subject)) subjects.set(subject, make("section", { id: `subject-${subject}` }, make("h2", {}, subject)));
      subjects.get(subject).append(operation(path, method, methods[method], api.servers[0].url));
    }
  }
  const schemas = make("section", { id: "subject-schemas" }, make("h2", {}, "schemas"));
  for (const [name, schema] of Object.entries(api.components.schemas)) schemas.append(schemaOf(name, schema));
  subjects.set("schemas", schemas);
  main.replaceChildren(make("p", {}, api.info.description), ...subjects.values());
  const nav = document.getElementById("subjects");
  nav.append(make("a", { href: "v1/openapi.json" }, "openapi.json"));
  for (const subject of subjects.keys()) nav.append(make("a", { href: `#subject-${subject}` }, subject));
  document.getElementById("find").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const each of main.querySelectorAll("details")) each.hidden = !each.dataset.text.includes(wanted);
  });
  window.addEventListener("hashchange", reveal);
  reveal();
}

show().catch((error) => {
  main.textContent = `The document cannot be shown: ${error.message}`;
});
