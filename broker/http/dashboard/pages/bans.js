// Who is not let in.
import { call, can } from "../api.js";
import { value } from "../format.js";
import { button, formDialog, heading, mono, paged, removal, table } from "../ui.js";

const KINDS = [["client_id", "client ID"], ["client_id_prefix", "client IDs that begin with"], ["username", "user"], ["username_prefix", "users that begin with"], ["ip", "IP address or network"]];

export default async function bans(place) {
	const list = paged({
		fetch: (given) => call("bans.list", given),
		draw: (items) => table("Bans", [
			"kind", { label: "Who", show: (item) => mono(item.value) },
			{ label: "Until", show: (item) => (item.until_at_ms ? value("until_at_ms", item.until_at_ms) : "for ever") },
			"reason", "by",
		], items, {
			empty: "Nobody is banned.",
			actions: (item) => removal("bans.remove", { kind: item.kind, value: item.value }, `the ban of ${item.value}`, `${item.kind} ${item.value}`, list, "Remove"),
		}),
	});
	const add = () => formDialog("Ban", [
		{ name: "kind", label: "Kind", options: KINDS },
		{ name: "value", label: "Who", required: true, "data-first": true },
		{ name: "for_s", label: "For (seconds)", type: "number", min: 1, placeholder: "for ever" },
		{ name: "reason", label: "Reason", hint: "For those who list bans; clients are not told." },
	], "Ban", async (given) => {
		await call("bans.add", given);
		await list.reload();
	});
	place.append(heading("Bans", can("bans.add") ? button("Ban…", add, { class: "primary" }) : null), list.element);
}
