// What needs somebody's attention, and what did.
import { call, can, follow } from "../api.js";
import { age } from "../format.js";
import { attempt, badge, button, columnsFor, heading, paged, table, tabs } from "../ui.js";

const severity = (alarm) => badge(alarm.severity ?? "alarm", alarm.severity === "critical" ? "bad" : "warn");

const columns = (items) => [
  { label: "Alarm", show: (alarm) => alarm.name },
  ...(items.some((alarm) => alarm.severity) ? [{ label: "Severity", show: severity }] : []),
  { label: "Node", show: (alarm) => alarm.node },
  { label: "What", show: (alarm) => alarm.message ?? alarm.text ?? alarm.detail },
  { label: "Since", show: (alarm) => age(alarm.activated_at_ms ?? alarm.since_ms ?? alarm.at_ms) },
  ...columnsFor(items, ["deactivated_at_ms", "ended_at_ms"]),
];

export default async function alarms(place, { whenLeft }) {
  let stop = null;
  whenLeft(() => stop?.());
  const active = () => {
    const list = paged({
      fetch: (given) => call("alarms.list", given),
      draw: (items) => table("Active alarms", columns(items), items, { empty: "No alarm is active." }),
    });
    if (!stop && can("events.alarms")) stop = follow("events.alarms", {}, () => list.element.isConnected && list.reload());
    return list.element;
  };
  const history = () => {
    const list = paged({
      fetch: (given) => call("alarms.history", given),
      draw: (items) => table("Past alarms", columns(items), items, { empty: "None in the last 24 hours." }),
    });
    return [can("alarms.dismiss") ? button("Dismiss all", () => attempt(() => call("alarms.dismiss"), "Dismissed.").then(list.reload)) : null, list.element].filter(Boolean);
  };
  const kinds = [["Active", active]];
  if (can("alarms.history")) kinds.push(["History", () => { const box = document.createElement("div"); box.append(...history()); return box; }]);
  place.append(heading("Alarms"), tabs("Alarms", kinds));
}
