"""Keys and logins as a node checks them, with a store that may be gone."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from broker.admin.api import AdminError
from broker.admin.guesses import FAILURES, TRIES, WINDOW_S
from broker.admin.key_document import (
    KeyDocument,
    fast_hash,
    looks_generated,
    new_secret,
    read_token,
    token_of,
)
from broker.admin.keyring import LOGINS_MAX, PATIENCE_S, PAUSE_S, STALE_S, KeyRing
from broker.auth.hashes import make_pbkdf2
from broker.config import Settings
from broker.errors import StoreUnavailable
from cluster.memory.registry import MemoryRegistry
from cluster.registry import KEYS, LOGINS


class Registry(MemoryRegistry):
    """Can be out of reach, and hang. `asked` counts."""

    gone = False
    hangs = False
    asked = 0

    async def _reach(self) -> None:
        self.asked += 1
        if self.hangs:
            await trio.sleep_forever()
        if self.gone:
            raise StoreUnavailable("gone")

    async def document(self, kind: str, name: str) -> bytes | None:
        await self._reach()
        return await super().document(kind, name)

    async def count(self, name: str, window_s: float) -> int:
        await self._reach()
        return await super().count(name, window_s)


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

    async def choose(self, name: str, secret: str) -> None:
        document = KeyDocument(scope="viewer", hash=make_pbkdf2(secret, 10))
        await self.registry.change(KEYS, {name: document.write()})

    def another(self) -> KeyRing:
        """Of another node."""
        return KeyRing(self.registry, Settings(), self.keys._now_ms)

    async def refused(self, name: str, secret: str, origin: str = "10.0.0.1", ring: KeyRing | None = None) -> int:
        with pytest.raises(AdminError) as caught:
            await (ring or self.keys).identify(name, secret, origin)
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing of chosen secrets that takes no time."""
    monkeypatch.setattr("broker.auth.hashes.DEFAULT_ITERATIONS", 10)


async def test_guesses_at_a_key_lock_out_nobody_else(autojump_clock: Any, quick: None) -> None:
    world = World(autojump_clock)
    await world.choose("person", "right secret")
    await world.choose("other", "other secret")
    known, unknown = world.another(), world.another()
    await known.identify("person", "right secret", "10.0.0.1")
    autojump_clock.jump(2 * WINDOW_S)
    statuses = [await world.refused("person", f"guess {number}") for number in range(TRIES)]
    assert statuses == [401] * TRIES
    assert await world.refused("person", "right secret") == 429
    # In the whole cluster: but who was right lately goes on where he was.
    assert await world.refused("person", "right secret", ring=unknown) == 429
    assert (await known.identify("person", "right secret", "10.0.0.1")).name == "person"
    # Other keys from there, and this one from elsewhere.
    assert (await world.keys.identify("other", "other secret", "10.0.0.1")).name == "other"
    assert (await world.keys.identify("person", "right secret", "10.0.0.2")).name == "person"
    autojump_clock.jump(2 * WINDOW_S)
    assert (await unknown.identify("person", "right secret", "10.0.0.1")).name == "person"


async def test_guesses_at_many_keys_are_bounded(autojump_clock: Any, quick: None) -> None:
    world = World(autojump_clock)
    await world.choose("person", "right secret")
    statuses = [await world.refused(f"name{number}", "wrong secret") for number in range(FAILURES)]
    assert statuses == [401] * FAILURES
    assert await world.refused("person", "right secret") == 429
    assert (await world.keys.identify("person", "right secret", "10.0.0.2")).name == "person"


async def test_who_asks_for_much_at_once_tries_once(autojump_clock: Any, quick: None) -> None:
    world = World(autojump_clock)
    await world.choose("person", "right secret")
    async with trio.open_nursery() as nursery:
        for _ in range(3 * TRIES):
            nursery.start_soon(world.keys.identify, "person", "right secret", "10.0.0.1")


async def test_guesses_at_once_all_count(autojump_clock: Any, quick: None) -> None:
    world = World(autojump_clock)
    await world.choose("person", "right secret")
    statuses: list[int] = []

    async def guess(number: int) -> None:
        statuses.append(await world.refused("person", f"guess {number}", ring=rings[number % 3]))

    rings = [world.another() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for number in range(3 * TRIES):
            nursery.start_soon(guess, number)
    assert statuses.count(429) == 2 * TRIES


@pytest.mark.parametrize("how", ["gone", "hangs"])
async def test_guesses_count_without_the_store(autojump_clock: Any, quick: None, how: str) -> None:
    world = World(autojump_clock, admin_secret="chosen by us")
    setattr(world.registry, how, True)
    statuses = [await world.refused("admin", f"guess {number}") for number in range(TRIES)]
    assert statuses == [401] * TRIES
    assert await world.refused("admin", "chosen by us") == 429
    assert (await world.keys.identify("admin", "chosen by us", "10.0.0.2")).name == "admin"


async def test_what_was_seen_counts_at_once_while_the_store_hangs(autojump_clock: Any) -> None:
    world = World(autojump_clock)
    secret = await world.make("seen")
    await world.keys.identify("seen", secret, "")
    login = await world.keys.open("seen")
    await world.keys.whose(login.token)
    autojump_clock.jump(10)
    world.registry.hangs = True
    began, asked = trio.current_time(), world.registry.asked
    for _ in range(100):
        await world.keys.identify("seen", secret, "")
        await world.keys.whose(login.token)
    assert trio.current_time() - began == pytest.approx(PATIENCE_S)
    assert world.registry.asked - asked == 1
    autojump_clock.jump(PAUSE_S)
    # One finds out whether it answers again, and nobody waits for that one.
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(world.keys.identify, "seen", secret, "")
    assert trio.current_time() - began == pytest.approx(PATIENCE_S)
    assert world.registry.asked - asked == 2
    world.registry.hangs = False
    await world.make("seen")
    autojump_clock.jump(PAUSE_S)
    assert await world.refused("seen", secret) == 401


async def test_an_expired_key_was_never_right(autojump_clock: Any, quick: None) -> None:
    world = World(autojump_clock)
    document = KeyDocument(
        scope="viewer", hash=make_pbkdf2("right secret", 10), expires=autojump_clock.current_time() + 10
    )
    await world.registry.change(KEYS, {"short": document.write()})
    await world.keys.identify("short", "right secret", "10.0.0.1")
    autojump_clock.jump(11)
    assert await world.refused("short", "right secret") == 401


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
