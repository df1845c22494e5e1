"""Enhanced authentication: sections 3.15 and 4.12, and who is let in at all."""

from __future__ import annotations

import pytest

from broker.codec.packets import V5, V311, Auth, Connack, Connect, Disconnect
from broker.reasons import (
    BAD_AUTHENTICATION_METHOD,
    BAD_USER_NAME_OR_PASSWORD,
    CONTINUE_AUTHENTICATION,
    MALFORMED_PACKET,
    NOT_AUTHORIZED,
    PROTOCOL_ERROR,
    RE_AUTHENTICATE,
)
from tests.conformance.peers import Peers
from tests.conformance.scram import METHOD, Scram
from tests.conformance.statements import statement
from tests.kit.mqtt_client import MqttClient, frame, properties

SCRAM = ("scram",)


def auth(reason_code: int, data: bytes, method: str = METHOD) -> Auth:
    """Return an AUTH with data."""
    return Auth(reason_code, properties(authentication_method=method, authentication_data=data))


async def begin(peers: Peers, scram: Scram, **values: object) -> tuple[MqttClient, bytes]:
    """Send CONNECT with the first message and return the server's."""
    client = await peers.open()
    sent = properties(authentication_method=METHOD, authentication_data=scram.first, **values)
    client.client_id = peers.client_id()
    await client.send(Connect(V5, client.client_id, properties=sent))
    return client, await challenge(client)


async def challenge(client: MqttClient) -> bytes:
    """Return the data of the server's AUTH, which has to ask for more by the same method."""
    packet = await client.expect(Auth)
    assert packet.reason_code == CONTINUE_AUTHENTICATION
    assert packet.properties is not None
    assert packet.properties.authentication_method == METHOD
    assert packet.properties.authentication_data is not None
    return packet.properties.authentication_data


async def authenticated(peers: Peers, **values: object) -> MqttClient:
    """Return a client that has proved who it is."""
    scram = Scram()
    client, server_first = await begin(peers, scram, **values)
    await client.send(auth(CONTINUE_AUTHENTICATION, scram.final(server_first)))
    connack = await client.expect(Connack)
    assert connack.reason_code == 0
    assert connack.properties is not None
    assert connack.properties.authentication_method == METHOD
    scram.verify(connack.properties.authentication_data)
    return client


@statement(v5="MQTT-4.12.0-2 MQTT-4.12.0-5 MQTT-3.2.0-1 MQTT-3.15.2-1", stores=SCRAM)
async def test_scram(peers: Peers) -> None:
    client = await authenticated(peers)
    await client.subscribe(peers.topic())
    await client.expect_nothing()


@statement(v5="MQTT-4.12.0-4 MQTT-3.1.4-2 MQTT-3.2.2-7", stores=SCRAM)
async def test_a_wrong_proof_is_refused(peers: Peers) -> None:
    scram = Scram("wrong")
    client, server_first = await begin(peers, scram)
    await client.send(auth(CONTINUE_AUTHENTICATION, scram.final(server_first)))
    await peers.refused(client, NOT_AUTHORIZED, BAD_USER_NAME_OR_PASSWORD)


@statement(v5="MQTT-4.12.0-4 MQTT-4.12.0-5", stores=SCRAM)
@pytest.mark.parametrize("wrong", ["method", "reason", "data"])
async def test_an_answer_of_the_wrong_form_is_refused(peers: Peers, wrong: str) -> None:
    scram = Scram()
    client, server_first = await begin(peers, scram)
    final = scram.final(server_first)
    if wrong == "method":
        await client.send(auth(CONTINUE_AUTHENTICATION, final, "SCRAM-SHA-1"))
    elif wrong == "reason":
        await client.send(auth(RE_AUTHENTICATE, final))
    else:
        await client.send(auth(CONTINUE_AUTHENTICATION, b"\xff\x00nonsense"))
    await peers.refused(client)


@statement(v5="MQTT-4.12.0-1 MQTT-3.1.4-2", stores=("memory", "scram"))
async def test_an_unknown_method_is_refused(peers: Peers) -> None:
    client = await peers.open()
    values = properties(authentication_method="NO-SUCH-METHOD", authentication_data=b"x")
    connack = await client.connect(Connect(V5, peers.client_id(), properties=values))
    assert connack.reason_code == BAD_AUTHENTICATION_METHOD
    await client.expect_closed()


@statement(v5="MQTT-3.1.4-2 MQTT-3.2.2-7", v311="MQTT-3.2.2-5 MQTT-3.2.2-4", stores=SCRAM)
async def test_nobody_gets_in_without_credentials_where_there_are_users(peers: Peers, version: int) -> None:
    client = await peers.open(version)
    connack = await client.connect(Connect(version, peers.client_id()))
    assert connack.reason_code in (NOT_AUTHORIZED, BAD_USER_NAME_OR_PASSWORD)
    assert not connack.session_present
    if version == V311:
        assert client.last_raw[2:] in (b"\x00\x04", b"\x00\x05")
    await client.expect_closed()


