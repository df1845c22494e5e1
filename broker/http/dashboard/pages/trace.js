// Every packet and decision of a client, a topic or an address, from all nodes, for a limited time.
import { call, can, follow } from "../api.js";
import { fill, h } from "../dom.js";
import { age, clock, duration, number } from "../format.js";
import { attempt, badge, button, dialog, facts, field, form, heading, missing, table } from "../ui.js";

const SHOWN_MAX = 2000;
const what = (trace) => (trace.client_id ? `client ${trace.client_id}` : trace.topic_filter ? `topic ${trace.topic_filter}` : `address ${trace.ip}`);
const ARROWS = { in: "→", out: "←" };
const BAD = new Set(["drop"]);

function lineText(line) {
	return `${clock(line.at_ms, true)} ${line.node} ${line.client_id || line.peer || "-"} ${ARROWS[line.direction] ?? "·"} ${line.kind}: ${line.text}`;
}

function draw(line) {
	const row = h("div", { tabindex: -1, title: "Details" },
		h("span", { class: "t" }, `${clock(line.at_ms, true)} `), h("span", { class: "n" }, `${line.node} `), h("span", { class: "c" }, `${line.client_id || line.peer || "-"} `),
		h("span", { class: BAD.has(line.kind) ? "bad" : "" }, `${ARROWS[line.direction] ?? "·"} ${line.kind}: ${line.text}`));
	row.addEventListener("click", () => getSelection().isCollapsed && dialog("Line", () => [
		facts({ at: clock(line.at_ms, true), node: line.node, client_id: line.client_id, peer: line.peer, kind: line.kind, text: line.text }),
		h("pre", { class: "payload", tabindex: 0 }, JSON.stringify(line.details ?? {}, null, 2))], true));
	return row;
}

export default async function trace(place, { rest, query, whenLeft }) {
	if (rest.length) return watch(place, rest[0], whenLeft);
	const list = h("section");
	let gone = false;
	let timer = 0;
	whenLeft(() => {
		gone = true;
		clearTimeout(timer);
	});
	const open = (given) => (location.hash = `#/trace/${encodeURIComponent(given.id)}`);
	const load = async () => {
		clearTimeout(timer);
		const answer = await call("trace.list");
		if (gone) return;
		fill(list, missing(answer), table("Traces", [
			{ label: "What", show: (item) => h("a", { href: `#/trace/${encodeURIComponent(item.id)}` }, what(item)) },
			{ label: "State", show: (item) => (item.running ? badge(`ends in ${duration(Math.max(0, Math.round((item.ends_at_ms - Date.now()) / 1000)))}`, "good") : badge("ended")) },
			{ label: "Started", show: (item) => age(item.started_at_ms) },
			"lines", "left_out",
		], answer.items, {
			empty: "No trace is there.",
			actions: (item) => (item.running && can("trace.stop") ? button("Stop", () => attempt(() => call("trace.stop", { id: item.id }), "Stopped.").then(load), { "aria-label": `Stop ${what(item)}` }) : null),
		}));
	};
	const kind = ["client_id", "topic_filter", "ip"].find((name) => query.has(name)) ?? "client_id";
	place.append(heading("Live trace"), can("trace.start") ? form([
		field({ name: "kind", label: "Follow", value: kind, options: [["client_id", "a client ID"], ["topic_filter", "a topic filter"], ["ip", "an IP address or network"]] }),
		field({ name: "which", label: "Which", type: "search", required: true, value: query.get(kind) ?? "" }),
		field({ name: "duration_s", label: "For (seconds)", type: "number", min: 1, max: 3600, value: 60 }),
		field({ name: "payload", label: "Payloads too", type: "checkbox" }),
	], "Start", async (given) => open(await call("trace.start", { [given.kind]: given.which, duration_s: given.duration_s, payload: given.payload })), { inline: true }) : null, list);
	await load();
}

