"""Messages of one publisher that came as a run of packets, on their way through the node as one."""

from __future__ import annotations

from collections.abc import Sequence


class Run:
    """`count` PUBLISH packets of QoS 1 as they came (see `broker.codec.runs`).

    `id_at` is where the packet id is in each. `family` is 5 for MQTT 5, and 4 for the versions before."""

    __slots__ = ("count", "family", "id_at", "packets")

    def __init__(self, packets: bytes, count: int, id_at: int, family: int) -> None:
        self.packets = packets
        self.count = count
        self.id_at = id_at
        self.family = family

    def pick(self, places: Sequence[int]) -> Run:
        """Some of its packets, at least one."""
        if len(places) == self.count:
            return self
        packets = self.packets
        size = len(packets) // self.count
        chosen = b"".join([packets[at * size : (at + 1) * size] for at in places])
        return Run(chosen, len(places), self.id_at, self.family)

    def payloads(self) -> list[bytes]:
        """Those of the messages, in order."""
        packets = self.packets
        size = len(packets) // self.count
        at = self.id_at + (3 if self.family == 5 else 2)
        length = size - at
        return [packets[start : start + length] for start in range(at, at + len(packets), size)]
