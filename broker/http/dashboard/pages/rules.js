// Rules of access in the cluster's store; they count in the order of their names.
import { call, can } from "../api.js";
import { fill, h } from "../dom.js";
import { button, facts, field, form, formDialog, heading, paged, panel, removal, table } from "../ui.js";

export default async function rules(place) {
	const edit = (item) => formDialog(item ? `Rule ${item.name}` : "New rule", [
		...(item ? [] : [{ name: "name", label: "Name", required: true, "data-first": true, hint: "Rules count in the order of their names: 10-admins before 20-devices." }]),
		{ name: "rule", label: "Rule (JSON)", type: "area", rows: 10, value: JSON.stringify(item ? item.rule : { permission: "allow", action: "publish", topics: ["devices/${clientid}/#"] }, null, 2) },
	], "Save", async (given) => {
		let rule;
		try {
			rule = JSON.parse(given.rule);
		} catch (error) {
			throw new Error(`Not JSON: ${error.message}`);
		}
		await call("rules.put", { name: item?.name ?? given.name, rule });
		await list.reload();
	});
	const list = paged({
		fetch: (given) => call("rules.list", given),
		draw: (items) => table("Rules", [
			"name",
			{ label: "Rule", show: (item) => [h("code", null, JSON.stringify(item.rule)), item.error ? h("p", { class: "notice bad" }, item.error) : null] },
		], items, {
			empty: "No rules in the store. Other sources of rules may have some.",
			actions: can("rules.put") ? (item) => [
				button("Edit", () => edit(item), { "aria-label": `Edit ${item.name}` }),
				removal("rules.delete", { name: item.name }, item.name, "It counts no more on any node within about a second.", list),
			] : null,
		}),
	});
	place.append(heading("Rules", can("rules.put") ? button("New rule…", () => edit(null), { class: "primary" }) : null), list.element);
	if (can("rules.test")) {
		const result = h("div");
		place.append(panel("Which rule decides?", form([
			field({ name: "action", label: "Action", options: ["publish", "subscribe", "read"] }),
			field({ name: "topic", label: "Topic or filter", required: true }),
			field({ name: "client_id", label: "Client ID" }),
			field({ name: "username", label: "User" }),
			field({ name: "ip", label: "IP" }),
		], "Test", async (given) => fill(result, facts(await call("rules.test", given))), { inline: true }), result));
	}
}
