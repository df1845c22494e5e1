// Counted filters: how much goes over some topics.
import { call, can } from "../api.js";
import { h } from "../dom.js";
import { label, value } from "../format.js";
import { ask, attempt, button, formDialog, heading, paged, table } from "../ui.js";

const filterOf = (item) => item.topic_filter ?? item.filter;

/** Numbers of an item, those in objects too, as "in qos 1". */
function flat(item) {
  const found = {};
  const walk = (prefix, given) => {
    for (const [key, one] of Object.entries(given)) {
      const name = prefix ? `${prefix}_${key}` : key;
      if (Array.isArray(one)) one.forEach((each, at) => (found[`${name}_qos_${at}`] = each));
      else if (one && typeof one === "object") walk(name, one);
      else if (typeof one === "number") found[name] = one;
    }
  };
  walk("", item);
  return found;
}

export default async function topics(place, { whenLeft }) {
  const key = (item) => (item.topic_filter === undefined ? { filter: item.filter } : { topic_filter: item.topic_filter });
  const list = paged({
    fetch: (given) => call("topic_metrics.list", given),
    draw: (items) => {
      const rows = items.map((item) => ({ item, numbers: flat(item) }));
      const names = [...new Set(rows.flatMap((row) => Object.keys(row.numbers)))];
      return table("Topic metrics", [
        { label: "Filter", show: (row) => h("span", { class: "mono" }, filterOf(row.item)) },
        ...names.map((name) => ({ label: label(name), num: true, show: (row) => value(name, row.numbers[name]) })),
      ], rows, {
        empty: "No filter is counted.",
        actions: can("topic_metrics.remove") ? ({ item }) => button("Remove", () => ask("Stop counting?", filterOf(item), "Remove",
          () => attempt(() => call("topic_metrics.remove", key(item)), "Removed.").then(list.reload)), { "aria-label": `Remove ${filterOf(item)}` }) : null,
      });
    },
  });
  const timer = setInterval(() => !list.element.contains(document.activeElement) && !document.hidden && list.reload(), 5000);
  whenLeft(() => clearInterval(timer));
  place.append(heading("Topic metrics", can("topic_metrics.add") ? button("Count a filter…", () => formDialog("Count a filter", [
    { name: "topic_filter", label: "Filter", required: true, placeholder: "sensors/+/temperature", "data-first": true },
  ], "Count", async (given) => {
    await call("topic_metrics.add", given);
    await list.reload();
  }), { class: "primary" }) : null), list.element);
}
