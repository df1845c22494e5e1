"""Keys and logins as a node checks them, with a store that may be gone."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from broker.admin.api import AdminError
from broker.admin.key_document import KeyDocument, fast_hash, looks_generated, new_secret, read_token, token_of
from broker.admin.keyring import FAILURES, LOGINS_MAX, STALE_S, KeyRing
from broker.config import Settings
from broker.errors import StoreUnavailable
from cluster.memory.registry import MemoryRegistry
from cluster.registry import KEYS, LOGINS


class Registry(MemoryRegistry):
    """Can be out of reach."""

    gone = False

    async def document(self, kind: str, name: str) -> bytes | None:
        if self.gone:
            raise StoreUnavailable("gone")
        return await super().document(kind, name)


class World:
    def __init__(self, clock: Any, **settings: Any) -> None:
        self.registry = Registry()
        self.clock = clock
        self.keys = KeyRing(self.registry, Settings(**settings), lambda: int(clock.current_time() * 1000))

    async def make(self, name: str, scope: str = "viewer", expires: float | None = None) -> str:
        secret = new_secret()
        document = KeyDocument(scope=scope, hash=fast_hash(secret), expires=expires)  # type: ignore[arg-type]
        await self.registry.change(KEYS, {name: document.write()})
        return secret

    async def refused(self, name: str, secret: str) -> int:
        with pytest.raises(AdminError) as caught:
            await self.keys.identify(name, secret, "10.0.0.1")
        return caught.value.status


async def test_what_was_seen_counts_while_the_store_is_gone(autojump_clock: Any) -> None:
    world = World(autojump_clock)
    secret, other = await world.make("seen"), await world.make("other")
    assert (await world.keys.identify("seen", secret, "")).name == "seen"
    world.registry.gone = True
    autojump_clock.jump(STALE_S / 2)
    assert (await world.keys.identify("seen", secret, "")).name == "seen"
    assert await world.refused("seen", other) == 401
    with pytest.raises(StoreUnavailable):
        await world.keys.identify("other", other, "")
    autojump_clock.jump(STALE_S)
    with pytest.raises(StoreUnavailable):
        await world.keys.identify("seen", secret, "")


async def test_a_key_ends_in_time(autojump_clock: Any) -> None:
    world = World(autojump_clock)
    secret = await world.make("short", expires=autojump_clock.current_time() + 100)
    assert (await world.keys.identify("short", secret, "")).scope == "viewer"
    autojump_clock.jump(101)
    assert await world.refused("short", secret) == 401


async def test_wrong_generated_secrets_lock_nobody_out(autojump_clock: Any) -> None:
    world = World(autojump_clock, admin_secret="chosen by us")
    secret = await world.make("machine")
    for _ in range(3 * FAILURES):
        assert await world.refused("machine", new_secret()) == 401
        assert await world.refused("nobody", new_secret()) == 401
    assert (await world.keys.identify("machine", secret, "10.0.0.1")).name == "machine"
    assert (await world.keys.identify("admin", "chosen by us", "10.0.0.1")).scope == "admin"


async def test_a_setting_that_looks_generated(autojump_clock: Any) -> None:
    secret = new_secret()
    world = World(autojump_clock, admin_secret=secret)
    assert (await world.keys.identify("admin", secret, "")).scope == "admin"
    assert await world.refused("admin", new_secret()) == 401
    assert await world.keys.begin() is None
    stored = KeyDocument.read((await world.registry.documents(KEYS))["admin"])
    assert stored.hash == fast_hash(secret)
    # Others know it from the store.
    elsewhere = KeyRing(world.registry, Settings(), lambda: 0)
    assert (await elsewhere.identify("admin", secret, "")).scope == "admin"


async def test_one_of_many_nodes_makes_the_first_key(autojump_clock: Any) -> None:
    world = World(autojump_clock)
    others = [KeyRing(world.registry, Settings(), lambda: 0) for _ in range(3)]
    made = [await ring.begin() for ring in (world.keys, *others)]
    assert [each is not None for each in made] == [True, False, False, False]
    assert made[0] is not None
    assert (await others[2].identify(made[0].name, made[0].secret, "")).scope == "admin"


async def test_logins_while_the_setting_is_written(autojump_clock: Any) -> None:
    world = World(autojump_clock, admin_secret="chosen by us")
    elsewhere = KeyRing(world.registry, Settings(admin_secret="chosen by us"), world.keys._now_ms)
    tokens = []

    async def log_in(ring: KeyRing) -> None:
        tokens.append((await ring.open("admin")).token)

    async with trio.open_nursery() as nursery:
        for ring in (world.keys, elsewhere):
            nursery.start_soon(ring.begin)
            nursery.start_soon(log_in, ring)
    autojump_clock.jump(2)
    for token in tokens:
        assert (await world.keys.whose(token)).name == "admin"
        assert (await elsewhere.whose(token)).name == "admin"


async def test_logins_end(autojump_clock: Any) -> None:
    world = World(autojump_clock, http_login_s=1000.0)
    await world.make("a", "operator")
    first, second = await world.keys.open("a"), await world.keys.open("a")
    assert first.token != second.token and first.csrf != second.csrf
    assert (await world.keys.whose(first.token)).csrf == first.csrf
    await world.keys.close(first.token)
    with pytest.raises(AdminError):
        await world.keys.whose(first.token)
    assert (await world.keys.whose(second.token)).scope == "operator"
    autojump_clock.jump(1001)
    with pytest.raises(AdminError):
        await world.keys.whose(second.token)
    assert len(await world.registry.documents(LOGINS)) == 1
    await world.keys.tidy()
    assert await world.registry.documents(LOGINS) == {}


async def test_logins_are_bounded(autojump_clock: Any) -> None:
    world = World(autojump_clock)
    await world.make("a")
    tokens = []
    for _ in range(LOGINS_MAX + 3):
        tokens.append((await world.keys.open("a")).token)
        autojump_clock.jump(0.01)
    assert len(await world.registry.documents(LOGINS)) == LOGINS_MAX
    assert (await world.keys.whose(tokens[-1])).name == "a"
    with pytest.raises(AdminError):
        await world.keys.whose(tokens[0])


async def test_a_new_secret_ends_logins(autojump_clock: Any) -> None:
    world = World(autojump_clock)
    await world.make("a")
    login = await world.keys.open("a")
    await world.keys.whose(login.token)
    await world.make("a")
    autojump_clock.jump(2)
    with pytest.raises(AdminError):
        await world.keys.whose(login.token)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"scope": "root", "hash": "x"}', b"[" * 10_000])
async def test_documents_that_cannot_be_read_are_no_keys(autojump_clock: Any, raw: bytes) -> None:
    world = World(autojump_clock)
    await world.registry.change(KEYS, {"odd": raw})
    assert await world.refused("odd", new_secret()) == 401
    assert await world.refused("odd", "something else") == 401
    assert await world.keys.begin() is not None


def test_tokens() -> None:
    secret = new_secret()
    assert looks_generated(secret)
    assert read_token(token_of("a.b-c", secret)) == ("a.b-c", secret)
    assert read_token("rk_a_b_c") == ("a", "b_c")
    assert [read_token(text) for text in ("", "rk_", "rk_a", "rk_a_", "xx_a_b")] == [None] * 5
