// An MQTT client in the page, to try things. It stays connected while other pages are looked at.
import { call } from "../api.js";
import { script } from "../chart.js";
import { fill, h } from "../dom.js";
import { bytes, clock } from "../format.js";
import { attempt, badge, button, facts, field, form, heading, panel, payloadView, subheading, toast } from "../ui.js";
import { pairs } from "./users.js";

/* global mqtt */
const KEPT = 500;
const state = { client: null, status: "not connected", kind: "", why: "", subscriptions: new Map(), messages: [], count: 0, options: null };
let changed = () => {};
let arrived = () => {};

function set(status, kind = "", why = "") {
	Object.assign(state, { status, kind, why });
	changed();
}

function connect(given) {
	state.client?.end(true);
	state.subscriptions.clear();
	const version = Number(given.version);
	const options = {
		protocolVersion: version, clientId: given.client_id, username: given.username, password: given.password,
		clean: given.clean, keepalive: given.keepalive ?? 60, reconnectPeriod: 0, connectTimeout: 10_000,
		timerVariant: "native", // the other one needs a worker, which the policy of the page does not allow
		resubscribe: false,
	};
	if (version === 5 && given.expiry) options.properties = { sessionExpiryInterval: given.expiry };
	if (version === 3) Object.assign(options, { protocolId: "MQIsdp" });
	set("connecting…");
	const client = mqtt.connect(given.url, options);
	state.client = client;
	const mine = (work) => (...values) => state.client === client && work(...values);
	client.on("connect", mine((connack) => set("connected", "good", connack.sessionPresent ? "Its session was there." : "")));
	client.on("error", mine((error) => set("failed", "bad", error.message)));
	client.on("disconnect", mine((packet) => set("disconnected", "bad", `The broker disconnected it: reason ${packet.reasonCode ?? 0}.`)));
	client.on("close", mine(() => {
		state.client = null;
		state.subscriptions.clear();
		if (state.kind === "bad") changed();
		else if (state.status === "connecting…") set("failed", "bad", "There was no connection. Does the listener let pages of this address in?");
		else set("not connected");
	}));
	client.on("message", mine((topic, payload, packet) => {
		state.count += 1;
		state.messages.unshift({ number: state.count, at: Date.now(), topic, data: Uint8Array.from(payload), qos: packet.qos, retain: packet.retain, dup: packet.dup, properties: packet.properties });
		if (state.messages.length > KEPT) state.messages.length = KEPT;
		arrived();
	}));
}

function plain(properties) {
	const found = {};
	for (const [name, given] of Object.entries(properties ?? {})) found[name] = given instanceof Uint8Array ? new TextDecoder().decode(given) : given;
	return found;
}

function draw(message) {
	const { topic, data, qos, retain, dup, at, properties, number } = message;
	const body = h("div");
	return h("details", {
		class: "message", data: { number },
		ontoggle: (event) => event.target.open && !body.firstChild && fill(body, payloadView({ data }), properties ? facts(plain(properties)) : null),
	}, h("summary", null, h("span", { class: "muted" }, `${clock(at, true)} `), h("b", { class: "mono" }, topic), ` QoS ${qos} `,
		retain ? badge("retained") : null, dup ? badge("again") : null, h("small", null, ` ${bytes(data.length)} `),
		h("span", { class: "mono" }, new TextDecoder().decode(data.subarray(0, 80)))), body);
}

