// Who subscribes to what: as a list, as a tree of filters, and who would get a message.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { NONE, number, value } from "../format.js";
import { field, folding, form, heading, missing, mono, notice, paged, subheading, table, tabs } from "../ui.js";
import { link } from "./clients.js";

function list() {
	return paged({
		filters: [
			{ name: "topic", label: "Matches the topic", type: "search", placeholder: "a/b" },
			{ name: "client_id", label: "Client ID" },
			{ name: "share", label: "Shared group" },
		],
		fetch: (given) => call("subscriptions.list", given),
		draw: (items) => table("Subscriptions", [
			{ label: "Client ID", show: (item) => (item.client_id ? link(item.client_id) : NONE) },
			{ label: "Filter", show: (item) => mono(item.topic_filter) },
			"qos", "node", "no_local",
		], items, { empty: "No such subscription." }),
	}).element;
}

function tree() {
	const body = h("div", null, h("p", { class: "empty" }, "…"));
	const load = async (prefix) => {
		const root = new Map();
		let cursor = null;
		let count = 0;
		let last;
		do {
			last = await call("topics.list", { prefix, cursor, limit: 500 });
			for (const item of last.items) {
				count += 1;
				let level = root;
				const parts = item.topic_filter.split("/");
				parts.forEach((part, at) => {
					if (!level.has(part)) level.set(part, { below: new Map(), item: null });
					const entry = level.get(part);
					if (at === parts.length - 1) entry.item = item;
					level = entry.below;
				});
			}
			cursor = last.cursor;
		} while (cursor && count < 2000);
		fill(body, missing(last), count ? branch(root, count <= 60) : h("p", { class: "empty" }, "No filters."),
			cursor ? notice(`The first ${number(count)} filters; ask for those below a prefix to see others.`, "warn") : null);
	};
	const fail = (error) => fill(body, notice(error.message, "bad"));
	load().catch(fail);
	return h("div", null,
		form([field({ name: "prefix", label: "Filters that begin with", type: "search" })], "Show", ({ prefix }) => load(prefix), { inline: true }),
		body);
}

function branch(level, open) {
	return h("ul", { class: "tree" }, [...level].sort(([a], [b]) => (a < b ? -1 : 1)).map(([part, { below, item }]) => {
		const name = mono(part || "(empty)");
		const count = item ? h("small", null, `${number(item.subscribers)} subscribers on ${value("", item.nodes)}`) : null;
		if (!below.size) return h("li", null, h("div", { class: "line" }, h("span", { class: "leaf", "aria-hidden": "true" }, "·"), name, count));
		const list = h("ul", { hidden: !open }, [...branch(below, open).children]);
		return h("li", null, h("div", { class: "line" }, folding(part, list), name, count), list);
	}));
}

function receivers() {
	const body = h("div");
	return h("div", null, form([field({ name: "topic", label: "A message on the topic", type: "search", required: true, placeholder: "a/b/c" })],
		"Who gets it?", async ({ topic }) => {
			const answer = await call("topics.show", { topic });
			fill(body, missing(answer),
				h("p", { class: "notice" }, answer.refusal ? `Nobody: ${answer.refusal}` : `${number(answer.total)} in all`),
				table("Receivers", [{ label: "Client ID", show: (item) => link(item.client_id) }, "node", "connected", "persistent", "qos"], answer.items, { empty: "No subscriber of its own." }),
				answer.groups.length ? [subheading("One member of each"), table("Groups", ["topic_filter", "strategy", "nodes"], answer.groups)] : null);
		}, { inline: true }), body);
}

export default async function subscriptions(place) {
	const kinds = [["List", list]];
	if (can("topics.list")) kinds.push(["Topic tree", tree]);
	if (can("topics.show")) kinds.push(["Who gets it?", receivers]);
	place.append(heading("Subscriptions"), tabs("Subscriptions", kinds));
}
