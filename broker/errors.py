"""The errors of the broker: whose fault, and the reason code that tells the peer."""

from __future__ import annotations


class BrokerError(Exception):
    """Base of every error that the broker raises on purpose."""


class PeerError(BrokerError):
    """The client did something that the standard or a limit forbids.

    `reason_code` is an MQTT 5 reason code (>= 0x80), `text` says what was wrong and goes into logs
    and, if the client wants problem information, into a Reason String.
    """

    def __init__(self, reason_code: int, text: str) -> None:
        super().__init__(text)
        self.reason_code = reason_code
        self.text = text


class MalformedPacket(PeerError):
    """Bytes that are no MQTT packet (0x81)."""

    def __init__(self, text: str) -> None:
        super().__init__(0x81, text)


class ProtocolError(PeerError):
    """A well-formed packet that the standard forbids here (0x82)."""

    def __init__(self, text: str) -> None:
        super().__init__(0x82, text)


class StateError(BrokerError):
    """A defect of the broker itself."""


class ConfigError(BrokerError):
    """A setting that cannot be used; the message names the setting, its value and what is allowed."""


class ClusterError(BrokerError):
    """The shared store could not do what was asked."""


class Fenced(ClusterError):
    """Other nodes took this one for dead and gave its sessions away: all that it holds is void, it has to join anew."""


class StoreUnavailable(ClusterError):
    """No answer from the store: the outcome of what was asked is unknown."""


class StoreFull(ClusterError):
    """The store refuses writes that add data; what frees data still works."""


class SessionLost(ClusterError):
    """The session is owned by another connection now: this one may not change it any more."""


class SessionConnected(ClusterError):
    """Somebody is connected with the session, on the node `node`: only that one may change it."""

    def __init__(self, text: str, node: str) -> None:
        super().__init__(text)
        self.node = node


class NotOwner(ClusterError):
    """The session of this client id belongs to another identity; nothing of it was touched (G19)."""
