// Credentials of this API.
import { call, can, who } from "../api.js";
import { h } from "../dom.js";
import { value } from "../format.js";
import { attempt, badge, button, dialog, formDialog, heading, paged, removal, subheading, table } from "../ui.js";

function shown(answer) {
	dialog(`Key ${answer.name}`, () => [
		h("p", null, "This is shown once. Keep it where secrets are kept."),
		[["Secret", answer.secret], ["Token", answer.token]].filter(([, text]) => text).map(([name, text]) => h("div", null, subheading(name),
			h("pre", { class: "payload", tabindex: 0 }, text),
			navigator.clipboard ? button("Copy", () => attempt(() => navigator.clipboard.writeText(text), "Copied.")) : null)),
	]);
}

export default async function keys(place) {
	const secret = { name: "secret", label: "Secret", type: "password", minlength: 8, autocomplete: "new-password", hint: "Empty: one is made. Your own has at least 8 characters." };
	const expires = { name: "expires_in_s", label: "Expires in (seconds)", type: "number", min: 1, placeholder: "never" };
	const list = paged({
		fetch: (given) => call("keys.list", given),
		draw: (items) => table("API keys", [
			{ label: "Name", show: (key) => h("span", null, key.name, key.name === who?.name ? h("small", null, " (you)") : null) },
			{ label: "Scope", show: (key) => badge(key.scope, key.scope === "admin" ? "warn" : "") },
			"created_at_ms",
			{ label: "Expires", show: (key) => (key.expires_at_ms ? value("expires_at_ms", key.expires_at_ms) : "never") },
		], items, {
			actions: can("keys.create") ? (key) => (key.fixed ? h("small", null, "from the configuration") : [
				button("Rotate", () => formDialog(`A new secret for ${key.name}`, [secret, expires], "Rotate", async (given) => {
					shown(await call("keys.rotate", { name: key.name, ...given }));
					await list.reload();
				}), { "aria-label": `Rotate ${key.name}` }),
				removal("keys.delete", { name: key.name }, key.name, "Whoever uses it is refused from now on.", list),
			]) : null,
		}),
	});
	place.append(heading("API keys", can("keys.create") ? button("New key…", () => formDialog("New key", [
		{ name: "name", label: "Name", required: true, "data-first": true },
		{ name: "scope", label: "Scope", options: [["viewer", "viewer: sees"], ["operator", "operator: sees and steers"], ["admin", "admin: everything, keys too"]] },
		secret, expires,
	], "Create", async (given) => {
		shown(await call("keys.create", given));
		await list.reload();
	}), { class: "primary" }) : null), list.element);
}
