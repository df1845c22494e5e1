"""The client's side of RFC 5802 and RFC 7677, written down independently of the broker."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from broker.codec.packets import V5, Auth, Connack, Connect
from tests.kit.mqtt_client import MqttClient, properties

METHOD = "SCRAM-SHA-256"


class Scram:
    """One exchange."""

    def __init__(self, name: str, password: str, method: str = METHOD) -> None:
        self.method = method
        self._hash = "sha" + method.rpartition("-")[2]
        self._password = password
        self._nonce = base64.b64encode(os.urandom(18)).decode()
        self._bare = f"n={name},r={self._nonce}"
        self._signature = b""
        #: What the server showed.
        self.salt = ""

    def first(self) -> bytes:
        """client-first-message"""
        return f"n,,{self._bare}".encode()

    def final(self, challenge: bytes | None) -> bytes:
        """client-final-message, for a server-first-message"""
        assert challenge is not None
        fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
        assert fields["r"].startswith(self._nonce) and len(fields["r"]) > len(self._nonce)
        assert int(fields["i"]) >= 4096
        self.salt = fields["s"]
        salted = hashlib.pbkdf2_hmac(
            self._hash, self._password.encode(), base64.b64decode(fields["s"]), int(fields["i"])
        )
        key = hmac.digest(salted, b"Client Key", self._hash)
        without_proof = f"c=biws,r={fields['r']}"
        message = ",".join((self._bare, challenge.decode(), without_proof)).encode()
        signature = hmac.digest(hashlib.new(self._hash, key).digest(), message, self._hash)
        proof = bytes(a ^ b for a, b in zip(key, signature, strict=True))
        self._signature = hmac.digest(hmac.digest(salted, b"Server Key", self._hash), message, self._hash)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, answer: bytes | None) -> None:
        """server-final-message: the server proves itself, too"""
        assert answer == b"v=" + base64.b64encode(self._signature)


async def scram_connect(client: MqttClient, scram: Scram, client_id: str) -> Connack:
    """CONNECT with the method of the exchange; returns the CONNACK."""
    values = properties(authentication_method=scram.method, authentication_data=scram.first())
    await client.send(Connect(V5, client_id, True, 0, properties=values))
    challenge = await client.expect(Auth)
    assert challenge.reason_code == 0x18 and challenge.properties is not None
    assert challenge.properties.authentication_method == scram.method
    await answer(client, scram.final(challenge.properties.authentication_data), method=scram.method)
    return await client.expect(Connack)


async def answer(client: MqttClient, data: bytes, reason_code: int = 0x18, method: str = METHOD) -> None:
    """Send AUTH."""
    await client.send(Auth(reason_code, properties(authentication_method=method, authentication_data=data)))
