"""The codec against written-down packets: both directions, all versions, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.codec.decode import decode
from broker.codec.encode import encode
from broker.codec.primitives import remaining_length
from broker.codec.publish import scan_publish_properties
from broker.errors import PeerError
from tests.kit.packet_data import packet_data, wire

DATA = Path(__file__).parent / "data"

Case = dict[str, object]

CLIENT_KINDS = (1, 8, 10, 12)
SERVER_KINDS = (2, 9, 11, 13)


def _packets() -> list[object]:
    cases: list[Case] = json.loads((DATA / "codec_packets.json").read_text("utf-8"))
    return [
        pytest.param(version, case, id=f"{case['name']} v{version}")
        for case in cases
        for version in (3, 4, 5)
        if version in case["versions"]  # type: ignore[operator]
    ]


def _errors() -> Iterator[tuple[int, str, int, bytes, int, str]]:
    for line in (DATA / "codec_errors.txt").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        versions, side, first, body, reason, why = (cell.strip() for cell in line.split("|"))
        for version in versions:
            for one in ("client", "server", "any") if side == "any" else (side,):
                yield int(version), one, int(first, 16), wire(body), int(reason, 16), f"{why} v{version} {one}"


def _all_errors() -> list[object]:
    return [pytest.param(*case[:5], id=case[5]) for case in _errors()]


def _publish_property_errors() -> list[object]:
    return [
        pytest.param(body, reason, id=name)
        for version, side, first, body, reason, name in _errors()
        if version == 5 and side == "client" and first == 0x30 and body.startswith(b"\0\1a")
    ]


def _from_client(side: str) -> bool | None:
    return None if side == "any" else side == "client"


@pytest.mark.parametrize(("version", "case"), _packets())
def test_a_written_down_packet_decodes_and_encodes_to_the_same_bytes(version: int, case: Case) -> None:
    first = int(str(case["first"]), 16)
    body = wire(str(case["body"]))
    for from_client in (_from_client(str(case["side"])), None):
        packet = decode(first, b"\xff" + body + b"\xff", 1, 1 + len(body), version, from_client)
        assert packet_data(packet) == case["packet"]
        if case.get("canonical", True):
            assert encode(packet, version) == bytes((first,)) + remaining_length(len(body)) + body


@pytest.mark.parametrize(("version", "case"), _packets())
def test_every_shorter_prefix_is_refused_or_is_another_packet(version: int, case: Case) -> None:
    first = int(str(case["first"]), 16)
    body = wire(str(case["body"]))
    for end in range(len(body)):
        try:
            packet = decode(first, body, 0, end, version)
        except PeerError:
            continue
        encoded = encode(packet, version)
        assert packet_data(decode(encoded[0], encoded, 2, len(encoded), version)) == packet_data(packet)


@pytest.mark.parametrize(("version", "side", "first", "body", "reason"), _all_errors())
def test_a_bad_packet_gets_the_reason_code_of_the_standard(
    version: int, side: str, first: int, body: bytes, reason: int
) -> None:
    from_client = _from_client(side)
    only_other_side = SERVER_KINDS if from_client else CLIENT_KINDS
    if from_client is not None and first >> 4 in only_other_side:
        reason = 0x82
    with pytest.raises(PeerError) as caught:
        decode(first, body, 0, len(body), version, from_client)
    assert caught.value.reason_code == reason
    assert caught.value.text


@pytest.mark.parametrize(("body", "reason"), _publish_property_errors())
def test_the_fast_way_refuses_publish_properties_with_the_same_reason_code(body: bytes, reason: int) -> None:
    with pytest.raises(PeerError) as caught:
        scan_publish_properties(body, 3, len(body))
    assert caught.value.reason_code == reason


def test_the_error_cases_are_many_and_reach_the_fast_way() -> None:
    assert len(_all_errors()) > 300
    assert len(_publish_property_errors()) > 20
