// The cluster at a glance: numbers now, and how they went.
import { call, can, follow } from "../api.js";
import { chart, script } from "../chart.js";
import { fill, h } from "../dom.js";
import { bytes, compact, milliseconds, number } from "../format.js";
import { badge, failed, field, heading, notice } from "../ui.js";

const KEPT = 900;
const rate = (key) => (now) => (typeof now[key] === "number" ? `${compact(now[key])}/s` : "–");
const plain = (key) => (now) => number(now[key]);

const TILES = [
	["Connections", plain("connections")],
	["Persistent sessions", plain("persistent_sessions")],
	["Subscriptions", plain("subscriptions")],
	["Retained", plain("retained")],
	["Messages in", rate("messages_in_per_s")],
	["Messages out", rate("messages_out_per_s")],
	["Dropped", rate("dropped_per_s"), (now) => (now.dropped_per_s > 0 ? "warn" : "")],
	["Queued", plain("queued")],
	["Latency p99", (now) => milliseconds(now.latency_p99_ms)],
	["Redis round trip", (now) => milliseconds(now.store_round_trip_ms)],
	["Redis memory", (now) => bytes(now.store_memory_bytes), (now) =>
		(now.store_memory_limit_bytes > 0 && now.store_memory_bytes > 0.8 * now.store_memory_limit_bytes ? "bad" : "")],
];

const CHARTS = [
	["Connections", [["connections", "connections", "--a"]], compact],
	["Messages per second", [["messages_in_per_s", "in", "--a"], ["messages_out_per_s", "out", "--b"]], compact],
	["Dropped per second", [["dropped_per_s", "dropped", "--c"]], compact],
	["Delivery latency", [["latency_p50_ms", "p50", "--a"], ["latency_p99_ms", "p99", "--b"]], milliseconds],
	["Redis round trip", [["store_round_trip_ms", "round trip", "--d"]], milliseconds],
	["Bytes per second", [["bytes_in_per_s", "in", "--a"], ["bytes_out_per_s", "out", "--b"]], bytes],
];

export default async function overview(place, { whenLeft }) {
	let gone = false;
	whenLeft(() => (gone = true));
	await script("vendor/uPlot.iife.min.js");
	if (gone) return;
	const tiles = TILES.map(([name, show, kind]) => {
		const text = h("b", null, "–");
		return { show, kind, text, element: h("div", { class: "tile" }, text, h("small", null, name)) };
	});
	const charts = CHARTS.map(([title, series, show]) => ({
		keys: series.map(([key]) => key),
		drawn: chart(title, series.map(([, label, colour]) => ({ label, colour })), show),
	}));
	const node = field({ name: "node", label: "Node", options: [["", "All nodes"]], onchange: () => { seen(); draw(); } });
	const span = field({
		name: "span", label: "Time", value: "5",
		options: [["5", "5 minutes"], ["15", "15 minutes"], ["1440", "24 hours"]], onchange: () => load().catch(failed),
	});
	const nodeInput = node.querySelector("select");
	const spanInput = span.querySelector("select");
	const alarms = h("div");
	let items = [];
	let timer = 0;
	let stop = null;

	const of = (item) => (nodeInput.value ? item.nodes?.[nodeInput.value] : item.cluster) ?? {};

	const seen = () => {
		const last = items.at(-1);
		if (!last) return;
		const now = of(last);
		for (const tile of tiles) {
			tile.text.textContent = tile.show(now);
			tile.element.className = `tile ${tile.kind?.(now) ?? ""}`;
		}
		const names = Object.keys(last.nodes ?? {}).sort();
		const known = [...nodeInput.options].slice(1).map((option) => option.value);
		for (const name of names.filter((one) => !known.includes(one))) nodeInput.append(h("option", { value: name }, name));
	};

	const draw = () => {
		const from = Date.now() - Number(spanInput.value) * 60_000;
		const shown = items.filter((item) => item.at_ms >= from);
		const times = shown.map((item) => item.at_ms / 1000);
		for (const one of charts) one.drawn.set([times, ...one.keys.map((key) => shown.map((item) => of(item)[key] ?? null))]);
	};

	const load = async () => {
		const wanted = Number(spanInput.value);
		const answer = await call("stats.history", { minutes: wanted });
		if (gone) return;
		items = answer.items ?? [];
		seen();
		draw();
		clearTimeout(timer);
		if (wanted > 15) timer = setTimeout(() => load().catch(failed), 60_000);
	};

	const live = () => {
		stop ??= follow("stats.live", {}, (item) => {
			if (items.length && item.at_ms <= items.at(-1).at_ms) return;
			if (Number(spanInput.value) > 15) {
				// A point a second among points a minute would weigh too much.
				const last = items;
				items = [...items, item];
				seen();
				items = last;
				return;
			}
			items.push(item);
			if (items.length > KEPT + 60) items = items.slice(-KEPT);
			seen();
			draw();
		});
	};

	// A page that nobody sees keeps no connection; browsers have six for each origin.
	const visible = () => {
		if (document.hidden) {
			stop?.();
			stop = null;
		} else if (!stop) {
			load().catch(failed);
			live();
		}
	};
	document.addEventListener("visibilitychange", visible);
	whenLeft(() => {
		document.removeEventListener("visibilitychange", visible);
		clearTimeout(timer);
		stop?.();
		for (const one of charts) one.drawn.close();
	});

	place.append(
		heading("Overview", node, span),
		alarms,
		h("section", { class: "tiles", "aria-label": "Now" }, tiles.map((tile) => tile.element)),
		h("section", { class: "charts", "aria-label": "Charts" }, charts.map((one) => one.drawn.element)));
	await load();
	if (gone) return;
	live();
	if (can("alarms.list")) {
		const active = (await call("alarms.list")).items ?? [];
		if (active.length) {
			fill(alarms, notice("", "warn"));
			alarms.firstChild.append(badge(`${active.length} active`, "warn"), " ",
				[...new Set(active.map((alarm) => alarm.name))].join(", "), " ", h("a", { href: "#/alarms" }, "Alarms"));
		}
	}
}
