// Messages that are to be published later.
import { call } from "../api.js";
import { bytes, value } from "../format.js";
import { attempt, button, heading, mono, paged, removal, table } from "../ui.js";
import { message } from "./sessions.js";

export default async function delayed(place) {
	const list = paged({
		fetch: (given) => call("delayed.list", given),
		draw: (items) => table("Delayed messages", [
			{ label: "Due", show: (item) => value("due_at_ms", item.due_at_ms) },
			{ label: "Topic", show: (item) => mono(item.topic) }, "qos",
			{ label: "Size", num: true, show: (item) => bytes(item.payload_bytes) },
		], items, {
			empty: "No message is delayed.",
			actions: (item) => [
				button("Show", async () => {
					await attempt(async () => message(await call("delayed.show", { id: item.id })));
				}, { "aria-label": `Show the message on ${item.topic}` }),
				removal("delayed.delete", { id: item.id }, `the message on ${item.topic}`, "It will never be published.", list),
			],
		}),
	});
	place.append(heading("Delayed messages", button("Refresh", list.reload)), list.element);
}
