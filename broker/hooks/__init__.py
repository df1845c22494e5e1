"""What authors of hooks need: the names in `__all__`, which stay as they are. See docs/hooks.md.

A hook is an object with any of these methods, all of them `async def`:

- `connect(request: ConnectRequest) -> bool | None`: a client wants to connect, nobody has checked it yet. False, or
  `Refused` raised, turns it away.
- `authenticate(request: ConnectRequest) -> Verdict | bool | None`: who it is. None: others are asked.
- `authorize(client: Client, action: str, topic: str, qos: int, retain: bool) -> bool | None`: whether it may
  "publish" to a topic or "subscribe" to a filter. None: others are asked.
- `publish(client: Client, message: Message) -> Message | bool | None`: before a message goes its way. None or True
  leaves it as it is, False refuses it, a Message takes its place (`message.replace(payload=...)`).
- `deliver(client: Client, message: Message) -> None`: a message was written to the connection of a client.
- `disconnect(client: Client, reason: str) -> None`: a client that was let in is gone.

They run in the node's trio loop: whatever waits has to be awaited, what blocks or computes belongs into
`trio.to_thread.run_sync`. A hook that blocks the thread blocks every client of the node.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from broker.auth.api import ALLOW, DENY, IGNORE, ConnectRequest, Verdict
from broker.auth.api import Principal as Client
from broker.peer import Certificate, Peer

__all__ = [
    "ALLOW",
    "DENY",
    "IGNORE",
    "Certificate",
    "Client",
    "ConnectRequest",
    "Message",
    "Peer",
    "Refused",
    "Verdict",
]


class Refused(Exception):
    """Raised by `connect`: the reason code for CONNACK (MQTT 5), and a text that the client may see."""

    def __init__(self, reason_code: int = 0x87, text: str = "refused") -> None:
        super().__init__(text)
        self.reason_code = reason_code
        self.text = text


@dataclass(frozen=True, slots=True)
class Message:
    """A message as hooks see it; `topic` is the whole topic, the mountpoint of the listener included."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    user_properties: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None

    def replace(
        self,
        *,
        topic: str | None = None,
        payload: bytes | None = None,
        retain: bool | None = None,
        user_properties: tuple[tuple[str, str], ...] | None = None,
        content_type: str | None = None,
    ) -> Message:
        """The same message with some things changed; its QoS is the publisher's."""
        given = {
            "topic": topic,
            "payload": payload,
            "retain": retain,
            "user_properties": user_properties,
            "content_type": content_type,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
