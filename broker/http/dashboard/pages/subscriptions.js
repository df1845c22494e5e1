// Who subscribes to what: as a list, as a tree of filters, and who would get a message.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { NONE, number, value } from "../format.js";
import { field, form, heading, missing, notice, paged, table, tabs } from "../ui.js";
import { link } from "./clients.js";

const mono = (text) => h("span", { class: "mono" }, text);

function list() {
  return paged({
    filters: [
      { name: "topic", label: "Matches the topic", type: "search", placeholder: "a/b" },
      { name: "client_id", label: "Client ID" },
      { name: "share", label: "Shared group" },
    ],
    fetch: (given) => call("subscriptions.list", given),
    draw: (items) => table("Subscriptions", [
      { label: "Client ID", show: (item) => (item.client_id ? link(item.client_id) : NONE) },
      { label: "Filter", show: (item) => mono(item.topic_filter) },
      { label: "QoS", show: (item) => String(item.qos ?? NONE) },
      { label: "Node", show: (item) => item.node },
      { label: "No local", show: (item) => value("", item.no_local) },
    ], items, { empty: "No such subscription." }),
  }).element;
}

function tree() {
  const body = h("div", null, h("p", { class: "empty" }, "…"));
  const load = async (prefix) => {
    const root = new Map();
    let cursor = null;
    let count = 0;
    let last;
    do {
      last = await call("topics.list", { prefix, cursor, limit: 500 });
      for (const item of last.items) {
        count += 1;
        let level = root;
        const parts = item.topic_filter.split("/");
        parts.forEach((part, at) => {
          if (!level.has(part)) level.set(part, { below: new Map(), item: null });
          const entry = level.get(part);
          if (at === parts.length - 1) entry.item = item;
          level = entry.below;
        });
      }
      cursor = last.cursor;
    } while (cursor && count < 2000);
    fill(body, missing(last), count ? branch(root, count <= 60) : h("p", { class: "empty" }, "No filters."),
      cursor ? notice(`The first ${number(count)} filters; ask for those below a prefix to see others.`, "warn") : null);
  };
  const fail = (error) => fill(body, notice(error.message, "bad"));
  load().catch(fail);
  return h("div", null,
    form([field({ name: "prefix", label: "Filters that begin with", type: "search" })], "Show", ({ prefix }) => load(prefix), { inline: true }),
    body);
}

function branch(level, open) {
  return h("ul", { class: "tree" }, [...level].sort(([a], [b]) => (a < b ? -1 : 1)).map(([part, { below, item }]) => {
    const name = h("span", { class: "mono" }, part || "(empty)");
    const count = item ? h("small", null, `${number(item.subscribers)} subscribers on ${value("", item.nodes)}`) : null;
    if (!below.size) return h("li", null, h("div", { class: "line" }, h("span", { class: "leaf", "aria-hidden": "true" }, "·"), name, count));
    const list = h("ul", { hidden: !open }, [...branch(below, open).children]);
    const fold = h("button", {
      type: "button", class: "quiet fold", "aria-expanded": String(open), "aria-label": `Below ${part || "(empty)"}`,
      onclick: () => {
        list.hidden = !list.hidden;
        fold.setAttribute("aria-expanded", String(!list.hidden));
        fold.textContent = list.hidden ? "▸" : "▾";
      },
    }, open ? "▾" : "▸");
    return h("li", null, h("div", { class: "line" }, fold, name, count), list);
  }));
}

function receivers() {
  const body = h("div");
  return h("div", null, form([field({ name: "topic", label: "A message on the topic", type: "search", required: true, placeholder: "a/b/c" })],
    "Who gets it?", async ({ topic }) => {
      const answer = await call("topics.show", { topic });
      fill(body, missing(answer),
        h("p", { class: "notice" }, answer.refusal ? `Nobody: ${answer.refusal}` : `${number(answer.total)} in all`),
        table("Receivers", [{ label: "Client ID", show: (item) => link(item.client_id) }, { key: "node" }, { key: "connected" }, { key: "persistent" }, { key: "qos" }], answer.items, { empty: "No subscriber of its own." }),
        answer.groups.length ? [h("h2", null, "One member of each"), table("Groups", [{ key: "topic_filter" }, { key: "strategy" }, { key: "nodes" }], answer.groups)] : null);
    }, { inline: true }), body);
}

export default async function subscriptions(place) {
  const kinds = [["List", list]];
  if (can("topics.list")) kinds.push(["Topic tree", tree]);
  if (can("topics.show")) kinds.push(["Who gets it?", receivers]);
  place.append(heading("Subscriptions"), tabs("Subscriptions", kinds));
}
