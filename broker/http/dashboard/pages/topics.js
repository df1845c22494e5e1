// Counted filters: how much goes over some topics.
import { call, can } from "../api.js";
import { age, number } from "../format.js";
import { button, formDialog, heading, mono, paged, removal, table } from "../ui.js";

/** Counts by QoS as one text. */
const counts = (given) => `${number(given.qos0 + given.qos1 + given.qos2)} (${number(given.qos0)}, ${number(given.qos1)}, ${number(given.qos2)})`;

export default async function topics(place, { whenLeft }) {
	const list = paged({
		fetch: (given) => call("topic_metrics.list", given),
		draw: (items) => table("Topic metrics", [
			{ label: "Filter", show: (item) => mono(item.topic_filter) },
			{ label: "Received (QoS 0, 1, 2)", num: true, show: (item) => counts(item.received) },
			"received_per_s",
			{ label: "Sent (QoS 0, 1, 2)", num: true, show: (item) => counts(item.sent) },
			"sent_per_s",
			"dropped", { label: "Since", show: (item) => age(item.created_at_ms) },
		], items, {
			empty: "No filter is counted.",
			actions: ({ topic_filter: filter }) => removal("topic_metrics.remove", { topic_filter: filter }, filter, "It is counted no more.", list, "Remove"),
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
