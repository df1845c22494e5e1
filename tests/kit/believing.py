"""An authenticator for tests of rules: everybody is who they say. A name that nobody proved would be none to rules."""

from __future__ import annotations

from broker.hooks import ALLOW, ConnectRequest, Verdict

#: Options of a node; clients without a name come in too, as nobody.
BELIEVING = ("--hooks", "hook?target=tests.kit.believing:Believing", "--allow-anonymous")


class Believing:
    """A hook."""

    def __init__(self, options: str) -> None:
        assert not options

    async def authenticate(self, request: ConnectRequest) -> Verdict | None:
        return Verdict(ALLOW, request.username) if request.username else None
