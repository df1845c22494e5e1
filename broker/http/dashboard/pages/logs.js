// The level of the log, what was logged lately, and the settings in force.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { clock, value } from "../format.js";
import { field, form, heading, missing, notice, paged, table, tabs, toast } from "../ui.js";

const LEVELS = ["debug", "info", "warning", "error"];

function level() {
  const now = h("div");
  const load = async () => {
    const answer = await call("logs.level");
    const items = answer.items ?? Object.entries(answer.levels ?? answer.nodes ?? answer).filter(([, one]) => typeof one === "string").map(([node, one]) => ({ node, level: one }));
    fill(now, missing(answer), table("Levels", Object.keys(items[0] ?? {}).map((key) => ({ key })), items));
  };
  load().catch((error) => fill(now, notice(error.message, "bad")));
  return h("section", null, now, can("logs.set_level") ? h("div", { class: "panel gap" }, form([
    field({ name: "level", label: "Level", type: "select", options: LEVELS, value: "info" }),
    field({ name: "node", label: "Node", placeholder: "all" }),
    field({ name: "duration_s", label: "For (seconds)", type: "number", min: 1, placeholder: "until the next start" }),
  ], "Set", async (given) => {
    await call("logs.set_level", given);
    toast("Set.");
    await load();
  }, { inline: true })) : null);
}

function recent() {
  return paged({
    fetch: (given) => call("logs.list", given),
    limit: 100,
    draw: (items) => (items.length ? h("div", { class: "lines", tabindex: 0, role: "region", "aria-label": "Log" }, items.map((line) => {
      const { at_ms: at, level: kind, node, event, ...rest } = line;
      return h("div", null, h("span", { class: "t" }, `${at ? clock(at, true) : ""} `), h("span", { class: "n" }, `${node ?? ""} `),
        h("span", { class: kind === "error" ? "bad" : "c" }, `${kind ?? ""} `), `${event ?? ""} `,
        Object.entries(rest.fields ?? rest).map(([key, one]) => `${key}=${typeof one === "string" ? one : JSON.stringify(one)}`).join(" "));
    })) : h("p", { class: "empty" }, "No warnings and no errors.")),
  }).element;
}

function settings() {
  const body = h("div");
  let items = [];
  const draw = (text = "") => fill(body, table("Settings", [
    { label: "Setting", show: (item) => h("code", null, item.name) },
    { label: "Value", show: (item) => h("span", { class: "mono" }, value("", item.value)) },
    { label: "From", show: (item) => item.origin },
  ], items.filter((item) => item.name.includes(text))));
  call("settings.show").then((answer) => {
    const given = answer.items ?? answer.settings ?? answer;
    items = Array.isArray(given) ? given : Object.entries(given).map(([name, one]) => ({ name, ...(one && typeof one === "object" ? one : { value: one }) }));
    draw();
  }).catch((error) => fill(body, notice(error.message, "bad")));
  const search = field({ name: "name", label: "Name has", type: "search", oninput: (event) => draw(event.target.value) });
  return h("div", null, h("div", { class: "inline-field" }, search), body);
}

export default async function logs(place) {
  const kinds = [];
  if (can("logs.list")) kinds.push(["Warnings and errors", recent]);
  if (can("logs.level")) kinds.push(["Level", level]);
  if (can("settings.show")) kinds.push(["Settings", settings]);
  place.append(heading("Logs and settings"), tabs("Logs and settings", kinds));
}
