// Subscribers that messages take long to reach.
import { call, can } from "../api.js";
import { age, milliseconds } from "../format.js";
import { attempt, button, heading, paged, table } from "../ui.js";
import { link } from "./clients.js";

export default async function slow(place) {
  const list = paged({
    fetch: (given) => call("slow.list", given),
    draw: (items) => table("Slow subscribers", [
      { label: "Client ID", show: (item) => link(item.client_id) },
      { label: "Node", show: (item) => item.node },
      { label: "Latency", num: true, show: (item) => milliseconds(item.latency_ms) },
      { label: "Last", num: true, show: (item) => milliseconds(item.last_ms) },
      { label: "User", show: (item) => item.username }, { key: "reason" },
      { label: "Seen", show: (item) => age(item.at_ms) },
    ], items, { empty: "No subscriber is slow." }),
  });
  place.append(heading("Slow subscribers", button("Refresh", list.reload),
    can("slow.clear") ? button("Clear", () => attempt(() => call("slow.clear"), "Cleared.").then(list.reload)) : null), list.element);
}
