"""The connection state machine: which packet is allowed when, and what it asks for.

PUBLISH and its acknowledgements take the direct way through `broker.connection` once the connection is open;
all other packets come here, as does anything that arrives at the wrong time.
"""

from __future__ import annotations

from broker.codec.packets import (
    AUTH,
    CONNECT,
    DISCONNECT,
    KIND_NAMES,
    PINGREQ,
    SUBSCRIBE,
    UNSUBSCRIBE,
    V5,
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Subscribe,
    Unsubscribe,
)
from broker.errors import ProtocolError
from broker.session.effects import ChangeSubscriptions, ContinueAuthentication, Effect, Finish, Open, Send

NEW = 0
CONNECTING = 1
OPEN = 2
CLOSED = 3
STATE_NAMES = ("new", "connecting", "open", "closed")

_PINGRESP = Send(Pingresp())


class ConnectionMachine:
    """Decides; its shell acts. `version` is set by CONNECT."""

    __slots__ = ("_exchanging", "_expiry_s", "_method", "state", "version")

    def __init__(self) -> None:
        self.state = NEW
        self.version = 0
        self._method: str | None = None
        self._exchanging = False
        self._expiry_s = 0

    def receive(self, packet: Packet) -> Effect:
        """The effect of one packet; raises PeerError if it is not allowed now."""
        # The table: kinds by state. Any other pair is a protocol error.
        state = self.state
        kind = packet.kind
        if state == OPEN:
            if kind == PINGREQ and isinstance(packet, Pingreq):
                return _PINGRESP  # [MQTT-3.12.4-1]
            if isinstance(packet, Subscribe | Unsubscribe) and kind in (SUBSCRIBE, UNSUBSCRIBE):
                return ChangeSubscriptions(packet)
            if kind == DISCONNECT and isinstance(packet, Disconnect):
                return self._disconnect(packet)
            if kind == AUTH and isinstance(packet, Auth):
                return self._authenticate(packet)
            if kind == CONNECT:
                raise ProtocolError("a second CONNECT")  # [MQTT-3.1.0-2]
        elif state == NEW:
            if kind == CONNECT and isinstance(packet, Connect):
                return self._connect(packet)
            raise ProtocolError(f"{KIND_NAMES[kind]} before CONNECT")  # [MQTT-3.1.0-1]
        elif state == CONNECTING:
            if kind == AUTH and isinstance(packet, Auth) and self._exchanging:
                return self._authenticate(packet)
            if kind == DISCONNECT and isinstance(packet, Disconnect):
                return self._disconnect(packet)
            if kind == CONNECT:
                raise ProtocolError("a second CONNECT")
        raise ProtocolError(f"{KIND_NAMES[kind]} is not allowed in state {STATE_NAMES[state]}")

    def opened(self, expiry_s: int) -> None:
        """CONNACK with success was written; `expiry_s` is the session expiry interval in force."""
        self.state = OPEN
        self._exchanging = False
        self._expiry_s = expiry_s

    def authenticating(self) -> None:
        """The server wrote AUTH 0x18: the client's answer is expected."""
        self._exchanging = True

    def authenticated(self) -> None:
        """A re-authentication ended well."""
        self._exchanging = False

    def close(self) -> None:
        """Nothing is allowed any more."""
        self.state = CLOSED

    def _connect(self, packet: Connect) -> Effect:
        self.state = CONNECTING
        self.version = packet.protocol_version
        if packet.properties is not None:
            self._method = packet.properties.authentication_method
        return Open(packet)

    def _authenticate(self, packet: Auth) -> Effect:
        properties = packet.properties
        method = None if properties is None else properties.authentication_method
        if self._method is None:  # [MQTT-4.12.0-6], [MQTT-4.12.1-1]
            raise ProtocolError("AUTH without an authentication method in CONNECT")
        if method != self._method:  # [MQTT-4.12.0-5]
            raise ProtocolError(f"the authentication method changed to {method!r:.60}")
        again = packet.reason_code == 0x19
        if again == self._exchanging or packet.reason_code not in (0x18, 0x19):
            raise ProtocolError(f"AUTH with reason code 0x{packet.reason_code:02x} out of turn")
        self._exchanging = True
        data = properties.authentication_data if properties is not None else None
        return ContinueAuthentication(self._method, data or b"", again)

    def _disconnect(self, packet: Disconnect) -> Effect:
        expiry_s = -1
        if self.version == V5 and packet.properties is not None:
            interval = packet.properties.session_expiry_interval
            if interval is not None:
                if interval and not self._expiry_s:  # [MQTT-3.14.2-2]
                    raise ProtocolError("DISCONNECT sets a session expiry for a session that had none")
                expiry_s = interval
        self.state = CLOSED
        return Finish(packet.reason_code, packet.reason_code != 0, expiry_s)
