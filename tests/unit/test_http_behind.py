"""Behind proxies: which client and which scheme the apps of the HTTP port see."""

from __future__ import annotations

import pytest
from starlette.types import Receive, Scope, Send

from broker.admin.api import AdminError
from broker.http.behind import Behind
from broker.http.guests import GUEST, Guests
from broker.transport.forwarded import Trusted

TRUSTED = Trusted(("10.0.0.0/8",))


async def seen(
    client: tuple[str, int] | None, headers: list[tuple[str, str]], trusted: Trusted = TRUSTED
) -> tuple[object, object]:
    """Client and scheme that the app behind finds."""
    found: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(scope)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    asked: Scope = {"type": "http", "client": client, "scheme": "http", "path": "/", "headers": raw}
    await Behind(app, trusted, Guests())(asked, None, None)  # type: ignore[arg-type]
    [scope] = found
    return scope["client"], scope["scheme"]


PROXY = ("10.0.0.1", 7)
STRANGER = ("192.0.2.9", 7)
FOR, PROTO = "x-forwarded-for", "x-forwarded-proto"


@pytest.mark.parametrize(
    "client, headers, expected",
    [
        (PROXY, [], (PROXY, "http")),
        (PROXY, [(FOR, "192.0.2.1"), (PROTO, "https")], (("192.0.2.1", 0), "https")),
        (PROXY, [(FOR, "6.6.6.6, 192.0.2.1, 10.2.2.2")], (("192.0.2.1", 0), "http")),
        (PROXY, [(FOR, "6.6.6.6"), (FOR, "192.0.2.1")], (("192.0.2.1", 0), "http")),
        (PROXY, [(FOR, "192.0.2.1, nonsense")], (PROXY, "http")),
        (PROXY, [(PROTO, "https, http")], (PROXY, "http")),  # the nearest one's word
        (PROXY, [(PROTO, "http"), (PROTO, " HTTPS ")], (PROXY, "https")),
        (PROXY, [(PROTO, "gopher")], (PROXY, "http")),
        (PROXY, [(PROTO, "https\xa0\xff")], (PROXY, "http")),
        (PROXY, [("forwarded", "for=192.0.2.1;proto=https"), ("x-real-ip", "192.0.2.1")], (PROXY, "http")),
        # Anybody can send these.
        (STRANGER, [(FOR, "192.0.2.1"), (PROTO, "https")], (STRANGER, "http")),
        (STRANGER, [(FOR, "10.0.0.1"), (PROTO, "https")], (STRANGER, "http")),
        (None, [(FOR, "192.0.2.1"), (PROTO, "https")], (None, "http")),
    ],
)
async def test_what_counts(
    client: tuple[str, int] | None, headers: list[tuple[str, str]], expected: tuple[object, object]
) -> None:
    assert await seen(client, headers) == expected


async def test_nobody_is_trusted_by_default() -> None:
    headers = [(FOR, "192.0.2.1"), (PROTO, "https")]
    assert await seen(("127.0.0.1", 7), headers, Trusted(())) == (("127.0.0.1", 7), "http")


async def test_one_client_cannot_have_all_connections_of_the_proxy() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["client"][0])

    served: list[str] = []
    guests = Guests(most=10, of_address=1)
    behind = Behind(app, TRUSTED, guests)
    for host, allowed in (("192.0.2.1", True), ("192.0.2.1", False), ("192.0.2.2", True)):
        guest = guests.admit("")
        assert guest is not None
        headers = [(b"x-forwarded-for", host.encode())]
        scope = {"type": "http", "client": PROXY, "scheme": "http", "headers": headers, "state": {GUEST: guest}}
        if allowed:
            await behind(scope, None, None)  # type: ignore[arg-type]
            guest.served = True
        else:
            with pytest.raises(AdminError) as caught:
                await behind(scope, None, None)  # type: ignore[arg-type]
            assert caught.value.status == 429
    assert served == ["192.0.2.1", "192.0.2.2"]
