"""Clients who are known by the pre-shared key of their TLS connection."""

from __future__ import annotations

from broker.auth.api import ALLOW, IGNORED, ConnectRequest, Principal, Verdict
from broker.auth.base import BaseAuthenticator
from broker.options.authentication import PresharedKeys


class PresharedKeyUsers(BaseAuthenticator):
    """Implements `Authenticator`: the identity of the key is the user name, whatever CONNECT says."""

    def __init__(self, options: PresharedKeys) -> None:
        super().__init__(options.label)

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        identity = request.peer.psk_identity
        return Verdict(ALLOW, identity) if identity else IGNORED

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`: a key is checked when the connection begins."""
        return bool(principal.peer.psk_identity)
