// Who is connected: search, look at one, send it away.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { age } from "../format.js";
import { ask, attempt, badge, button, facts, field, form, formDialog, heading, missing, mono, notice, paged, panel, table, toast } from "../ui.js";
import { messagesOf } from "./sessions.js";

const FILTERS = [
	{ name: "contains", label: "Client ID has", type: "search" },
	{ name: "username", label: "User" },
	{ name: "ip", label: "IP" },
	{ name: "node", label: "Node" },
	{ name: "connected", label: "State", options: [["", "any"], ["true", "connected"], ["false", "not connected"]] },
];

export const link = (clientId) => h("a", { href: `#/clients/${encodeURIComponent(clientId)}` }, clientId);

export function kick(clientId, done) {
	formDialog(`Disconnect ${clientId}?`, [
		{ name: "ban_s", label: "Keep it out for (seconds)", type: "number", min: 1, placeholder: "not at all", "data-first": true },
	], "Disconnect", async (given) => {
		await call("clients.kick", { client_id: clientId, ...given });
		toast(`${clientId} was disconnected.`);
		await done?.();
	}, { danger: true });
}

export default async function clients(place, { rest, query, whenLeft }) {
	if (rest.length) return one(place, rest[0], whenLeft);
	const initial = Object.fromEntries([...query].filter(([key]) => FILTERS.some((filter) => filter.name === key)));
	const columns = [
		{ label: "Client ID", show: (client) => link(client.client_id) },
		{ label: "State", show: (client) => (client.connected ? badge("connected", "good") : badge("not connected")) },
		"node", "username",
		{ label: "Peer", show: (client) => (client.ip ? `${client.ip}:${client.port}` : null) },
		{ label: "Protocol", show: (client) => (client.protocol_version ? `${client.protocol_version} ${client.transport}` : null) },
		{ label: "Connected", show: (client) => age(client.connected_at_ms) },
	];
	const list = paged({
		filters: FILTERS,
		initial,
		fetch: (given) => call("clients.list", given),
		draw: (items) => table("Clients", columns, items, {
			empty: "No such client.",
			actions: can("clients.kick") ? (client) => (client.connected
				? button("Kick", () => kick(client.client_id, list.reload), { "aria-label": `Kick ${client.client_id}` }) : null) : null,
		}),
	});
	place.append(heading("Clients"), list.element);
}

async function one(place, clientId, whenLeft) {
	let gone = false;
	whenLeft(() => (gone = true));
	const body = h("div");
	const load = async () => {
		let client;
		try {
			client = await call("clients.show", { client_id: clientId });
		} catch (error) {
			fill(actions);
			fill(body, notice(error.message, error.status === 404 ? "warn" : "bad"));
			return;
		}
		if (gone) return;
		fill(body, missing(client),
			h("section", { class: "panel" }, facts(client, ["missing_nodes", "client_id"], {
				connected: (yes) => (yes ? badge("connected", "good") : badge("not connected")),
			})),
			subscriptions(clientId), queue(clientId));
		fill(actions,
			button("Refresh", load),
			can("trace.start") ? h("a", { class: "button", href: `#/trace?client_id=${encodeURIComponent(clientId)}` }, "Trace") : null,
			can("sessions.delete") ? button("Delete session", () => ask(`Delete the session of ${clientId}?`,
				"It is disconnected; its subscriptions and the messages that wait for it are gone.", "Delete", async () => {
					await call("sessions.delete", { client_id: clientId });
					location.hash = "#/clients";
				}), { class: "danger" }) : null,
			can("clients.kick") && client.connected ? button("Kick", () => kick(clientId, load), { class: "danger" }) : null);
	};
	const actions = h("div", { class: "actions" });
	place.append(h("p", null, h("a", { href: "#/clients" }, "← Clients")), heading(clientId, actions), body);
	await load();
}

function subscriptions(clientId) {
	const body = h("div");
	const load = async () => {
		const answer = await call("subscriptions.of_client", { client_id: clientId });
		fill(body, table("Subscriptions", [
			{ label: "Filter", show: (item) => mono(item.topic_filter) },
			"qos", "no_local", "retain_as_published", "subscription_identifier",
		], answer.items, {
			empty: "None.",
			actions: can("subscriptions.remove") ? (item) => button("Remove", () => attempt(
				() => call("subscriptions.remove", { client_id: clientId, topic_filter: item.topic_filter }), "Removed.").then(load),
			{ "aria-label": `Remove ${item.topic_filter}` }) : null,
		}));
	};
	load().catch((error) => fill(body, notice(error.message, error.status === 404 ? "" : "bad")));
	return panel("Subscriptions", body,
		can("subscriptions.add") ? form([
			field({ name: "topic_filter", label: "Subscribe it to", required: true, placeholder: "a/+/b" }),
			field({ name: "qos", label: "QoS", options: ["0", "1", "2"], value: "1" }),
		], "Add", async (given, element) => {
			await call("subscriptions.add", { client_id: clientId, topic_filter: given.topic_filter, qos: Number(given.qos) });
			element.reset();
			await load();
		}, { inline: true }) : null);
}

function queue(clientId) {
	if (!can("sessions.messages")) return null;
	return panel("Messages that wait", messagesOf(clientId));
}
