"""Users of a file."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from broker.auth.api import ALLOW, DENIED, IGNORED, ConnectRequest, EnhancedAuthenticator, Principal, Verdict
from broker.auth.scram import METHOD, ScramSha256
from broker.auth.users import UserFile, UserFilePasswords
from broker.errors import PeerError
from broker.options.authentication import PasswordFile


class PasswordFileUsers:
    """Implements `Authenticator`."""

    def __init__(self, options: PasswordFile) -> None:
        self.name = options.label
        self._users = UserFile(options.path)
        self._passwords = UserFilePasswords(self._users)

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        if request.username is None:
            return IGNORED
        try:
            return Verdict(ALLOW, await self._passwords.authenticate(request.username, request.password or b""))
        except PeerError:
            return DENIED

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`."""
        return not self._users.lookup(principal.identity).decoy

    def exchanges(self) -> Mapping[str, EnhancedAuthenticator]:
        """See `Authenticator`."""
        return {METHOD: ScramSha256(self._users)}

    def reload(self) -> None:
        """See `Authenticator`."""
        self._users.reload()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        task_status.started()
        await trio.sleep_forever()
