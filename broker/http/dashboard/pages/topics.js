// Counted filters: how much goes over some topics.
import { call, can } from "../api.js";
import { h } from "../dom.js";
import { age, number } from "../format.js";
import { ask, attempt, button, formDialog, heading, paged, table } from "../ui.js";

/** Counts by QoS as one text. */
const counts = (given) => `${number(given.qos0 + given.qos1 + given.qos2)} (${number(given.qos0)}, ${number(given.qos1)}, ${number(given.qos2)})`;

export default async function topics(place, { whenLeft }) {
  const list = paged({
    fetch: (given) => call("topic_metrics.list", given),
    draw: (items) => table("Topic metrics", [
      { label: "Filter", show: (item) => h("span", { class: "mono" }, item.topic_filter) },
      { label: "In (QoS 0, 1, 2)", num: true, show: (item) => counts(item.received) },
      { label: "In/s", num: true, show: (item) => number(item.received_per_s) },
      { label: "Out (QoS 0, 1, 2)", num: true, show: (item) => counts(item.sent) },
      { label: "Out/s", num: true, show: (item) => number(item.sent_per_s) },
      { key: "dropped", num: true },
      { label: "Since", show: (item) => age(item.created_at_ms) },
    ], items, {
      empty: "No filter is counted.",
      actions: can("topic_metrics.remove") ? ({ topic_filter: filter }) => button("Remove", () => ask("Stop counting?", filter, "Remove",
        () => attempt(() => call("topic_metrics.remove", { topic_filter: filter }), "Removed.").then(list.reload)), { "aria-label": `Remove ${filter}` }) : null,
    }),
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
