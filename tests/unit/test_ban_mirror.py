"""The bans in memory follow the documents; what did not change is not read again."""

from __future__ import annotations

import random

import pytest
import trio

from broker.limits import ban_mirror
from broker.limits.ban_mirror import READ, BanMirror
from broker.limits.bans import CLIENT_ID, CLIENT_ID_PREFIX, IP, USERNAME, USERNAME_PREFIX, Ban, read_ban, read_bans

NOW = 1000.0


def documents_of(*bans: Ban) -> dict[str, bytes]:
    return {ban.name: ban.document() for ban in bans}


async def test_what_did_not_change_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = BanMirror()
    read: list[str] = []

    def reading(name: str, document: bytes) -> Ban:
        read.append(name)
        return read_ban(name, document)

    monkeypatch.setattr(ban_mirror, "read_ban", reading)
    documents = documents_of(*(Ban(CLIENT_ID, f"c{number}") for number in range(100)))
    new, _, _ = await mirror.update(documents, NOW)
    assert len(new) == len(read) == len(mirror.bans) == 100
    read.clear()
    documents |= documents_of(Ban(CLIENT_ID, "c7", NOW + 5), Ban(IP, "10.0.0.0/8"))
    del documents["client_id:c8"]
    new, _, wrong = await mirror.update({**documents, "nonsense": b""}, NOW)
    assert sorted(read) == ["client_id:c7", "ip:10.0.0.0/8", "nonsense"]
    assert sorted(ban.name for ban in new) == ["client_id:c7", "ip:10.0.0.0/8"]
    assert len(wrong) == 1
    assert mirror.bans.of_client_id("c8", NOW) is None
    assert await mirror.update({**documents, "nonsense": b""}, NOW) == ([], {}, [])
    _, over, _ = await mirror.update(documents, NOW + 6)
    assert list(over) == ["client_id:c7"]
    assert len(mirror.bans) == 99


async def test_others_have_their_turn() -> None:
    """However many are new."""
    mirror = BanMirror()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await mirror.update(documents_of(*(Ban(CLIENT_ID, f"c{number}") for number in range(40 * READ))), NOW)
        nursery.cancel_scope.cancel()
    assert turns >= 35


async def test_two_documents_about_the_same() -> None:
    mirror = BanMirror()
    odd = {"ip:::ffff:192.0.2.1": b"{}"}
    both = odd | documents_of(Ban(IP, "192.0.2.1"))
    for documents in (both, odd, both, documents_of(Ban(IP, "192.0.2.1"))):
        await mirror.update(documents, NOW)
        assert mirror.bans.of_host("192.0.2.1", NOW)
    await mirror.update({}, NOW)
    assert mirror.bans.of_host("192.0.2.1", NOW) is None


async def test_one_that_was_made_here() -> None:
    mirror = BanMirror()
    ban = Ban(CLIENT_ID, "c", NOW + 5)
    mirror.bans.add(ban)
    await mirror.update({}, NOW)
    assert mirror.bans.of_client_id("c", NOW)  # not stored yet
    mirror.stored(ban, ban.document())
    assert await mirror.update(documents_of(ban), NOW) == ([], {}, [])
    await mirror.update({}, NOW)
    assert not len(mirror.bans)


async def test_it_ends_as_if_all_were_read() -> None:
    randomly = random.Random(5)
    values = {IP: ["10.0.0.1", "10.0.0.0/8", "2001:db8::/64"]}
    kinds = (CLIENT_ID, USERNAME, CLIENT_ID_PREFIX, USERNAME_PREFIX, IP)
    mirror = BanMirror()
    for now_s in range(200):
        bans = []
        for kind in kinds:
            for value in values.get(kind, ["a", "ab", "b"]):
                if randomly.random() < 0.5:
                    bans.append(Ban(kind, value, randomly.choice([None, now_s, now_s + 1])))
        documents = documents_of(*bans)
        _, over, _ = await mirror.update(documents, now_s)
        right, right_over, _ = read_bans(documents, now_s)
        assert over == right_over
        assert {ban.name: ban.until_s for ban in mirror.bans} == {ban.name: ban.until_s for ban in right}
        for name in ("a", "ab", "abc", "b", "c"):
            assert bool(mirror.bans.of_client_id(name, now_s)) == bool(right.of_client_id(name, now_s))
            assert bool(mirror.bans.of_username(name, now_s)) == bool(right.of_username(name, now_s))
        for host in ("10.0.0.1", "10.1.0.0", "2001:db8::1", "192.0.2.1"):
            assert bool(mirror.bans.of_host(host, now_s)) == bool(right.of_host(host, now_s))