export default async function client(place, { whenLeft }) {
	whenLeft(() => {
		changed = arrived = () => {};
	});
	const options = state.options ?? { client_id: `dashboard-${Math.random().toString(16).slice(2, 8)}`, version: "5", clean: true, keepalive: 60 };
	const urls = h("datalist", { id: "urls" });
	const url = field({ name: "url", label: "WebSocket URL", required: true, value: options.url ?? "", list: "urls", placeholder: "ws://host:8083/mqtt" });
	const status = h("p", { role: "status", class: "actions" });
	const connectForm = form([
		url, urls,
		h("div", { class: "row" },
			field({ name: "client_id", label: "Client ID", value: options.client_id }),
			field({ name: "username", label: "User", value: options.username }),
			field({ name: "password", label: "Password", type: "password", autocomplete: "off", value: options.password })),
		h("div", { class: "row" },
			field({ name: "version", label: "MQTT", options: [["5", "5.0"], ["4", "3.1.1"], ["3", "3.1"]], value: options.version }),
			field({ name: "keepalive", label: "Keep alive (s)", type: "number", min: 0, max: 65535, value: options.keepalive }),
			field({ name: "expiry", label: "Session expiry (s)", type: "number", min: 0, max: 4294967295, value: options.expiry }),
			field({ name: "clean", label: "Clean start", type: "checkbox", value: options.clean })),
	], "Connect", async (given) => {
		await script("vendor/mqtt.min.js");
		const { password, ...kept } = given;
		state.options = kept;
		connect({ ...kept, password });
	}, { extra: button("Disconnect", () => state.client?.end(), { id: "disconnect" }) });

	const subscriptions = h("ul", { class: "tree" });
	const subscribeForm = form([
		field({ name: "filter", label: "Filter", required: true, value: "test/#" }),
		h("div", { class: "row" },
			field({ name: "qos", label: "QoS", options: ["0", "1", "2"], value: "1" }),
			field({ name: "retain_handling", label: "Retained", options: [["0", "send"], ["1", "if new"], ["2", "do not send"]] }),
			field({ name: "no_local", label: "No local", type: "checkbox" }),
			field({ name: "as_published", label: "Retain as published", type: "checkbox" })),
	], "Subscribe", async (given) => {
		if (!state.client) throw new Error("Not connected.");
		const asked = state.client.options.protocolVersion === 5 ? { nl: given.no_local, rap: given.as_published, rh: Number(given.retain_handling) } : {};
		const granted = await state.client.subscribeAsync(given.filter, { qos: Number(given.qos), ...asked });
		for (const one of granted) {
			if (one.qos > 2) throw new Error(`Refused: reason ${one.qos}.`);
			state.subscriptions.set(one.topic, one.qos);
		}
		if (!granted.length) state.subscriptions.set(given.filter, Number(given.qos));
		changed();
	});

	const publishForm = form([
		field({ name: "topic", label: "Topic", required: true, value: "test/hello" }),
		field({ name: "payload", label: "Payload", type: "area", value: "Hello" }),
		h("div", { class: "row" },
			field({ name: "qos", label: "QoS", options: ["0", "1", "2"], value: "1" }),
			field({ name: "retain", label: "Retain", type: "checkbox" })),
		h("details", null, h("summary", null, "Properties"), h("div", { class: "stack" },
			field({ name: "contentType", label: "Content type" }), field({ name: "responseTopic", label: "Response topic" }),
			field({ name: "correlationData", label: "Correlation data" }), field({ name: "messageExpiryInterval", label: "Expires in (s)", type: "number", min: 1 }),
			field({ name: "userProperties", label: "User properties", type: "area", rows: 2, hint: "name=value, one a line" }))),
	], "Publish", async (given) => {
		if (!state.client) throw new Error("Not connected.");
		const { topic, payload = "", qos, retain, userProperties, correlationData, ...properties } = given;
		if (userProperties) properties.userProperties = pairs(userProperties);
		if (correlationData) properties.correlationData = new TextEncoder().encode(correlationData);
		const asked = { qos: Number(qos), retain };
		if (state.client.options.protocolVersion === 5 && Object.keys(properties).length) asked.properties = properties;
		await state.client.publishAsync(topic, payload, asked);
		toast(Number(qos) ? "Published and acknowledged." : "Published.");
	});

	const messages = h("div", { role: "log", "aria-live": "off", "aria-label": "Messages" });
	const counted = h("small");
	let frame = 0;
	let newest = 0;
	const flush = () => {
		frame = 0;
		const fresh = state.messages.filter((message) => message.number > newest);
		newest = state.messages[0]?.number ?? 0;
		messages.prepend(...fresh.map(draw));
		while (messages.childElementCount > KEPT) messages.lastChild.remove();
		counted.textContent = `${state.count} received`;
	};
	arrived = () => (frame ||= requestAnimationFrame(flush));
	changed = () => {
		fill(status, badge(state.status, state.kind), state.why ? h("span", null, state.why) : null);
		connectForm.querySelector("#disconnect").disabled = !state.client;
		fill(subscriptions, [...state.subscriptions].map(([filter, qos]) => h("li", null, h("div", { class: "line" }, h("span", { class: "mono grow" }, filter), h("small", null, `QoS ${qos}`),
			button("✕", () => attempt(async () => {
				await state.client.unsubscribeAsync(filter);
				state.subscriptions.delete(filter);
				changed();
			}), { class: "quiet", "aria-label": `Unsubscribe ${filter}` })))));
	};
	place.append(heading("MQTT client"), h("div", { class: "split" },
		h("div", null,
			panel("Connection", status, connectForm),
			panel("Subscriptions", subscribeForm, subscriptions),
			panel("Publish", publishForm)),
		h("section", { class: "panel" }, h("div", { class: "heading" }, subheading("Messages"), h("div", { class: "actions" }, counted, button("Clear", () => {
			state.messages = [];
			fill(messages);
		}))), messages)));
	changed();
	flush();

	const { items } = await call("nodes.list");
	const found = items.flatMap((node) => (node.listeners ?? []).map((each) => ({ node: node.node, url: reachable(each) }))).filter((each) => /^wss?:/.test(each.url));
	fill(urls, found.map((each) => h("option", { value: each.url }, each.node)));
	const input = url.querySelector("input");
	const safe = location.protocol === "https:" ? found.filter((each) => each.url.startsWith("wss:")) : found;
	if (!input.value) input.value = safe[0]?.url ?? "";
	if (!found.length) connectForm.prepend(h("p", { class: "notice warn" }, "No node has a WebSocket listener (", h("code", null, "--listen ws://127.0.0.1:8083/mqtt"), ")."));
}

/** The URL of a listener as this page reaches it: one on all addresses is where the page came from. */
function reachable(text) {
	try {
		const found = new URL(typeof text === "string" ? text : text.url);
		if (["0.0.0.0", "[::]", ""].includes(found.hostname)) found.hostname = location.hostname;
		if (found.pathname === "/") found.pathname = "/mqtt";
		found.search = "";
		return found.href;
	} catch {
		return "";
	}
}
