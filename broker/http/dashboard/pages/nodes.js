// The nodes: how they are, and whether they take clients.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { duration, milliseconds } from "../format.js";
import { ask, attempt, badge, button, dialog, facts, heading, notice, table } from "../ui.js";

const GOOD = new Set(["ready"]);

export const status = (text) => badge(text, GOOD.has(text) ? "good" : /drain|start/.test(text) ? "warn" : "bad");

export default async function nodes(place, { whenLeft }) {
	const list = h("section");
	let timer = 0;
	let gone = false;
	whenLeft(() => {
		gone = true;
		clearTimeout(timer);
	});

	const steer = (node, verb, done) => attempt(() => call(`nodes.${verb}`, { node: node.node }), done).then(load);
	const actions = (node) => [
		button("Show", () => dialog(`Node ${node.node}`, () => facts(node), true), { "aria-label": `Show ${node.node}` }),
		!can("nodes.drain") ? null
			: /drain/.test(node.status)
				? button("Undrain", () => steer(node, "undrain", `${node.node} takes clients again.`), { "aria-label": `Undrain ${node.node}` })
				: button("Drain", () => ask(`Drain ${node.node}?`, "Its clients are sent to other nodes, and it accepts none until it is undrained. The process goes on.",
					"Drain", () => steer(node, "drain", `${node.node} is draining.`)), { "aria-label": `Drain ${node.node}` }),
	];
	const columns = [
		"node",
		{ label: "Status", show: (node) => status(node.status) },
		"connections", "version",
		{ label: "Up", num: true, show: (node) => duration(node.uptime_s) },
		{ label: "Redis", show: (node) => [node.store, node.store_version].filter(Boolean).join(" ") || "–" },
		"durability",
		{ label: "Round trip", num: true, show: (node) => milliseconds(node.store_round_trip_ms) },
	];

	let before = "";
	async function load() {
		clearTimeout(timer);
		try {
			const { items } = await call("nodes.list");
			if (gone) return;
			// Drawn anew only when something differs: the focus stays where it is.
			const now = JSON.stringify(items.map(({ uptime_s, store_round_trip_ms, ...rest }) => rest));
			if (now !== before && !list.contains(document.activeElement)) {
				fill(list, table("Nodes", columns, items, { actions }));
				before = now;
			} else if (now !== before) {
				const focused = document.activeElement.getAttribute("aria-label");
				fill(list, table("Nodes", columns, items, { actions }));
				before = now;
				(list.querySelector(`[aria-label="${CSS.escape(focused ?? "")}"]`) ?? list.querySelector(".scroll")).focus();
			}
		} catch (error) {
			if (gone) return;
			fill(list, notice(error.message, "bad"));
			before = "";
		}
		if (!gone) timer = setTimeout(load, 2000);
	}

	place.append(heading("Nodes"), list);
	await load();
}
