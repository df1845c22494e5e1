// The frame: login, header, navigation, and which page is shown. Pages are modules that are loaded when they are needed.
import * as api from "./api.js";
import { byId, fill, h } from "./dom.js";
import { button, dialog, failed, field, form, notice, subheading } from "./ui.js";

// Path, name, module, and the operation without which the page is not offered.
const GROUPS = [
	["Cluster", [
		["overview", "Overview", "overview", "stats.show"],
		["nodes", "Nodes", "nodes", "nodes.list"],
		["alarms", "Alarms", "alarms", "alarms.list"],
		["logs", "Logs and settings", "logs", "logs.list"],
	]],
	["Clients", [
		["clients", "Clients", "clients", "clients.list"],
		["sessions", "Sessions and queues", "sessions", "sessions.list"],
		["subscriptions", "Subscriptions", "subscriptions", "subscriptions.list"],
		["groups", "Shared groups", "groups", "groups.list"],
		["slow", "Slow subscribers", "slow", "slow.list"],
	]],
	["Messages", [
		["retained", "Retained", "retained", "retained.browse"],
		["delayed", "Delayed", "delayed", "delayed.list"],
		["topics", "Topic metrics", "topics", "topic_metrics.list"],
	]],
	["Access", [
		["users", "Users", "users", "users.list"],
		["rules", "Rules", "rules", "rules.list"],
		["bans", "Bans", "bans", "bans.list"],
		["keys", "API keys", "keys", "keys.list"],
	]],
	["Tools", [
		["trace", "Live trace", "trace", "trace.list"],
		["client", "MQTT client", "client", "nodes.list"],
	]],
];
const PAGES = new Map(GROUPS.flatMap(([, pages]) => pages).map((page) => [page[0], page]));

let leave = null;
let turn = 0;

// -- theme

const THEMES = { system: ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

function themeButton() {
	const element = button("", () => {
		const names = Object.keys(THEMES);
		const now = document.documentElement.dataset.theme ?? "system";
		const next = names[(names.indexOf(now) + 1) % names.length];
		if (next === "system") delete document.documentElement.dataset.theme;
		else document.documentElement.dataset.theme = next;
		try {
			localStorage.setItem("rookery.theme", next);
		} catch {
			// Not kept, then.
		}
		show();
		document.dispatchEvent(new Event("themechange"));
	}, { class: "quiet", id: "theme" });
	const show = () => {
		const [sign, words] = THEMES[document.documentElement.dataset.theme ?? "system"];
		element.textContent = sign;
		element.setAttribute("aria-label", `Colours: ${words}`);
		element.title = `Colours: ${words}`;
	};
	show();
	return element;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));

// -- frame

function drawTop() {
	const menu = button("☰", () => {
		const open = document.body.classList.toggle("menu");
		menu.setAttribute("aria-expanded", String(open));
		if (open) byId("nav").querySelector("a")?.focus();
	}, { class: "quiet", id: "menu", "aria-label": "Pages", "aria-expanded": "false", "aria-controls": "nav" });
	fill(byId("top"),
		api.who ? menu : null,
		h("a", { class: "brand", href: "#/overview" }, h("img", { src: "icon.svg", alt: "", width: 24, height: 24 }), "Rookery"),
		h("span", { class: "grow" }),
		api.who ? h("span", { class: "who" }, h("b", null, api.who.name), h("small", null, api.who.scope)) : null,
		api.who ? button("?", help, { class: "quiet wide-only", "aria-label": "Keys of the keyboard" }) : null,
		themeButton(),
		api.who ? button("Log out", () => api.logout().catch(failed), { id: "logout" }) : null);
}

function drawNav(current) {
	fill(byId("nav"), GROUPS.map(([title, pages]) => {
		const offered = pages.filter(([, , , operation]) => api.can(operation));
		if (!offered.length) return null;
		return [subheading(title), h("ul", null, offered.map(([path, name]) =>
			h("li", null, h("a", { href: `#/${path}`, "aria-current": path === current ? "page" : null }, name))))];
	}));
}

function closeMenu() {
	document.body.classList.remove("menu");
	byId("menu")?.setAttribute("aria-expanded", "false");
}

function help() {
	const keys = [["/", "to the search of the page"], ["Esc", "close a dialog or the menu"], ["g", "to the list of pages"], ["Tab", "to what comes next"], ["?", "this list"]];
	dialog("Keys", () => h("dl", { class: "facts" }, keys.map(([key, words]) =>
		h("div", null, h("dt", null, h("kbd", null, key)), h("dd", null, words)))));
}

