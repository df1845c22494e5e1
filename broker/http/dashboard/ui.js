// What the pages are made of.
import { call, can } from "./api.js";
import { byId, fill, freshId, h } from "./dom.js";
import { asJson, asText, bytes, decodePayload, hex, label, NONE, value } from "./format.js";

// -- telling things

export function toast(text, kind = "good") {
	const shown = h("div", { class: `toast ${kind}` }, text);
	byId("toasts").append(shown);
	setTimeout(() => shown.remove(), kind === "bad" ? 9000 : 4000);
}

/** Shows an error of the API where the user looks. */
export function failed(error) {
	if (error.status !== undefined) toast(error.status ? `${error.title}: ${error.message}` : error.message, "bad");
	else {
		toast(String(error), "bad");
		console.error(error);
	}
}

/** Do it, tell what was done or why not; true if it was. */
export async function attempt(work, done) {
	try {
		await work();
	} catch (error) {
		failed(error);
		return false;
	}
	if (done) toast(done);
	return true;
}

export const badge = (text, kind = "") => h("span", { class: `badge ${kind}` }, text);

export function notice(text, kind = "") {
	return h("p", { class: `notice ${kind}` }, text);
}

/** "missing_nodes" of an answer, as a warning. */
export function missing(answer) {
	const names = answer?.missing_nodes ?? [];
	return names.length ? notice(`Without an answer of ${names.join(", ")}: what only they know is not shown.`, "warn") : null;
}

export function heading(title, ...actions) {
	return h("div", { class: "heading" }, h("h1", null, title), h("div", { class: "actions" }, actions));
}

export function button(text, onclick, props = {}) {
	return h("button", { type: "button", onclick, ...props }, text);
}

// -- dialogs

/** A dialog that Esc closes; `build(close)` returns its content. Focus goes back to where it was. */
export function dialog(title, build, wide = false) {
	const before = document.activeElement;
	const id = freshId();
	const element = h("dialog", { "aria-labelledby": id, class: wide ? "wide" : "" });
	const close = () => element.close();
	element.append(
		h("div", { class: "heading" }, h("h2", { id }, title), button("✕", close, { class: "quiet", "aria-label": "Close" })),
		h("div", { class: "content" }, build(close)),
	);
	element.addEventListener("close", () => {
		element.remove();
		if (before?.isConnected) before.focus();
	});
	element.addEventListener("click", (event) => event.target === element && close());
	document.body.append(element);
	element.showModal();
	element.querySelector("[data-first]")?.focus();
	return close;
}

/** A button that carries out an operation after a question; none if this login may not. */
export function removal(name, given, what, text, list, verb = "Delete", shown = verb) {
	return can(name) ? button(shown, () => ask(`${verb} ${what}?`, text, verb, async () => {
		await call(name, given);
		toast("Done.");
		await list.reload();
	}), { class: "danger", "aria-label": `${verb} ${what}` }) : null;
}

/** A part of a page with a heading of its own. */
export const panel = (title, ...children) => h("section", { class: "panel" }, h("h2", null, title), children);
export const subheading = (text) => h("h2", null, text);

/** A button that shows and hides `list`, what is below `name` in a tree; `opened` is called when it is shown. */
export function folding(name, list, opened = () => {}) {
	const element = button("", () => {
		list.hidden = !list.hidden;
		show();
		if (!list.hidden) opened();
	}, { class: "quiet fold", "aria-label": `Below ${name || "(empty)"}` });
	const show = () => {
		element.setAttribute("aria-expanded", String(!list.hidden));
		element.textContent = list.hidden ? "▸" : "▾";
	};
	show();
	return element;
}

export const mono = (text) => h("span", { class: "mono" }, text);

/** Ask before something that cannot be undone. */
export function ask(title, text, verb, work) {
	dialog(title, (close) => [
		h("p", null, text),
		h("div", { class: "actions end" },
			button("Cancel", close, { "data-first": true }),
			button(verb, async (event) => {
				event.target.disabled = true;
				try {
					await work();
					close();
				} catch (error) {
					failed(error);
					event.target.disabled = false;
				}
			}, { class: "danger" })),
	]);
}

// -- forms

