// What needs somebody's attention, and what did.
import { call, can, follow } from "../api.js";
import { h } from "../dom.js";
import { age } from "../format.js";
import { attempt, badge, button, heading, paged, table, tabs } from "../ui.js";

const columns = (over) => [
	"name",
	{ label: "Severity", show: (alarm) => badge(alarm.severity, alarm.severity === "critical" ? "bad" : "warn") },
	"node", "subject", "message",
	{ label: "Since", show: (alarm) => age(alarm.activated_at_ms) },
	...(over ? [{ label: "Over since", show: (alarm) => age(alarm.deactivated_at_ms) }] : []),
];

export default async function alarms(place, { whenLeft }) {
	let stop = null;
	whenLeft(() => stop?.());
	const active = () => {
		const list = paged({
			fetch: (given) => call("alarms.list", given),
			draw: (items) => table("Active alarms", columns(false), items, { empty: "No alarm is active." }),
		});
		if (!stop && can("events.alarms")) stop = follow("events.alarms", {}, () => list.element.isConnected && list.reload());
		return list.element;
	};
	const history = () => {
		const list = paged({
			fetch: (given) => call("alarms.history", given),
			draw: (items) => table("Past alarms", columns(true), items, { empty: "None in the last 24 hours." }),
		});
		return h("div", null, can("alarms.dismiss") ? button("Dismiss all", () => attempt(() => call("alarms.dismiss"), "Dismissed.").then(list.reload)) : null, list.element);
	};
	const kinds = [["Active", active], ["History", history]];
	place.append(heading("Alarms"), tabs("Alarms", kinds));
}
