"""The connection state machine: every packet kind in every state, against a table written by hand."""

from __future__ import annotations

import pytest

from broker.codec.packets import (
    KIND_NAMES,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from broker.errors import PeerError
from broker.session.effects import ChangeSubscriptions, ContinueAuthentication, Finish, Open, Send
from broker.session.machine import CLOSED, CONNECTING, NEW, OPEN, ConnectionMachine


def _with_method(method: str | None = "M", data: bytes | None = b"d") -> Properties:
    properties = Properties()
    properties.authentication_method = method
    properties.authentication_data = data
    return properties


PACKETS: dict[str, Packet] = {
    "CONNECT": Connect(5, "c", properties=_with_method()),
    "CONNACK": Connack(False, 0),
    "PUBLISH": Publish("t", b"x"),
    "PUBACK": Puback(1),
    "PUBREC": Pubrec(1),
    "PUBREL": Pubrel(1),
    "PUBCOMP": Pubcomp(1),
    "SUBSCRIBE": Subscribe(1, [SubscriptionRequest("t")]),
    "SUBACK": Suback(1, [0]),
    "UNSUBSCRIBE": Unsubscribe(1, ["t"]),
    "UNSUBACK": Unsuback(1, [0]),
    "PINGREQ": Pingreq(),
    "PINGRESP": Pingresp(),
    "DISCONNECT": Disconnect(),
    "AUTH 0x18": Auth(0x18, _with_method()),
    "AUTH 0x19": Auth(0x19, _with_method()),
}

STATES = ("new", "connecting", "exchanging", "open", "open, exchanging", "closed")

#: What comes of it; every pair that is not here is a protocol error (0x82) and changes nothing.
TABLE: dict[tuple[str, str], type] = {
    ("new", "CONNECT"): Open,
    ("connecting", "DISCONNECT"): Finish,
    ("exchanging", "AUTH 0x18"): ContinueAuthentication,
    ("exchanging", "DISCONNECT"): Finish,
    ("open", "SUBSCRIBE"): ChangeSubscriptions,
    ("open", "UNSUBSCRIBE"): ChangeSubscriptions,
    ("open", "PINGREQ"): Send,
    ("open", "DISCONNECT"): Finish,
    ("open", "AUTH 0x19"): ContinueAuthentication,
    ("open, exchanging", "SUBSCRIBE"): ChangeSubscriptions,
    ("open, exchanging", "UNSUBSCRIBE"): ChangeSubscriptions,
    ("open, exchanging", "PINGREQ"): Send,
    ("open, exchanging", "DISCONNECT"): Finish,
    ("open, exchanging", "AUTH 0x18"): ContinueAuthentication,
}

AFTER = {"new": NEW, "connecting": CONNECTING, "exchanging": CONNECTING, "open": OPEN, "open, exchanging": OPEN}


def _machine(state: str, connect: Connect | None = None) -> ConnectionMachine:
    machine = ConnectionMachine()
    if state == "new":
        return machine
    machine.receive(connect or Connect(5, "c", properties=_with_method()))
    if state == "exchanging":
        machine.authenticating()
    elif state.startswith("open"):
        machine.opened(100)
        if "exchanging" in state:
            machine.authenticating()
    elif state == "closed":
        machine.close()
    return machine


def test_the_table_has_every_kind() -> None:
    assert {packet.kind for packet in PACKETS.values()} == set(range(1, len(KIND_NAMES)))


@pytest.mark.parametrize("name", PACKETS)
@pytest.mark.parametrize("state", STATES)
def test_every_pair(state: str, name: str) -> None:
    machine = _machine(state)
    before = machine.state
    expected = TABLE.get((state, name))
    if expected is None:
        with pytest.raises(PeerError) as caught:
            machine.receive(PACKETS[name])
        assert caught.value.reason_code == 0x82
        assert machine.state == before
        return
    effect = machine.receive(PACKETS[name])
    assert type(effect) is expected
    if expected is Finish:
        assert machine.state == CLOSED
    elif expected is Open:
        assert machine.state == CONNECTING
    else:
        assert machine.state == AFTER[state]


def test_ping_is_answered() -> None:
    effect = _machine("open").receive(Pingreq())
    assert isinstance(effect, Send)
    assert isinstance(effect.packet, Pingresp)


def test_effects_carry_their_packets() -> None:
    connect = Connect(4, "c")
    machine = ConnectionMachine()
    effect = machine.receive(connect)
    assert isinstance(effect, Open)
    assert effect.connect is connect
    assert machine.version == 4
    machine.opened(0)
    packet = PACKETS["UNSUBSCRIBE"]
    change = machine.receive(packet)
    assert isinstance(change, ChangeSubscriptions)
    assert change.packet is packet


@pytest.mark.parametrize("state", ["connecting", "exchanging", "open"])
def test_after_the_end_nothing_is_allowed(state: str) -> None:
    machine = _machine(state)
    machine.receive(Disconnect())
    for packet in PACKETS.values():
        with pytest.raises(PeerError):
            machine.receive(packet)
    assert machine.state == CLOSED


# -- AUTH


@pytest.mark.parametrize("state", ["exchanging", "open", "open, exchanging"])
@pytest.mark.parametrize(
    "properties, reason_code",
    [(None, 0x82), (_with_method(None), 0x82), (_with_method("other"), 0x82), (_with_method("m"), 0x82)],
)
def test_the_method_stays_the_same(state: str, properties: Properties | None, reason_code: int) -> None:
    """[MQTT-4.12.0-5]"""
    machine = _machine(state)
    code = 0x19 if state == "open" else 0x18
    with pytest.raises(PeerError) as caught:
        machine.receive(Auth(code, properties))
    assert caught.value.reason_code == reason_code


@pytest.mark.parametrize("state", ["connecting", "open"])
def test_no_auth_without_a_method_in_connect(state: str) -> None:
    """[MQTT-4.12.0-6], [MQTT-4.12.1-1]"""
    machine = _machine(state, Connect(5, "c"))
    for code in (0x18, 0x19):
        with pytest.raises(PeerError) as caught:
            machine.receive(Auth(code, _with_method()))
        assert caught.value.reason_code == 0x82


@pytest.mark.parametrize("state", ["exchanging", "open", "open, exchanging"])
def test_a_client_does_not_send_auth_with_success(state: str) -> None:
    with pytest.raises(PeerError) as caught:
        _machine(state).receive(Auth(0x00, _with_method()))
    assert caught.value.reason_code == 0x82


def test_an_authentication_in_several_steps() -> None:
    machine = _machine("connecting")
    for data in (b"one", None, b"three"):
        machine.authenticating()
        effect = machine.receive(Auth(0x18, _with_method("M", data)))
        assert isinstance(effect, ContinueAuthentication)
        assert (effect.method, effect.data, effect.again) == ("M", data or b"", False)
    machine.opened(0)
    with pytest.raises(PeerError):
        machine.receive(Auth(0x18, _with_method()))


def test_a_second_authentication() -> None:
    machine = _machine("open")
    effect = machine.receive(Auth(0x19, _with_method()))
    assert isinstance(effect, ContinueAuthentication)
    assert effect.again
    with pytest.raises(PeerError):  # not two at a time
        machine.receive(Auth(0x19, _with_method()))
    effect = machine.receive(Auth(0x18, _with_method()))
    assert isinstance(effect, ContinueAuthentication)
    assert not effect.again
    machine.authenticated()
    with pytest.raises(PeerError):
        machine.receive(Auth(0x18, _with_method()))
    assert isinstance(machine.receive(Auth(0x19, _with_method())), ContinueAuthentication)


# -- DISCONNECT


def _disconnect(reason_code: int, expiry_s: int | None) -> Disconnect:
    properties = Properties()
    properties.session_expiry_interval = expiry_s
    return Disconnect(reason_code, properties)


@pytest.mark.parametrize(
    "version, expiry_s, packet, send_will, expected",
    [
        (4, 100, Disconnect(), False, -1),
        (5, 100, Disconnect(), False, -1),
        (5, 100, Disconnect(0x04), True, -1),
        (5, 100, Disconnect(0x80), True, -1),
        (5, 100, _disconnect(0, None), False, -1),
        (5, 100, _disconnect(0, 0), False, 0),
        (5, 100, _disconnect(4, 7), True, 7),
        (5, 100, _disconnect(0, 0xFFFFFFFF), False, 0xFFFFFFFF),
        (5, 0, _disconnect(0, 0), False, 0),
    ],
)
def test_the_last_word(version: int, expiry_s: int, packet: Disconnect, send_will: bool, expected: int) -> None:
    machine = ConnectionMachine()
    machine.receive(Connect(version, "c"))
    machine.opened(expiry_s)
    effect = machine.receive(packet)
    assert isinstance(effect, Finish)
    assert (effect.reason_code, effect.send_will, effect.expiry_s) == (packet.reason_code, send_will, expected)
    assert machine.state == CLOSED


@pytest.mark.parametrize("expiry_s", [1, 0xFFFFFFFF])
def test_a_session_without_expiry_gets_none_at_the_end(expiry_s: int) -> None:
    """[MQTT-3.14.2-2]"""
    machine = ConnectionMachine()
    machine.receive(Connect(5, "c"))
    machine.opened(0)
    with pytest.raises(PeerError) as caught:
        machine.receive(_disconnect(0, expiry_s))
    assert caught.value.reason_code == 0x82
