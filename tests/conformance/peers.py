"""The clients of one test: unique names, common ways to connect, and time that passes in the server."""

from __future__ import annotations

import os
from itertools import count

from broker.codec.packets import V5, Connack, Connect, Properties, Publish, Will
from tests.kit.mqtt_client import ConnectionClosed, MqttClient, UnexpectedPacket, describe, properties

_numbers = count(1)

# Differs from run to run, for servers that keep sessions between runs.
_RUN = f"{os.getpid():x}"

# Longer than any test.
LONG_S = 3600


class Peers:
    """Opens connections to the server under test and closes them all at the end of the test."""

    def __init__(self, host: str, port: int, name: str) -> None:
        self.host = host
        self.port = port
        self._name = f"{name}-{_RUN}-{next(_numbers)}"
        self._clients: list[MqttClient] = []

    def topic(self, suffix: str = "t") -> str:
        """Return a topic name that only this test uses."""
        return f"{self._name}/{suffix}"

    def client_id(self) -> str:
        """Return a client id that nobody used before, of 23 characters at most."""
        return f"conf{_RUN}n{next(_numbers)}"[-23:]

    async def open(self, version: int = V5) -> MqttClient:
        """Open a network connection and send nothing."""
        client = await MqttClient.open(self.host, self.port, version)
        self._clients.append(client)
        return client

    async def connect(
        self,
        version: int = V5,
        *,
        client_id: str | None = None,
        clean_start: bool = True,
        persistent: bool = False,
        keep_alive_s: int = 0,
        will: Will | None = None,
        **values: object,
    ) -> MqttClient:
        """Connect and return the client, which the server has to accept.

        `persistent` asks for a session that outlives the connection and resumes it if there is one; further
        keyword arguments are properties of CONNECT.
        """
        client = await self.open(version)
        if persistent:
            clean_start = False
            if version == V5:
                values.setdefault("session_expiry_interval", LONG_S)
        sent: Properties | None = properties(**values) if values else None
        client_id = self.client_id() if client_id is None else client_id
        connack = await client.connect(
            Connect(version, client_id, clean_start, keep_alive_s, will=will, properties=sent)
        )
        if connack.reason_code:
            raise UnexpectedPacket(f"the server refused: {describe(connack)}")
        return client

    async def subscriber(self, topic_filter: str, version: int = V5, qos: int = 2) -> MqttClient:
        """Connect a client and subscribe it."""
        client = await self.connect(version)
        await client.subscribe(topic_filter, qos=qos)
        return client

    async def refused(self, client: MqttClient, *reason_codes: int) -> None:
        """The server does not accept this client's CONNECT: it closes, in version 5 perhaps after a CONNACK.

        The CONNACK has to have one of `reason_codes`, or if none are given any of 0x80 and above.
        """
        try:
            packet = await client.receive()
        except ConnectionClosed:
            return
        if client.version != V5 or not isinstance(packet, Connack):
            raise UnexpectedPacket(f"expected the server to close, got {describe(packet)}")
        if packet.reason_code < 0x80 or packet.session_present:
            raise UnexpectedPacket(f"expected a refusal, got {describe(packet)}")
        if reason_codes and packet.reason_code not in reason_codes:
            raise UnexpectedPacket(f"expected {[hex(c) for c in reason_codes]}, got {describe(packet)}")
        await client.expect_closed()

    async def elapse(self, seconds: int) -> None:
        """Return when at least so many seconds have passed in the server: a will with that delay has come."""
        topic = f"{self._name}/elapse/{next(_numbers)}"
        observer = await self.subscriber(topic, qos=0)
        will = Will(topic, b"", 0, False, properties(will_delay_interval=seconds))
        doomed = await self.connect(will=will, session_expiry_interval=seconds + 60)
        await doomed.close()
        await observer.expect(Publish, seconds + 10)
        await observer.disconnect()

    async def close(self) -> None:
        """Close every connection of the test."""
        for client in self._clients:
            await client.close()
