// MQTT users in the cluster's store.
import { call, can } from "../api.js";
import { value } from "../format.js";
import { badge, button, formDialog, heading, paged, removal, table } from "../ui.js";

/** "a=b" line by line as an object. Throws Error. */
export function pairs(text) {
	const found = {};
	for (const line of (text ?? "").split("\n").filter((one) => one.trim())) {
		const at = line.indexOf("=");
		if (at < 1) throw new Error(`Not name=value: ${line}`);
		found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
	}
	return found;
}

const lines = (given) => Object.entries(given ?? {}).map(([name, one]) => `${name}=${one}`).join("\n");

export default async function users(place) {
	const edit = (user) => formDialog(user ? `User ${user.username}` : "New user", [
		...(user ? [] : [{ name: "username", label: "Name", required: true, "data-first": true }]),
		{ name: "password", label: "Password", type: "password", autocomplete: "new-password", required: !user, hint: user ? "Empty: as it is." : undefined },
		{ name: "superuser", label: "Superuser: may do everything, whatever the rules say", type: "checkbox", value: user?.superuser },
		{ name: "enabled", label: "Enabled", type: "checkbox", value: !user?.disabled },
		{ name: "attributes", label: "Attributes", type: "area", value: lines(user?.attributes), hint: "name=value, one a line" },
	], "Save", async (given) => {
		const { enabled, attributes, ...rest } = given;
		const whole = { username: user?.username, ...rest, attributes: pairs(attributes), disabled: !enabled };
		await call("users.put", whole);
		await list.reload();
	});
	const list = paged({
		fetch: (given) => call("users.list", given),
		draw: (items) => table("Users", [
			"username",
			{ label: "State", show: (user) => (user.disabled ? badge("disabled", "bad") : badge("enabled", "good")) },
			{ label: "Superuser", show: (user) => (user.superuser ? badge("superuser", "warn") : "–") },
			"password", { label: "SCRAM", show: (user) => value("scram", user.scram) }, "attributes",
		], items, {
			empty: "No users in the store. Other sources of users may have some.",
			actions: can("users.put") ? (user) => [
				button("Edit", () => edit(user), { "aria-label": `Edit ${user.username}` }),
				removal("users.delete", { username: user.username }, user.username, "Its clients are disconnected.", list),
			] : null,
		}),
	});
	place.append(heading("Users", can("users.put") ? button("New user…", () => edit(null), { class: "primary" }) : null), list.element);
}
