"""Reason codes: names, where they may appear, and what version 3 says instead."""

from __future__ import annotations

import pytest

from broker import reasons
from broker.codec.packets import AUTH, CONNACK, DISCONNECT, KIND_NAMES, PINGREQ, PUBACK, SUBACK
from broker.reasons import connack_code_v3, reason_code_allowed, reason_name


def test_every_constant_has_a_name_and_every_name_a_constant() -> None:
    constants = {
        name.lower(): value
        for name, value in vars(reasons).items()
        if isinstance(value, int) and name not in KIND_NAMES
    }
    assert len(reasons.REASON_NAMES) == 43
    assert {reasons.REASON_NAMES[value] for value in constants.values()} == set(reasons.REASON_NAMES.values())
    for code, name in reasons.REASON_NAMES.items():
        assert constants[name] == code
    assert constants["granted_qos_0"] == constants["normal_disconnection"] == constants["success"] == 0


@pytest.mark.parametrize(
    ("code", "name"), [(0, "success"), (0x8F, "topic_filter_invalid"), (0x03, "unknown_0x03"), (0xFF, "unknown_0xff")]
)
def test_a_code_has_a_label(code: int, name: str) -> None:
    assert reason_name(code) == name


@pytest.mark.parametrize(
    ("code", "v3"),
    [
        (0, 0),
        (0x84, 1),
        (0x85, 2),
        (0x88, 3),
        (0x89, 3),
        (0x97, 3),
        (0x9C, 3),
        (0x86, 4),
        (0x87, 5),
        (0x8A, 5),
        (0x8C, 5),
    ],
)
def test_a_refused_connect_has_a_return_code_in_version_3(code: int, v3: int) -> None:
    assert connack_code_v3(code) == v3


def test_every_connack_reason_has_a_return_code_and_only_success_is_0() -> None:
    for code in reasons.SERVER_REASON_CODES[CONNACK]:
        assert connack_code_v3(code) in ((0,) if code == 0 else (1, 2, 3, 4, 5))
    for v3, code in enumerate(reasons.CONNACK_CODES_V3):
        assert connack_code_v3(code) == v3


def test_reason_codes_depend_on_packet_and_side() -> None:
    assert reason_code_allowed(PUBACK, 0x10, False)
    assert reason_code_allowed(PUBACK, 0x10)
    assert not reason_code_allowed(PUBACK, 0x10, True)
    assert reason_code_allowed(DISCONNECT, 0x04, True)
    assert not reason_code_allowed(DISCONNECT, 0x04, False)
    assert reason_code_allowed(AUTH, 0x19, True)
    assert not reason_code_allowed(AUTH, 0x19, False)
    assert not reason_code_allowed(SUBACK, 0, True)
    assert not reason_code_allowed(PINGREQ, 0)
