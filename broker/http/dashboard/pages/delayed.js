// Messages that are to be published later.
import { call, can } from "../api.js";
import { h } from "../dom.js";
import { bytes, value } from "../format.js";
import { ask, attempt, button, failed, heading, paged, table } from "../ui.js";
import { message } from "./sessions.js";

export default async function delayed(place) {
  const list = paged({
    fetch: (given) => call("delayed.list", given),
    draw: (items) => table("Delayed messages", [
      { label: "Due", show: (item) => value("due_at_ms", item.due_at_ms) },
      { label: "Topic", show: (item) => h("span", { class: "mono" }, item.topic) },
      { label: "QoS", num: true, show: (item) => value("qos", item.qos) },
      { label: "Size", num: true, show: (item) => bytes(item.payload_bytes) },
    ], items, {
      empty: "No message is delayed.",
      actions: (item) => [
        button("Show", async () => {
          try {
            message(await call("delayed.show", { id: item.id }));
          } catch (error) {
            failed(error);
          }
        }, { "aria-label": `Show the message on ${item.topic}` }),
        can("delayed.delete") ? button("Delete", () => ask("Delete the delayed message?", `It will never be published on ${item.topic}.`, "Delete",
          () => attempt(() => call("delayed.delete", { id: item.id }), "Deleted.").then(list.reload)), { class: "danger", "aria-label": `Delete the message on ${item.topic}` }) : null,
      ],
    }),
  });
  place.append(heading("Delayed messages", button("Refresh", list.reload)), list.element);
}
