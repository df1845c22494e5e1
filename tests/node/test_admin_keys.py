"""Keys that expired: neither in the way nor brought back by mistake."""

from __future__ import annotations

from broker.admin.key_document import KeyDocument, fast_hash, new_secret
from cluster.registry import KEYS
from tests.node.admin_kit import Desk, desk


async def expired(ask: Desk, name: str) -> str:
    """Its secret."""
    secret = new_secret()
    document = KeyDocument(scope="operator", hash=fast_hash(secret), expires=ask.office.keys.now_s - 10)
    await ask.office.registry.change(KEYS, {name: document.write()})
    return secret


async def test_an_expired_key_gets_a_new_secret_with_a_new_end_only(autojump_clock: object) -> None:
    async with desk() as ask:
        await expired(ask, "old")
        before = await ask.office.registry.documents(KEYS)
        status, text = await ask.refused("keys.rotate", name="old")
        assert status == 409 and "expires_in_s" in text
        assert await ask.office.registry.documents(KEYS) == before
        made = await ask("keys.rotate", name="old", expires_in_s=100)
        assert (await ask.office.keys.identify("old", made["secret"], "")).scope == "operator"
        # While it counts it ends when it would have ended.
        again = await ask("keys.rotate", name="old")
        assert again["expires_at_ms"] == made["expires_at_ms"]


async def test_the_name_of_an_expired_key_is_free(autojump_clock: object) -> None:
    async with desk() as ask:
        secret = await expired(ask, "old")
        made = await ask("keys.create", name="old", scope="viewer")
        assert (await ask.office.keys.identify("old", made["secret"], "")).scope == "viewer"
        assert made["secret"] != secret
        assert (await ask.refused("keys.create", name="old", scope="viewer"))[0] == 409
        [listed] = (await ask("keys.list"))["items"]
        assert (listed["scope"], listed["expires_at_ms"]) == ("viewer", None)
