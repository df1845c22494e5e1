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
      { label: "Due", show: (item) => value("due_at_ms", item.due_at_ms ?? item.due_ms) },
      { label: "Topic", show: (item) => h("span", { class: "mono" }, item.topic ?? item.message?.topic) },
      { label: "QoS", num: true, show: (item) => value("qos", item.qos ?? item.message?.qos) },
      { label: "Size", num: true, show: (item) => bytes(item.size ?? item.payload_size ?? item.payload_bytes ?? item.message?.size) },
    ], items, {
      empty: "No message is delayed.",
      actions: (item) => [
        button("Show", async () => {
          try {
            const whole = can("delayed.show") ? await call("delayed.show", { id: item.id }) : item;
            message(whole.message ? { ...whole, ...whole.message, message: undefined } : whole, whole.topic ?? whole.message?.topic);
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