/** A labelled field: {name, label, type, value, options, required, hint, ...}. With options it is a selection; types: text, number, checkbox, area, ... */
export function field(given) {
	const { name, label: text, type = "text", value: initial, options, hint, ...others } = given;
	const id = freshId();
	const hintId = hint ? freshId() : undefined;
	// A prefix: a field called "contains" would hide the method of its form.
	const props = { id, name: `f-${name}`, "aria-describedby": hintId, autocomplete: "off", ...others };
	let input;
	if (options) {
		input = h("select", props, options.map((option) => {
			const [key, shown] = Array.isArray(option) ? option : [option, option];
			return h("option", { value: key, selected: key === initial }, shown);
		}));
	} else if (type === "area") {
		input = h("textarea", { rows: 4, spellcheck: "false", ...props });
		input.value = initial ?? "";
	} else if (type === "checkbox") {
		input = h("input", { type, ...props, checked: Boolean(initial) });
	} else {
		input = h("input", { type, spellcheck: "false", autocapitalize: "none", ...props, value: initial ?? "" });
	}
	const caption = h("label", { for: id }, text);
	const parts = type === "checkbox" ? [input, caption] : [caption, input];
	return h("div", { class: type === "checkbox" ? "field check" : "field" }, parts,
		hint ? h("small", { id: hintId }, hint) : null);
}

/** What a form holds: numbers as numbers, boxes as booleans, empty fields left out. */
export function contents(form) {
	const found = {};
	for (const input of form.elements) {
		if (!input.name) continue;
		const name = input.name.slice(2);
		if (input.type === "checkbox") found[name] = input.checked;
		else if (input.value === "") continue;
		else found[name] = input.type === "number" ? Number(input.value) : input.value;
	}
	return found;
}

/** A form that sends what it holds to `submit(contents)` and shows why that failed. */
export function form(fields, verb, submit, { inline = false, extra = null, danger = false } = {}) {
	const problem = h("p", { class: "notice bad", role: "alert", hidden: true });
	const send = h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb);
	return h("form", {
		class: inline ? "inline" : "stack",
		onsubmit: async (event) => {
			event.preventDefault();
			problem.hidden = true;
			send.disabled = true;
			try {
				await submit(contents(event.target), event.target);
			} catch (error) {
				problem.textContent = error.message || String(error);
				problem.hidden = false;
				if (error.status === undefined) console.error(error);
			} finally {
				send.disabled = false;
			}
		},
	}, fields, h("div", { class: "actions end" }, extra, send), problem);
}

/** A dialog with a form; closes when `submit` has done its work. */
export function formDialog(title, fields, verb, submit, options) {
	dialog(title, (close) => form(fields.map(field), verb, async (given) => {
		if ((await submit(given)) !== false) close();
	}, options));
}

// -- tables

/**
 * A table of `items`. A column is {key, label, show(item), num}, or the name of a field; `show` gives text or an element.
 * On a narrow screen each row becomes a card.
 */
export function table(caption, columns, items, { actions, empty = "Nothing here." } = {}) {
	const wide = columns.map((one) => (typeof one === "string"
		? { key: one, num: !/_at_ms$/.test(one) && items.some((item) => typeof item[one] === "number") } : one));
	if (actions) wide.push({ label: "", show: actions, actions: true });
	const head = wide.map((column) =>
		h("th", { scope: "col", class: column.num ? "num" : "" }, column.label ?? (column.key ? label(column.key) : h("span", { class: "hidden" }, "Actions"))));
	const rows = items.map((item) => h("tr", null, wide.map((column) => {
		const shown = column.show ? column.show(item) : value(column.key, item[column.key]);
		return h("td", {
			class: column.actions ? "actions" : column.num ? "num" : "",
			"data-label": column.actions ? null : column.label ?? label(column.key),
		}, shown ?? NONE);
	})));
	if (!items.length) return h("p", { class: "empty" }, empty);
	return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
		h("table", null, h("caption", { class: "hidden" }, caption), h("thead", null, h("tr", null, head)), h("tbody", null, rows)));
}

/**
 * A list that comes in parts: filters, a table, and buttons for the next and the first part.
 * `fetch(given)` gives {items, cursor, missing_nodes}; `draw(items)` gives the table. `reload()` of the result shows it anew.
 */
