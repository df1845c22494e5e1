// Sessions that outlive their connections, and what waits in them.
import { call, can } from "../api.js";
import { bytes, value, when } from "../format.js";
import { badge, button, dialog, facts, heading, mono, paged, payloadView, removal, subheading, table } from "../ui.js";
import { link } from "./clients.js";

/** The queue of a session, part by part. */
export function messagesOf(clientId) {
	return paged({
		limit: 20,
		fetch: (given) => call("sessions.messages", { client_id: clientId, ...given }),
		draw: (items) => table("Messages that wait", [
			{ label: "Topic", show: (item) => mono(item.topic) }, "qos",
			{ label: "Size", num: true, show: (item) => bytes(item.payload_bytes) },
			{ label: "Since", show: (item) => when(item.accepted_at_ms) },
		], items, {
			empty: "No message waits.",
			actions: (item) => button("Show", () => message(item), { "aria-label": `Show the message on ${item.topic}` }),
		}),
	}).element;
}

export function message(item) {
	const { payload, payload_encoding: encoding, properties, ...rest } = item;
	dialog(item.topic, () => [payloadView(item), subheading("Properties"), facts({ ...rest, ...properties }, ["topic"])], true);
}

export default async function sessions(place) {
	const list = paged({
		filters: [{ name: "contains", label: "Client ID has", type: "search" }, { name: "min_queued", label: "At least so many queued", type: "number", min: 0 }],
		fetch: (given) => call("sessions.list", given),
		draw: (items) => table("Sessions", [
			{ label: "Client ID", show: (item) => link(item.client_id) },
			{ label: "State", show: (item) => (item.connected ? badge("connected", "good") : badge("not connected")) },
			"node", "subscriptions", "queued",
			{ label: "Bytes", num: true, show: (item) => bytes(item.queued_bytes) },
			{ label: "Oldest", num: true, show: (item) => (item.queued ? value("oldest_ms", item.oldest_ms) : "–") },
			"in_flight",
			{ label: "Expires", show: (item) => (item.expires_at_ms ? value("expires_at_ms", item.expires_at_ms) : `after ${value("expiry_s", item.expiry_s)}`) },
		], items, {
			empty: "No such session.",
			actions: (item) => [
				can("sessions.messages") ? button("Queue", () => dialog(`Queue of ${item.client_id}`, () => messagesOf(item.client_id), true), { "aria-label": `Queue of ${item.client_id}` }) : null,
				removal("sessions.delete", { client_id: item.client_id }, `the session of ${item.client_id}`,
					"Whoever is connected with it is disconnected; its subscriptions and messages are gone.", list),
			],
		}),
	});
	place.append(heading("Sessions and queues"), list.element);
}
