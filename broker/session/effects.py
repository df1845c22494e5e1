"""What a connection machine asks its shell to do."""

from __future__ import annotations

from broker.codec.packets import Connect, Packet, Subscribe, Unsubscribe


class Effect:
    """Base of all effects."""

    __slots__ = ()


class Send(Effect):
    """Write this packet."""

    __slots__ = ("packet",)

    def __init__(self, packet: Packet) -> None:
        self.packet = packet


class Open(Effect):
    """Authenticate and attach the session of this CONNECT, then call `machine.opened`."""

    __slots__ = ("connect",)

    def __init__(self, connect: Connect) -> None:
        self.connect = connect


class ContinueAuthentication(Effect):
    """The next message of an enhanced authentication; `again` marks the beginning of a re-authentication."""

    __slots__ = ("again", "data", "method")

    def __init__(self, method: str, data: bytes, again: bool) -> None:
        self.method = method
        self.data = data
        self.again = again


class ChangeSubscriptions(Effect):
    """Carry out a SUBSCRIBE or an UNSUBSCRIBE and answer it."""

    __slots__ = ("packet",)

    def __init__(self, packet: Subscribe | Unsubscribe) -> None:
        self.packet = packet


class Finish(Effect):
    """The client said goodbye. `expiry_s` is its last word on the session expiry interval, or -1."""

    __slots__ = ("expiry_s", "reason_code", "send_will")

    def __init__(self, reason_code: int, send_will: bool, expiry_s: int) -> None:
        self.reason_code = reason_code
        self.send_will = send_will
        self.expiry_s = expiry_s
