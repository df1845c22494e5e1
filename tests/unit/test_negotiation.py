"""What client and server agree on, and what CONNACK announces of it."""

from __future__ import annotations

import pytest

from broker.codec.packets import PROPERTY_NAMES, Connect, Properties, Will
from broker.errors import PeerError
from broker.session.negotiation import agree, connack_properties
from broker.session.quotas import NEVER_EXPIRES, Quotas

WEEK_S = 7 * 24 * 3600


def _connect(
    version: int = 5, client_id: str = "c", clean: bool = True, keep_alive_s: int = 0, **values: object
) -> Connect:
    properties: Properties | None = None
    if values:
        properties = Properties()
        for name, value in values.items():
            assert name in PROPERTY_NAMES
            setattr(properties, name, value)
    return Connect(version, client_id, clean, keep_alive_s, properties=properties)


def _announced(properties: Properties | None) -> dict[str, object]:
    assert properties is not None
    values = {name: getattr(properties, name) for name in PROPERTY_NAMES}
    return {name: value for name, value in values.items() if value not in (None, ())}


DEFAULT = {"receive_maximum": 100, "maximum_packet_size": 1024 * 1024, "topic_alias_maximum": 64}


# -- client identifiers


@pytest.mark.parametrize(
    "version, client_id, clean, expected",
    [
        (3, "c", True, "c"),
        (3, "", True, 0x85),
        (3, "", False, 0x85),
        (4, "c", False, "c"),
        (4, "", True, "new"),
        (4, "", False, 0x85),  # [MQTT-3.1.3-8]
        (5, "c", False, "c"),
        (5, "", True, "new"),
        (5, "", False, "new"),
        (3, "a client identifier of more than 23 characters", True, "a client identifier of more than 23 characters"),
    ],
)
def test_client_identifiers(version: int, client_id: str, clean: bool, expected: str | int) -> None:
    connect = _connect(version, client_id, clean)
    if isinstance(expected, int):
        with pytest.raises(PeerError) as caught:
            agree(connect, Quotas(), "new")
        assert caught.value.reason_code == expected
        return
    terms = agree(connect, Quotas(), "new")
    assert terms.client_id == expected
    assert terms.assigned == (expected == "new")
    assert terms.clean_start == clean
    assert terms.version == version
    if version == 5:
        announced = _announced(connack_properties(terms, Quotas()))
        assert announced.get("assigned_client_identifier") == ("new" if expected == "new" else None)
    else:
        assert connack_properties(terms, Quotas()) is None


# -- session expiry


@pytest.mark.parametrize(
    "version, clean, asked, quotas, granted, announced",
    [
        (3, True, None, Quotas(), 0, None),
        (4, True, None, Quotas(), 0, None),
        (4, False, None, Quotas(), WEEK_S, None),
        (3, False, None, Quotas(session_expiry_v3_s=NEVER_EXPIRES), NEVER_EXPIRES, None),
        (4, False, None, Quotas(session_expiry_max_s=60), 60, None),
        (5, True, None, Quotas(), 0, None),
        (5, False, None, Quotas(), 0, None),
        (5, True, 0, Quotas(), 0, None),
        (5, False, 30, Quotas(session_expiry_max_s=60), 30, None),
        (5, True, 60, Quotas(session_expiry_max_s=60), 60, None),
        (5, False, 61, Quotas(session_expiry_max_s=60), 60, 60),
        (5, False, NEVER_EXPIRES, Quotas(), NEVER_EXPIRES, None),
        (5, False, NEVER_EXPIRES, Quotas(session_expiry_max_s=60), 60, 60),
        (5, False, 30, Quotas(session_expiry_max_s=0), 0, 0),
        (5, False, 30, Quotas(session_expiry_v3_s=5), 30, None),
    ],
)
def test_session_expiry(
    version: int, clean: bool, asked: int | None, quotas: Quotas, granted: int, announced: int | None
) -> None:
    values = {} if asked is None else {"session_expiry_interval": asked}
    terms = agree(_connect(version, "c", clean, 0, **values), quotas, "new")
    assert terms.expiry_s == granted
    if version == 5:
        assert _announced(connack_properties(terms, quotas)).get("session_expiry_interval") == announced


# -- limits of the client


@pytest.mark.parametrize(
    "version, values, quotas, expected",
    [
        (4, {}, Quotas(), (100, 0, 0)),
        (4, {}, Quotas(max_inflight=7), (7, 0, 0)),
        (5, {}, Quotas(), (100, 0, 0)),
        (5, {"receive_maximum": 1}, Quotas(), (1, 0, 0)),
        (5, {"receive_maximum": 65535}, Quotas(max_inflight=4095), (4095, 0, 0)),
        (5, {"receive_maximum": 99}, Quotas(max_inflight=100), (99, 0, 0)),
        (5, {"maximum_packet_size": 1}, Quotas(), (100, 1, 0)),
        (5, {"topic_alias_maximum": 5}, Quotas(), (100, 0, 5)),
        (5, {"topic_alias_maximum": 0}, Quotas(), (100, 0, 0)),
    ],
)
def test_limits_of_the_client(
    version: int, values: dict[str, object], quotas: Quotas, expected: tuple[int, int, int]
) -> None:
    terms = agree(_connect(version, "c", True, 0, **values), quotas, "new")
    assert (terms.receive_maximum, terms.max_packet_size, terms.topic_alias_maximum) == expected