export function paged({ filters = [], fetch, draw, limit = 50, verb = "Search", initial = {} }) {
	const body = h("div", { class: "list", "aria-live": "off" });
	let given = { ...initial };
	let cursors = [null];
	let turn = 0;
	const load = async () => {
		const mine = ++turn;
		body.setAttribute("aria-busy", "true");
		let answer;
		try {
			answer = await fetch({ ...given, limit, cursor: cursors.at(-1) });
		} catch (error) {
			if (mine === turn) fill(body, notice(error.message, "bad"));
			if (error.status === undefined) console.error(error);
			return;
		} finally {
			if (mine === turn) body.removeAttribute("aria-busy");
		}
		if (mine !== turn) return;
		const items = answer.items ?? [];
		const at = cursors.length;
		const go = (next) => () => {
			cursors = next;
			load().then(() => body.querySelector(".scroll, .empty")?.focus());
		};
		fill(body, missing(answer), draw(items, answer),
			at > 1 || answer.cursor ? h("div", { class: "pager" },
				button("First", go([null]), { disabled: at === 1 }),
				button("Previous", go(cursors.slice(0, -1)), { disabled: at === 1 }),
				h("span", null, `Part ${at}`),
				button("Next", go([...cursors, answer.cursor]), { disabled: !answer.cursor })) : null);
	};
	const controls = filters.length
		? form(filters.map((one) => field({ ...one, value: initial[one.name] ?? one.value })), verb, async (found) => {
			given = Object.fromEntries(Object.entries(found).filter(([, one]) => one !== false));
			cursors = [null];
			await load();
		}, { inline: true })
		: null;
	const element = h("section", null, controls, body);
	for (const select of element.querySelectorAll("form.inline select")) {
		select.addEventListener("change", () => select.form.requestSubmit());
	}
	load();
	return { element, reload: load };
}

/** All fields of an object, named and shown. */
export function facts(item, leaveOut = [], special = {}) {
	const rows = Object.entries(item).filter(([key]) => !leaveOut.includes(key));
	return h("dl", { class: "facts" }, rows.map(([key, given]) =>
		h("div", null, h("dt", null, label(key)), h("dd", null, special[key] ? special[key](given) : value(key, given)))));
}

// -- payloads

/** A payload as text, JSON or hexadecimal, whichever is asked for; `message` as the API gives it, or {data: bytes}. */
export function payloadView(message) {
	const data = message.data ?? decodePayload(message);
	const text = asText(data);
	const json = asJson(text);
	const kinds = [["JSON", json], ["Text", text], ["Hex", hex(data)]].filter(([, shown]) => shown !== null);
	const area = h("pre", { tabindex: 0, class: "payload", "aria-label": "Payload" });
	const buttons = kinds.map(([name, shown]) => button(name, () => choose(name, shown), { "aria-pressed": "false" }));
	const choose = (name, shown) => {
		area.textContent = shown.length > 200_000 ? `${shown.slice(0, 200_000)}…` : shown;
		for (const each of buttons) each.setAttribute("aria-pressed", String(each.textContent === name));
	};
	choose(...kinds[0]);
	const cut = message.truncated;
	return h("div", { class: "payload-view" },
		h("div", { class: "segmented", role: "group", "aria-label": "Show the payload as" }, buttons,
			h("small", null, bytes(message.payload_bytes ?? data.length), cut ? " (cut)" : "")),
		data.length ? area : h("p", { class: "empty" }, "The payload is empty."));
}

/** Tabs: [[title, build], ...]; a tab is built when it is chosen. */
export function tabs(name, list) {
	const panel = h("div", { role: "tabpanel", id: freshId() });
	const heads = list.map(([title], index) => h("button", {
		type: "button", role: "tab", id: freshId(), "aria-controls": panel.id, onclick: () => choose(index),
		onkeydown: (event) => {
			const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
			if (step) choose((index + step + list.length) % list.length, true);
		},
	}, title));
	const choose = (index, focus) => {
		heads.forEach((head, at) => {
			head.setAttribute("aria-selected", String(at === index));
			head.tabIndex = at === index ? 0 : -1;
		});
		panel.setAttribute("aria-labelledby", heads[index].id);
		fill(panel, list[index][1]());
		if (focus) heads[index].focus();
	};
	choose(0);
	return h("div", null, h("div", { role: "tablist", "aria-label": name, class: "tabs" }, heads), panel);
}
