// Values as people read them.

export const NONE = "–";
const counts = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export function number(value) {
	if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
	return Math.abs(value) < 100 && !Number.isInteger(value) ? small.format(value) : counts.format(value);
}

/** Short enough for an axis: 12k, 3.4M. */
export function compact(value) {
	if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
	for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
		if (Math.abs(value) >= size) return small.format(value / (unit === "k" ? 1e3 : size)) + unit;
	}
	return number(value);
}

export function bytes(value) {
	if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	let unit = 0;
	while (value >= 1024 && unit < units.length - 1) {
		value /= 1024;
		unit += 1;
	}
	return `${unit ? small.format(value) : value} ${units[unit]}`;
}

export function milliseconds(value) {
	if (typeof value !== "number" || !Number.isFinite(value)) return NONE;
	if (value >= 10_000) return duration(value / 1000);
	return value >= 1000 ? `${small.format(value / 1000)} s` : `${small.format(value)} ms`;
}

export function duration(seconds) {
	if (typeof seconds !== "number" || !Number.isFinite(seconds)) return NONE;
	if (seconds >= 4294967295) return "never ends";
	if (seconds < 60) return `${small.format(seconds)} s`;
	const parts = [];
	for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
		if (seconds >= size && parts.length < 2) {
			parts.push(`${Math.floor(seconds / size)} ${unit}`);
			seconds %= size;
		}
	}
	return parts.join(" ");
}

const pad = (value, digits = 2) => String(value).padStart(digits, "0");

/** Local time of an epoch in milliseconds. */
export function clock(ms, fraction = false) {
	const at = new Date(ms);
	const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
	return fraction ? `${time}.${pad(at.getMilliseconds(), 3)}` : time;
}

export function when(ms) {
	if (typeof ms !== "number" || !(ms > 0)) return NONE;
	const at = new Date(ms);
	const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
	const today = new Date().toDateString() === at.toDateString();
	return today ? clock(ms) : `${day} ${clock(ms)}`;
}

export function age(ms) {
	if (typeof ms !== "number" || !(ms > 0)) return NONE;
	const seconds = (Date.now() - ms) / 1000;
	return seconds < 0 ? `in ${duration(-seconds)}` : seconds < 1 ? "now" : `${duration(Math.floor(seconds))} ago`;
}

const WORDS = { id: "ID", ip: "IP", qos: "QoS", ms: "ms", pid: "PID", tls: "TLS", url: "URL", cn: "CN", acl: "ACL", p50: "p50", p99: "p99" };

/** "connected_at_ms" as "Connected at": the unit shows in the value. */
export function label(key) {
	const plain = key.replace(/_per_s$/, "/s").replace(/_(ms|s|bytes)$/, "");
	const words = plain.split("_").map((word) => WORDS[word] ?? word);
	return words[0].charAt(0).toUpperCase() + words[0].slice(1) + (words.length > 1 ? ` ${words.slice(1).join(" ")}` : "");
}

/** A value of the API as text; the name of its field says the unit. */
export function value(key, given) {
	if (given === null || given === undefined || given === "") return NONE;
	if (typeof given === "boolean") return given ? "yes" : "no";
	if (typeof given === "number") {
		if (/_at(_ms)?$|^(since|until|created|expires|due|time|at)(_ms)?$/.test(key) && given > 1e9) {
			const ms = given > 1e11 ? given : given * 1000;
			return `${when(ms)} (${age(ms)})`;
		}
		if (/_(at|until)(_ms)?$/.test(key) || (key === "expires" && given === 0)) return NONE;
		if (/_per_s$/.test(key)) return number(given);
		if (/_ms$/.test(key)) return milliseconds(given);
		if (/_s$/.test(key)) return duration(given);
		if (/bytes$|^size$|memory$/.test(key)) return bytes(given);
		if (/(_id|pid|port|version|level|seq|qos)$/.test(key)) return String(given);
		return number(given);
	}
	if (Array.isArray(given)) return given.length ? given.map((one) => (Array.isArray(one) ? one.join("=") : value(key, one))).join(", ") : NONE;
	if (typeof given === "object") {
		return Object.entries(given).map(([name, one]) => `${name}: ${value(name, one)}`).join(", ") || NONE;
	}
	return String(given);
}

// -- payloads

/** Bytes of `{payload, payload_encoding}` as the API gives them. */
export function decodePayload(message) {
	if (message.payload_encoding !== "base64") return new TextEncoder().encode(message.payload ?? "");
	return Uint8Array.from(atob(message.payload ?? ""), (character) => character.charCodeAt(0));
}

/** The text, or null if it is none. */
export function asText(data) {
	try {
		const text = new TextDecoder("utf-8", { fatal: true }).decode(data);
		// eslint-disable-next-line no-control-regex
		return /[\u0000-\u0008\u000e-\u001f]/.test(text) ? null : text;
	} catch {
		return null;
	}
}

export function asJson(text) {
	if (text === null || !/^\s*[[{"\d\-tfn]/.test(text)) return null;
	try {
		return JSON.stringify(JSON.parse(text), null, 2);
	} catch {
		return null;
	}
}

/** Offset, sixteen bytes, and their ASCII, line by line. */
export function hex(data, limit = 16384) {
	const lines = [];
	for (let start = 0; start < Math.min(data.length, limit); start += 16) {
		const row = [...data.subarray(start, start + 16)];
		const codes = row.map((byte) => pad(byte.toString(16))).join(" ").padEnd(47);
		const characters = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
		lines.push(`${start.toString(16).padStart(6, "0")}  ${codes}  ${characters}`);
	}
	if (data.length > limit) lines.push(`… ${bytes(data.length - limit)} more`);
	return lines.join("\n");
}
