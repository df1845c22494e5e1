"""What a defect in what decides about clients does to them."""

from __future__ import annotations

import pytest
import trio

from broker.auth.api import Principal
from broker.codec.packets import Connack
from tests.node.access_kit import FakeAccess, ruled


@pytest.mark.parametrize("version", [4, 5])
async def test_a_defect_lets_nobody_in_and_nobody_wait(version: int, autojump_clock: trio.abc.Clock) -> None:
    async def login(principal: Principal) -> None:
        if principal.client_id == "bad":
            raise KeyError(principal.client_id)

    access = FakeAccess()
    access.chain.login = login
    async with ruled(access) as world:
        peer = world.connecting("bad", version)
        connack = await peer.expect(Connack)
        assert connack.reason_code == (0x83 if version == 5 else 0x88)  # read back from version 3
        assert not world.server.clients
        await world.connect("good", version)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("client_id", ["a\0b", "a" * 65536, "\ud800"])
async def test_an_answer_that_cannot_be_given(version: int, client_id: str, autojump_clock: trio.abc.Clock) -> None:
    async def login(principal: Principal) -> None:
        if principal.client_id == "bad":
            if version == 5:
                principal.client_id = client_id
            else:
                principal.expires_at_s = "soon"  # type: ignore[assignment]

    access = FakeAccess()
    access.chain.login = login
    async with ruled(access) as world:
        peer = world.connecting("bad", version)
        connack = await peer.expect(Connack)  # and no DISCONNECT, which would be none of its time
        assert connack.reason_code == (0x83 if version == 5 else 0x88)  # read back from version 3
        await peer.nothing()
        assert peer.closed() and not world.server.clients
        await world.connect("good", version)