@statement(v5="MQTT-3.1.4-6 MQTT-3.2.0-1", stores=SCRAM)
async def test_nothing_is_served_before_authentication_ends(peers: Peers) -> None:
    client, _ = await begin(peers, Scram())
    await client.send_raw(b"\xc0\x00")
    await peers.refused(client, PROTOCOL_ERROR)


@statement(v5="MQTT-4.12.0-6", stores=("memory",))
async def test_without_a_method_there_is_no_auth(peers: Peers) -> None:
    client = await peers.connect()
    assert client.connack is not None
    got = client.connack.properties
    assert got is None or (got.authentication_method is None and got.authentication_data is None)
    await client.expect_nothing()


@statement(v5="MQTT-4.12.0-7 MQTT-4.13.1-1")
@pytest.mark.parametrize("reason_code", [CONTINUE_AUTHENTICATION, RE_AUTHENTICATE])
async def test_auth_of_a_client_without_a_method_closes(peers: Peers, reason_code: int) -> None:
    client = await peers.connect()
    await client.send(auth(reason_code, b"x"))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.15.1-1", stores=("memory", "scram"))
@pytest.mark.parametrize("first_byte", [0xF1, 0xF2, 0xF8])
async def test_reserved_flags_of_auth_close(peers: Peers, store: str, first_byte: int) -> None:
    client = await (authenticated(peers) if store == "scram" else peers.connect())
    await client.send_raw(frame(first_byte, b""))
    await client.expect_disconnect(MALFORMED_PACKET)


@statement(v5="MQTT-3.15.2-1", stores=SCRAM)
@pytest.mark.parametrize("reason_code", [0x01, 0x17, 0x80, 0xFF])
async def test_an_undefined_reason_code_of_auth_closes(peers: Peers, reason_code: int) -> None:
    client = await authenticated(peers)
    await client.send_raw(frame(0xF0, bytes((reason_code, 0))))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-4.12.1-1 MQTT-3.15.2-1 MQTT-4.12.0-5", stores=SCRAM)
async def test_reauthentication(peers: Peers) -> None:
    client = await authenticated(peers)
    topic = peers.topic()
    await client.subscribe(topic)
    scram = Scram(nonce="another0nonce0altogether")
    await client.send(auth(RE_AUTHENTICATE, scram.first))
    server_first = await challenge(client)
    # Other packets go on while it is under way.
    await client.expect_nothing()
    await client.send(auth(CONTINUE_AUTHENTICATION, scram.final(server_first)))
    done = await client.expect(Auth)
    assert done.reason_code == 0
    assert done.properties is not None
    assert done.properties.authentication_method == METHOD
    scram.verify(done.properties.authentication_data)
    await client.expect_nothing()


@statement(v5="MQTT-4.12.1-2", stores=SCRAM)
async def test_a_failed_reauthentication_closes(peers: Peers) -> None:
    client = await authenticated(peers)
    scram = Scram("wrong", nonce="another0nonce0altogether")
    await client.send(auth(RE_AUTHENTICATE, scram.first))
    await client.send(auth(CONTINUE_AUTHENTICATION, scram.final(await challenge(client))))
    packet = await client.expect(Disconnect)
    assert packet.reason_code in (NOT_AUTHORIZED, BAD_USER_NAME_OR_PASSWORD)
    await client.expect_closed()


@statement(v5="MQTT-4.12.1-1 MQTT-4.12.1-2", stores=SCRAM)
async def test_reauthentication_by_another_method_closes(peers: Peers) -> None:
    client = await authenticated(peers)
    await client.send(auth(RE_AUTHENTICATE, b"x", "OTHER"))
    await client.expect_disconnect(PROTOCOL_ERROR)


@statement(v5="MQTT-3.15.2-2 MQTT-3.15.2-3", stores=SCRAM)
async def test_auth_carries_no_text_that_makes_it_too_large(peers: Peers) -> None:
    client, _ = await begin(peers, Scram(), maximum_packet_size=200)
    assert len(client.last_raw) <= 200


@statement(v5="MQTT-3.1.2-29", stores=SCRAM)
async def test_auth_carries_no_problem_information_if_not_wanted(peers: Peers) -> None:
    scram = Scram()
    client = await peers.open()
    values = properties(authentication_method=METHOD, authentication_data=scram.first, request_problem_information=0)
    await client.send(Connect(V5, peers.client_id(), properties=values))
    packet = await client.expect(Auth)
    assert packet.properties is not None
    assert packet.properties.reason_string is None
    assert not packet.properties.user_properties