async function watch(place, id, whenLeft) {
	const lines = h("div", { class: "lines", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Lines" });
	lines.addEventListener("keydown", (event) => {
		const now = event.target === lines ? null : event.target;
		const next = { ArrowDown: now ? now.nextSibling : lines.firstChild, ArrowUp: now ? now.previousSibling : lines.lastChild }[event.key];
		if (event.key !== "Enter" && !next) return;
		event.preventDefault();
		if (next) next.focus();
		else now?.click();
	});
	const state = h("span", { role: "status" });
	const all = [];
	let waiting = [];
	let frame = 0;
	let only = "";
	let stop = null;
	let seen = new Set();
	let gone = false;

	const matching = (line) => !only || lineText(line).toLowerCase().includes(only);
	const flush = () => {
		frame = 0;
		if (hold.getAttribute("aria-pressed") === "true") return;
		const atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 30;
		const shown = waiting.filter(matching).slice(-SHOWN_MAX);
		waiting = [];
		lines.append(...shown.map(draw));
		while (lines.childElementCount > SHOWN_MAX) lines.firstChild.remove();
		if (atEnd) lines.scrollTop = lines.scrollHeight;
		count.textContent = `${number(all.length)} lines`;
	};
	const hear = (line) => {
		// A stream that begins anew tells again what was told.
		const key = `${line.node} ${line.seq}`;
		if (line.seq !== undefined && seen.has(key)) return;
		seen.add(key);
		all.push(line);
		if (all.length > 20_000) {
			all.splice(0, 10_000);
			seen = new Set(all.map((one) => `${one.node} ${one.seq}`));
		}
		waiting.push(line);
		frame ||= requestAnimationFrame(flush);
	};
	const redraw = () => {
		waiting = [];
		fill(lines, all.filter(matching).slice(-SHOWN_MAX).map(draw));
		lines.scrollTop = lines.scrollHeight;
	};
	const hold = button("Hold", () => {
		const held = hold.getAttribute("aria-pressed") !== "true";
		hold.setAttribute("aria-pressed", String(held));
		if (!held) redraw();
	}, { "aria-pressed": "false" });
	const count = h("small", null, "");
	const save = button("Save", () => {
		const url = URL.createObjectURL(new Blob([all.map(lineText).join("\n"), "\n"], { type: "text/plain" }));
		h("a", { href: url, download: `trace-${id}.txt` }).click();
		setTimeout(() => URL.revokeObjectURL(url), 10_000);
	});
	const end = can("trace.stop") ? button("Stop", () => attempt(async () => told(await call("trace.stop", { id })), "Stopped.")) : null;
	const told = (trace) => {
		title.textContent = `Trace of ${what(trace)}`;
		fill(state, trace.running ? badge("running", "good") : badge("ended"), trace.left_out ? ` ${number(trace.left_out)} lines were left out: too many at once` : "");
		if (!trace.running) {
			end?.remove();
			stop?.();
		}
	};
	const find = async () => {
		if (gone) return;
		const found = (await call("trace.list")).items.find((one) => one.id === id);
		if (found) told(found);
		else fill(state, badge("gone"));
		return found;
	};
	const timer = setInterval(() => find().catch(() => {}), 3000);
	whenLeft(() => {
		gone = true;
		clearInterval(timer);
		cancelAnimationFrame(frame);
		stop?.();
	});
	const title = h("h1", null, "Trace");
	place.append(h("p", null, h("a", { href: "#/trace" }, "← Traces")),
		h("div", { class: "heading" }, title, h("div", { class: "actions" }, state, hold, save, end)),
		h("form", { class: "inline", onsubmit: (event) => event.preventDefault() },
			field({ name: "only", label: "Only lines with", type: "search", oninput: (event) => { only = event.target.value.toLowerCase(); redraw(); } }), count),
		lines);
	const found = await find();
	if (gone || !found) return;
	if (found.running) stop = follow("trace.follow", { id }, hear);
	else {
		let cursor = null;
		do {
			const answer = await call("trace.lines", { id, cursor, limit: 1000 });
			answer.items.forEach(hear);
			cursor = answer.cursor;
		} while (cursor && !gone);
	}
}