document.addEventListener("keydown", (event) => {
	if (event.ctrlKey || event.metaKey || event.altKey || !api.who || document.querySelector("dialog[open]")) return;
	if (event.key === "Escape") {
		if (document.body.classList.contains("menu")) {
			closeMenu();
			byId("menu").focus();
		} else if (event.target.matches("input, textarea, select")) event.target.blur();
		return;
	}
	if (event.target.matches("input, textarea, select")) return;
	if (event.key === "/") {
		const search = byId("main").querySelector("input[type=search], form input:not([type=checkbox])");
		if (search) {
			event.preventDefault();
			search.focus();
			search.select();
		}
	} else if (event.key === "?") help();
	else if (event.key === "g") {
		if (getComputedStyle(byId("menu")).display !== "none") byId("menu").click();
		else (byId("nav").querySelector("[aria-current]") ?? byId("nav").querySelector("a"))?.focus();
	}
});

byId("skip").addEventListener("click", (event) => {
	event.preventDefault(); // the address names the page
	byId("main").focus();
});

// -- pages

function drawLogin() {
	document.title = "Log in · Rookery";
	document.body.className = "out";
	fill(byId("nav"));
	drawTop();
	fill(byId("main"), h("div", { class: "login" },
		h("h1", null, "Log in"),
		form([
			field({ name: "name", label: "Name", required: true, autocomplete: "username", value: "admin" }),
			field({ name: "secret", label: "Secret", type: "password", required: true, autocomplete: "current-password" }),
		], "Log in", async ({ name, secret }) => {
			await api.login(name, secret);
			start(true);
		}),
		h("p", { class: "muted" }, "With the name and secret of an API key. The first one, ", h("code", null, "admin"), ", was shown when the broker was started for the first time.")));
	byId("main").querySelector("input[type=password]").focus();
}

/** "#/clients/a%2Fb?x=y" as {page: "clients", rest: ["a/b"], query}. */
function address() {
	const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
	const parts = path.split("/").filter(Boolean);
	const read = (part) => {
		try {
			return decodeURIComponent(part);
		} catch {
			return part;
		}
	};
	return { page: parts[0] ?? "overview", rest: parts.slice(1).map(read), query: new URLSearchParams(search) };
}

async function route(moved = true) {
	if (!api.who) return;
	const mine = ++turn;
	const { page, rest, query } = address();
	const found = PAGES.get(page);
	closeMenu();
	drawNav(page);
	leave?.();
	leave = null;
	const main = byId("main");
	if (!found || !api.can(found[3])) {
		fill(main, h("h1", null, "Not there"), notice("There is no such page, or your key may not see it."));
		return;
	}
	document.title = `${found[1]} · Rookery`;
	let module;
	try {
		module = await import(`./pages/${found[2]}.js`);
	} catch (error) {
		if (mine === turn) fill(main, h("h1", null, found[1]), notice("The page did not load. Is the node there?", "bad"));
		console.warn(error);
		return;
	}
	if (mine !== turn) return;
	const endings = [];
	const content = h("div", { class: `page ${page}` });
	fill(main, content);
	leave = () => endings.forEach((end) => end());
	try {
		await module.default(content, { rest, query, whenLeft: (end) => (mine === turn ? endings.push(end) : end()) });
	} catch (error) {
		if (mine === turn) content.append(notice(error.message, "bad"));
		if (error.status === undefined) console.error(error);
	}
	if (moved && mine === turn && !content.contains(document.activeElement)) main.focus({ preventScroll: true });
	window.scrollTo(0, 0);
}

function start(moved) {
	document.body.className = "";
	drawTop();
	if (!location.hash) history.replaceState(null, "", "#/overview");
	route(moved);
}

addEventListener("hashchange", () => route());
api.events.addEventListener("lost", () => {
	byId("banner").textContent = "The node does not answer. Trying again…";
	byId("banner").hidden = false;
});
api.events.addEventListener("found", () => {
	byId("banner").hidden = true;
	if (api.who) route(false);
	else if (!byId("main").firstChild) begin();
});
api.events.addEventListener("session", () => {
	turn += 1;
	leave?.();
	leave = null;
	drawLogin();
});

async function begin() {
	try {
		if (await api.resume()) start(false);
		else drawLogin();
	} catch (error) {
		if (error.status) fill(byId("main"), notice(error.message, "bad"));
	}
}
begin();