def test_problem_and_response_information() -> None:
    terms = agree(_connect(), Quotas(), "new")
    assert terms.problem_information
    assert not terms.response_information
    terms = agree(_connect(request_problem_information=1, request_response_information=0), Quotas(), "new")
    assert terms.problem_information
    assert not terms.response_information
    terms = agree(_connect(request_problem_information=0, request_response_information=1), Quotas(), "new")
    assert not terms.problem_information
    assert terms.response_information


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("prefix", ["", "answers/"])
def test_response_information_is_given_to_who_asks(asked: bool, prefix: str) -> None:
    terms = agree(_connect(request_response_information=int(asked)), Quotas(), "new")
    announced = _announced(connack_properties(terms, Quotas(response_information=prefix)))
    value = announced.get("response_information")
    if asked and prefix:
        assert isinstance(value, str)
        assert value.startswith(prefix)
        assert value.endswith("c")
    else:
        assert value is None


# -- keep-alive


@pytest.mark.parametrize(
    "version, asked, limit, granted, announced",
    [
        (5, 0, 0, 0, None),
        (5, 65535, 0, 65535, None),
        (5, 0, 60, 60, 60),  # [MQTT-3.1.2-21]
        (5, 61, 60, 60, 60),
        (5, 60, 60, 60, None),
        (5, 10, 60, 10, None),
        (4, 0, 60, 0, None),  # no way to tell it
        (4, 600, 60, 600, None),
        (3, 30, 60, 30, None),
    ],
)
def test_keep_alive(version: int, asked: int, limit: int, granted: int, announced: int | None) -> None:
    quotas = Quotas(max_keep_alive_s=limit)
    terms = agree(_connect(version, keep_alive_s=asked), quotas, "new")
    assert terms.keep_alive_s == granted
    if version == 5:
        assert _announced(connack_properties(terms, quotas)).get("server_keep_alive") == announced


# -- wills


@pytest.mark.parametrize(
    "quotas, qos, retain, refused",
    [
        (Quotas(), 2, True, 0),
        (Quotas(maximum_qos=1), 1, False, 0),
        (Quotas(maximum_qos=1), 2, False, 0x9B),  # [MQTT-3.2.2-12]
        (Quotas(maximum_qos=0), 1, False, 0x9B),
        (Quotas(retain_available=False), 1, False, 0),
        (Quotas(retain_available=False), 0, True, 0x9A),  # [MQTT-3.2.2-13]
    ],
)
@pytest.mark.parametrize("version", [4, 5])
def test_wills(version: int, quotas: Quotas, qos: int, retain: bool, refused: int) -> None:
    will = Will("w", b"", qos, retain)
    connect = Connect(version, "c", will=will)
    if refused:
        with pytest.raises(PeerError) as caught:
            agree(connect, quotas, "new")
        assert caught.value.reason_code == refused
    else:
        assert agree(connect, quotas, "new").will is will


# -- what CONNACK announces


@pytest.mark.parametrize(
    "quotas, changed",
    [
        (Quotas(), {}),
        (Quotas(receive_maximum=65535), {"receive_maximum": None}),
        (Quotas(receive_maximum=1), {"receive_maximum": 1}),
        (Quotas(maximum_qos=1), {"maximum_qos": 1}),
        (Quotas(maximum_qos=0), {"maximum_qos": 0}),
        (Quotas(retain_available=False), {"retain_available": 0}),
        (Quotas(max_packet_size=500), {"maximum_packet_size": 500}),
        (Quotas(topic_alias_maximum=0), {"topic_alias_maximum": None}),
        (Quotas(wildcard_available=False), {"wildcard_subscription_available": 0}),
        (Quotas(subscription_ids_available=False), {"subscription_identifier_available": 0}),
        (Quotas(shared_available=False), {"shared_subscription_available": 0}),
    ],
)
def test_announcements(quotas: Quotas, changed: dict[str, object]) -> None:
    expected = {name: value for name, value in (DEFAULT | changed).items() if value is not None}
    assert _announced(connack_properties(agree(_connect(), quotas, "new"), quotas)) == expected


@pytest.mark.parametrize("data", [None, b"", b"proof"])
def test_the_end_of_an_authentication(data: bytes | None) -> None:
    terms = agree(_connect(authentication_method="M", authentication_data=b"first"), Quotas(), "new")
    assert terms.authentication_method == "M"
    properties = connack_properties(terms, Quotas(), data)
    assert properties is not None
    assert properties.authentication_method == "M"
    assert properties.authentication_data == data
