"""paho-mqtt with deadlines: its network loop runs in a thread, the test takes what came from queues."""

from __future__ import annotations

import queue
import socket
import threading
from types import TracebackType
from typing import Any, Protocol

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

DEADLINE_S = 20.0


class Place(Protocol):
    """Where to connect: a node, usually."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


def properties(packet: int, **values: object) -> Properties:
    """Properties of a packet type, by paho's names."""
    made = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(made, name, value)
    return made


def publish_properties(**values: object) -> Properties:
    """Properties of PUBLISH."""
    return properties(PacketTypes.PUBLISH, **values)


class Paho:
    """One client; `connect` before anything else. `flags` and `reason` are those of CONNACK."""

    def __init__(
        self, node: Place, version: int = 5, client_id: str = "", *, clean: bool = True, **options: object
    ) -> None:
        self._node = node
        self._version = version
        self._clean = clean
        made: dict[str, Any] = dict(options)
        if version < 5:
            made["clean_session"] = clean
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion(version),
            reconnect_on_failure=False,
            **made,
        )
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_subscribe = self._on_answer
        self.client.on_unsubscribe = self._on_answer
        self.client.on_publish = self._on_answer
        self.messages: queue.Queue[MQTTMessage] = queue.Queue()
        self._answers: queue.Queue[tuple[int, list[ReasonCode]]] = queue.Queue()
        self._connected = threading.Event()
        self._gone = threading.Event()
        self.flags: ConnectFlags | None = None
        self.reason: ReasonCode | None = None
        self.connack_properties: Properties | None = None
        self.disconnect_reason: ReasonCode | None = None

    def _on_connect(
        self, client: Client, data: object, flags: ConnectFlags, reason: ReasonCode, props: Properties | None
    ) -> None:
        self.flags, self.reason, self.connack_properties = flags, reason, props
        self._connected.set()

    def _on_disconnect(
        self, client: Client, data: object, flags: DisconnectFlags, reason: ReasonCode, props: Properties | None
    ) -> None:
        self.disconnect_reason = reason
        self._gone.set()

    def _on_message(self, client: Client, data: object, message: MQTTMessage) -> None:
        self.messages.put(message)

    def _on_answer(self, client: Client, data: object, mid: int, codes: Any, props: object) -> None:
        self._answers.put((mid, codes if isinstance(codes, list) else [codes]))

    def connect(
        self, *, keep_alive_s: int = 60, connect_properties: Properties | None = None, source: str = ""
    ) -> Paho:
        """Connect, from this address of the machine, and wait for CONNACK, whatever it says."""
        more: dict[str, Any] = {}
        if self._version == 5:
            more = {"clean_start": self._clean, "properties": connect_properties}
        self.client.connect(self._node.host, self._node.port, keep_alive_s, source, **more)
        self.client.loop_start()
        assert self._connected.wait(DEADLINE_S), "no CONNACK"
        return self

    def _answer(self, mid: int | None) -> list[ReasonCode]:
        try:
            answered, codes = self._answers.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"no answer in {DEADLINE_S} s") from None
        assert answered == mid
        return codes

    def subscribe(
        self, topic_filter: str, qos: int = 2, *, options: SubscribeOptions | None = None, identifier: int = 0
    ) -> list[int]:
        """Subscribe and return the reason codes of SUBACK."""
        if self._version == 5:
            chosen = options or SubscribeOptions(qos=qos)
            props = properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=identifier) if identifier else None
            _, mid = self.client.subscribe(topic_filter, options=chosen, properties=props)
        else:
            _, mid = self.client.subscribe(topic_filter, qos)
        return [int(code.value) for code in self._answer(mid)]

    def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe and wait for UNSUBACK."""
        self._answer(self.client.unsubscribe(topic_filter)[1])

    def publish(
        self,
        topic: str,
        payload: str | bytes = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        props: Properties | None = None,
    ) -> int:
        """Publish, wait until the exchange is complete, and return the reason code."""
        info = self.client.publish(topic, payload, qos, retain, props)
        assert info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS, info.rc
        return int(self._answer(info.mid)[0].value)

    def take(self) -> MQTTMessage:
        """The next message."""
        try:
            return self.messages.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"paho got nothing in {DEADLINE_S} s") from None

    def wait_gone(self) -> ReasonCode | None:
        """Wait until the connection has ended; the reason the server gave."""
        assert self._gone.wait(DEADLINE_S), "the connection is still there"
        return self.disconnect_reason

    def crash(self) -> None:
        """Close the socket without DISCONNECT."""
        sock: Any = self.client.socket()
        sock.shutdown(socket.SHUT_RDWR)
        self.wait_gone()
        self.client.loop_stop()

    def close(self) -> None:
        """Disconnect and end the thread."""
        self.client.disconnect()
        self.client.loop_stop()

    def __enter__(self) -> Paho:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
