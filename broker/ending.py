"""The ways in which the server ends a connection, and what it says then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.codec.packets import V5, Connack, Disconnect, Properties
from broker.errors import PeerError
from broker.log import get_logger
from broker.output import Output
from broker.reasons import reason_name
from broker.session.machine import CLOSED, NEW, OPEN, ConnectionMachine
from broker.transport.api import Stream

if TYPE_CHECKING:
    from broker.services import Services

_log = get_logger("connection")


#: What DISCONNECT says instead of reason codes that only CONNACK has.
_DISCONNECT_CODES = {0x86: 0x87, 0x88: 0x89, 0x8A: 0x98, 0x8C: 0x87}


class Ending(Output):
    """A connection as far as its end is concerned. All of it is idempotent: the first reason counts."""

    __slots__ = ("_server", "client_id", "close_code", "close_reason", "machine")

    def __init__(self, stream: Stream, server: Services) -> None:
        super().__init__(stream, server.metrics)
        self._server = server
        self.machine = ConnectionMachine()
        self.client_id = ""
        self.close_reason = ""
        #: The reason code of MQTT where there is one.
        self.close_code: int | None = None

    def fail(self, error: PeerError) -> None:
        """The peer did something wrong: tell it as far as its version allows, and close."""
        state = self.machine.state
        if state == CLOSED:
            return
        name = reason_name(error.reason_code)
        self.metrics.packet_errors[name] += 1
        event = "connection.refused" if state == NEW else "connection.error"
        suppressed = self._server.quiet.tells(event + name)
        if suppressed is not None:
            more = {"suppressed": suppressed} if suppressed else {}
            _log.info(
                event,
                peer=str(self.stream.peer),
                client_id=self.client_id or None,
                reason=name,
                detail=error.text,
                **more,
            )
        if state == OPEN and self.version == V5:
            code = _DISCONNECT_CODES.get(error.reason_code, error.reason_code)
            self.send(Disconnect(code, self.reason_properties(error.text)))
        elif state == NEW and error.reason_code == 0x84:
            self.send(Connack(False, 0x84))  # [MQTT-3.1.2-2]
        elif state != NEW and state != OPEN:
            self.send(Connack(False, error.reason_code, self.reason_properties(error.text)))
        self.close_code = error.reason_code
        self._end(name)
        self.stream.close()

    def disconnect(self, reason_code: int, text: str, server_reference: str = "") -> None:
        """The server ends the connection."""
        if self.machine.state == CLOSED:
            return
        if self.machine.state == OPEN and self.version == V5:
            properties = self.reason_properties(text)
            if server_reference:
                properties = properties or Properties()
                properties.server_reference = server_reference
            self.send(Disconnect(_DISCONNECT_CODES.get(reason_code, reason_code), properties))
        self.close_code = reason_code
        self._end(reason_name(reason_code))
        self.stream.close()

    def refuse(self, reason_code: int, text: str) -> None:
        """Answer CONNECT with an error and close."""
        if self.machine.state != CLOSED:
            self.send(Connack(False, reason_code, self.reason_properties(text)))
            self._end(reason_name(reason_code))
            self.stream.close()

    def abort(self, reason: str) -> None:
        """Close without a word."""
        if self.machine.state != CLOSED:
            self._end(reason)
        self.stream.abort()

    def _end(self, reason: str) -> None:
        """Nothing is received or sent any more but what was written already."""
        raise NotImplementedError
