// Retained messages: down the tree, or by a filter.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { bytes, number, value, when } from "../format.js";
import { ask, attempt, button, facts, failed, folding, heading, mono, notice, paged, payloadView, subheading, table, tabs } from "../ui.js";

export default async function retained(place) {
	const detail = h("section", { class: "panel", "aria-label": "Message", tabindex: -1 }, h("p", { class: "empty" }, "Choose a message."));
	let reload = () => {};

	const show = async (topic) => {
		try {
			const message = await call("retained.show", { topic });
			const { payload, payload_encoding: encoding, properties, ...rest } = message;
			fill(detail, h("div", { class: "heading" }, h("h2", { class: "mono" }, topic),
				can("retained.delete") ? button("Delete", () => ask("Delete the retained message?", topic, "Delete", async () => {
					await call("retained.delete", { topic });
					fill(detail, h("p", { class: "empty" }, "Deleted."));
					await reload();
				}), { class: "danger" }) : null),
			payloadView(message), subheading("Properties"), facts({ ...rest, ...properties }, ["topic"]));
			detail.focus();
		} catch (error) {
			fill(detail, notice(error.message, error.status === 404 ? "warn" : "bad"));
		}
	};

	const tree = () => {
		const body = h("div");
		reload = () => level(null).then((list) => fill(body, list ?? h("p", { class: "empty" }, "No retained messages.")), failed);
		reload();
		return body;
	};

	/** The list of the levels below a prefix; null if there are none. */
	const level = async (prefix) => {
		const items = [];
		let answer;
		let cursor = null;
		do {
			// "" is the level without a name, no prefix the root.
			answer = await call("retained.browse", { prefix, cursor, limit: 500 });
			items.push(...answer.items);
			cursor = answer.cursor;
		} while (cursor && items.length < 2000);
		if (!items.length) return null;
		const rows = items.map((item) => {
			const name = item.level === "" ? "(empty)" : item.level;
			const { topic } = item;
			const below = h("ul", { hidden: true });
			const fold = item.below ? folding(topic, below, async () => fill(below, [...((await level(topic).catch(failed))?.children ?? [])])) : h("span", { class: "leaf", "aria-hidden": "true" }, "·");
			const text = item.has_message
				? h("button", { type: "button", class: "link mono", onclick: () => show(topic), "aria-label": `Show ${topic}` }, name)
				: mono(name);
			return h("li", null, h("div", { class: "line" }, fold, text, item.below ? h("small", null, `${number(item.below)} below`) : null), below);
		});
		return h("ul", { class: "tree" }, rows, cursor ? h("li", null, h("small", null, "… more: use a filter")) : null);
	};

	const search = () => {
		let given = "";
		const list = paged({
			filters: [{ name: "topic_filter", label: "Filter", type: "search", placeholder: "a/+/b/#", value: "#" }],
			initial: { topic_filter: "#" },
			fetch: (asked) => {
				given = asked.topic_filter ?? "#";
				return call("retained.list", { ...asked, topic_filter: given, details: true, max_payload_bytes: 0 });
			},
			draw: (items) => [table("Retained messages", [
				{ label: "Topic", show: (item) => h("button", { type: "button", class: "link mono", onclick: () => show(item.topic) }, item.topic) },
				{ label: "Size", num: true, show: ({ message }) => bytes(message?.payload_bytes) },
				{ label: "QoS", num: true, show: ({ message }) => value("qos", message?.qos) },
				{ label: "Since", show: ({ message }) => when(message?.accepted_at_ms) },
			], items, { empty: "No retained message matches." }),
			items.length && can("retained.delete_matching") ? h("p", null, button(`Delete all that match ${given}`, () =>
				ask("Delete all of them?", `Every retained message that matches ${given}, on this part of the list and on others.`, "Delete all", async () => {
					let cursor = null;
					let count = 0;
					do {
						const answer = await call("retained.delete_matching", { topic_filter: given, cursor });
						cursor = answer.cursor;
						count += answer.deleted;
					} while (cursor);
					await attempt(list.reload, `${number(count)} deleted.`);
				}), { class: "danger" })) : null],
		});
		reload = list.reload;
		return list.element;
	};

	place.append(heading("Retained messages", button("Refresh", () => reload())), h("div", { class: "split" },
		h("div", null, tabs("Retained messages", [["Tree", tree], ["Filter", search]])), detail));
}
