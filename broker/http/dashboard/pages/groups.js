// Shared subscriptions: who shares, and how far behind they are.
import { call } from "../api.js";
import { h } from "../dom.js";
import { number, value } from "../format.js";
import { button, dialog, facts, heading, mono, paged, subheading, table } from "../ui.js";
import { link } from "./clients.js";

const name = (group) => group.topic_filter || "?";

function show(group) {
	const { items: members = [], ...rest } = group;
	return [
		facts(rest, ["topic_filter"]),
		subheading("Members"),
		table("Members", [
			{ label: "Client ID", show: (member) => (member.client_id ? link(member.client_id) : "?") },
			{ label: "Node", show: (member) => member.node || "not connected" },
			"persistent",
		], members, { empty: "None." }),
	];
}

export default async function groups(place) {
	const list = paged({
		fetch: (given) => call("groups.list", given),
		draw: (items) => {
			const most = Math.max(1, ...items.map((item) => item.lag ?? 0));
			return table("Shared groups", [
				{ label: "Group", show: (item) => mono(name(item)) }, "strategy",
				{ label: "Members", num: true, show: (item) => `${number(item.connected)} of ${number(item.members)} connected` },
				{ label: "Lag", num: true, show: (item) => h("span", null, h("meter", { class: "meter", min: 0, max: most, value: item.lag ?? 0, "aria-hidden": "true" }), number(item.lag)) },
				"pending",
				{ label: "Oldest", num: true, show: (item) => (item.oldest_ms ? value("oldest_ms", item.oldest_ms) : "–") },
			], items, {
				empty: "Nobody shares a subscription.",
				actions: (item) => button("Show", async () => {
					const whole = item.topic_filter ? await call("groups.show", { topic_filter: item.topic_filter }).catch(() => item) : item;
					dialog(name(item), () => show(whole), true);
				}, { "aria-label": `Show ${name(item)}` }),
			});
		},
	});
	place.append(heading("Shared groups", button("Refresh", list.reload)), list.element);
}
