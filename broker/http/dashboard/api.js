// The API of the node that served the page. Operations are called by name; where they are is read from the OpenAPI document.

const BASE = new URL("api/v1/", document.baseURI);
const METHODS = ["get", "post", "put", "patch", "delete"];
const SCOPES = ["viewer", "operator", "admin"];

export class ApiError extends Error {
	constructor(status, title, detail) {
		super(detail || title);
		this.status = status;
		this.title = title;
	}
}

/** Who is logged in: {name, scope}, or null. */
export let who = null;
let csrf = "";
const operations = new Map();

/** "lost" when no node answers, "found" when one does again, "session" when the login has ended. */
export const events = new EventTarget();
const tell = (name) => events.dispatchEvent(new Event(name));

async function request(method, url, body) {
	const headers = { Accept: "application/json" };
	if (body !== undefined) headers["Content-Type"] = "application/json";
	if (method !== "GET" && csrf) headers["X-CSRF-Token"] = csrf;
	let response;
	try {
		const given = { method, headers, credentials: "same-origin", cache: "no-cache" };
		if (body !== undefined) given.body = JSON.stringify(body);
		response = await fetch(url, given);
	} catch {
		lost();
		throw new ApiError(0, "The node does not answer", "The node does not answer.");
	}
	found();
	if (response.status === 204) return null;
	const text = await response.text();
	let answer = null;
	try {
		answer = text ? JSON.parse(text) : null;
	} catch {
		// Something between here and the node answered; the status says enough.
	}
	if (!response.ok) {
		throw new ApiError(response.status, answer?.title ?? `HTTP ${response.status}`, answer?.detail ?? "");
	}
	return answer;
}

// -- a lost node

let isLost = false;
let retry = 0;

function lost() {
	if (!isLost) tell("lost");
	isLost = true;
	clearTimeout(retry);
	retry = setTimeout(async () => {
		try {
			await request("GET", new URL("whoami", BASE));
		} catch (error) {
			if (error.status === 401 && who) ended();
		}
	}, 2000);
}

function found() {
	if (!isLost) return;
	isLost = false;
	clearTimeout(retry);
	tell("found");
}

function ended() {
	who = null;
	csrf = "";
	tell("session");
}

// -- who

async function began(answer) {
	who = { name: answer.name, scope: answer.scope };
	csrf = answer.csrf_token ?? csrf;
	if (!operations.size) learn(await request("GET", new URL("openapi.json", BASE)));
}

function learn(document_) {
	for (const [path, methods] of Object.entries(document_.paths)) {
		for (const method of METHODS) {
			const declared = methods[method];
			if (!declared?.operationId) continue;
			operations.set(declared.operationId, {
				method: method.toUpperCase(),
				path: path.replace(/^.*?\/api\/v1\//, "").replace(/^\//, ""),
				scope: declared["x-rookery-scope"] ?? "viewer",
				paged: (declared.parameters ?? []).some((one) => one.name === "cursor"),
			});
		}
	}
}

/** Whether a login is there already. */
export async function resume() {
	try {
		await began(await request("GET", new URL("whoami", BASE)));
		return true;
	} catch (error) {
		if (error.status === 401 || error.status === 403) return false;
		throw error;
	}
}

export async function login(name, secret) {
	await began(await request("POST", new URL("login", BASE), { name, secret }));
}

export async function logout() {
	try {
		await request("POST", new URL("logout", BASE), {});
	} finally {
		ended();
	}
}

/** Whether there is such an operation and this login may do it. */
export function can(name) {
	const operation = operations.get(name);
	return Boolean(operation && who && SCOPES.indexOf(who.scope) >= SCOPES.indexOf(operation.scope));
}

// -- operations

function locate(name, given) {
	const operation = operations.get(name);
	if (!operation) throw new ApiError(404, "Not there", `This node does not know ${name}.`);
	const rest = {};
	for (const [key, value] of Object.entries(given)) {
		if (value === undefined || value === null) continue;
		if (operation.paged || operation.method !== "GET" || (key !== "limit" && key !== "cursor")) rest[key] = value;
	}
	const path = operation.path.replace(/{([^}:]+)(:path)?}/g, (_, key) => {
		const part = String(rest[key] ?? "");
		// Browsers take these out of a path, and something else would be asked for.
		if (/^\.\.?$/.test(part)) throw new ApiError(400, "Not from here", `A browser cannot ask for ${part}; rookery ctl can.`);
		delete rest[key];
		return encodeURIComponent(part);
	});
	return { operation, url: new URL(path, BASE), rest };
}

function query(url, rest) {
	for (const [key, value] of Object.entries(rest)) url.searchParams.set(key, value);
	return url;
}

/** Carry out an operation. Throws ApiError. */
export async function call(name, given = {}) {
	const { operation, url, rest } = locate(name, given);
	try {
		if (operation.method === "GET" || operation.method === "DELETE") {
			return await request(operation.method, query(url, rest));
		}
		return await request(operation.method, url, rest);
	} catch (error) {
		if (error.status === 401 && who) ended();
		throw error;
	}
}

/** Have what an operation tells until the function that is returned is called. Begins again by itself. */
export function follow(name, given, hear) {
	const { url, rest } = locate(name, given);
	query(url, rest);
	let source = null;
	let timer = 0;
	let pause = 1000;
	let open = true;
	const got = (event) => {
		pause = 1000;
		let item;
		try {
			item = JSON.parse(event.data);
		} catch {
			return;
		}
		hear(item);
	};
	const start = () => {
		source = new EventSource(url);
		for (const kind of new Set(["message", name, name.split(".")[0]])) source.addEventListener(kind, got);
		source.onopen = found;
		source.onerror = () => {
			source.close();
			if (!open) return;
			// Why it ended is not told here: ask.
			request("GET", new URL("whoami", BASE)).catch((error) => error.status === 401 && who && ended());
			timer = setTimeout(start, pause);
			pause = Math.min(pause * 2, 15_000);
		};
	};
	start();
	return () => {
		open = false;
		clearTimeout(timer);
		source.close();
	};
}
