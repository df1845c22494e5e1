// Subscribers that messages take long to reach.
import { call, can } from "../api.js";
import { age } from "../format.js";
import { attempt, button, heading, paged, table } from "../ui.js";
import { link } from "./clients.js";

export default async function slow(place) {
	const list = paged({
		fetch: (given) => call("slow.list", given),
		draw: (items) => table("Slow subscribers", [
			{ label: "Client ID", show: (item) => link(item.client_id) },
			"node", "latency_ms", "last_ms", "username", "reason",
			{ label: "Seen", show: (item) => age(item.at_ms) },
		], items, { empty: "No subscriber is slow." }),
	});
	place.append(heading("Slow subscribers", button("Refresh", list.reload),
		can("slow.clear") ? button("Clear", () => attempt(() => call("slow.clear"), "Cleared.").then(list.reload)) : null), list.element);
}
