// The level of the log, what was logged lately, and the settings in force.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { value, when } from "../format.js";
import { field, form, heading, missing, notice, paged, table, tabs, toast } from "../ui.js";

const LEVELS = ["debug", "info", "warning", "error"];

function level() {
	const now = h("div");
	const load = async () => {
		const answer = await call("logs.level");
		fill(now, missing(answer), table("Levels", ["node", "level", "configured", "back_in_s"], answer.items));
	};
	load().catch((error) => fill(now, notice(error.message, "bad")));
	return h("section", null, now, can("logs.set_level") ? h("div", { class: "panel gap" }, form([
		field({ name: "level", label: "Level", options: LEVELS, value: "info" }),
		field({ name: "node", label: "Node", placeholder: "all" }),
		field({ name: "duration_s", label: "For (seconds)", type: "number", min: 1, placeholder: "until the next start" }),
	], "Set", async (given) => {
		await call("logs.set_level", given);
		toast("Set.");
		await load();
	}, { inline: true })) : null);
}

function recent() {
	return paged({
		filters: [{ name: "contains", label: "Has", type: "search" }, { name: "node", label: "Node" }, { name: "level", label: "Level", options: [["warning", "warnings, too"], ["error", "errors"]] }],
		fetch: (given) => call("logs.list", given),
		draw: (items) => (items.length ? h("div", { class: "lines", tabindex: 0, role: "region", "aria-label": "Log" }, items.map((line) => {
			const { at_ms: at, level: kind, node, event, fields } = line;
			return h("div", null, h("span", { class: "t" }, `${when(at)} `), h("span", { class: "n" }, `${node} `),
				h("span", { class: kind === "warning" ? "c" : "bad" }, `${kind} `), `${event} `,
				Object.entries(fields).map(([key, one]) => `${key}=${one}`).join(" "));
		})) : h("p", { class: "empty" }, "No warnings and no errors.")),
	}).element;
}

function settings() {
	const body = h("div");
	let items = [];
	const draw = (text = "") => fill(body, table("Settings", [
		{ label: "Setting", show: (item) => h("div", null, h("code", null, item.name), h("br"), h("small", null, item.help)) },
		{ label: "Value", show: (item) => h("span", { class: "mono" }, value("", item.value)) },
		{ label: "From", show: (item) => item.origin },
	], items.filter((item) => item.name.includes(text))));
	call("settings.show").then((answer) => {
		items = answer.items;
		draw();
	}).catch((error) => fill(body, notice(error.message, "bad")));
	const search = field({ name: "name", label: "Name has", type: "search", oninput: (event) => draw(event.target.value) });
	return h("div", null, h("div", { class: "inline-field" }, search), body);
}

export default async function logs(place) {
	const kinds = [["Warnings and errors", recent], ["Level", level]];
	if (can("settings.show")) kinds.push(["Settings", settings]);
	place.append(heading("Logs and settings"), tabs("Logs and settings", kinds));
}
