"""Users in the cluster's registry: documents of the kind `users`, made by `rookery ctl users`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import trio

from broker.auth import scram
from broker.auth.api import BackendError, ConnectRequest, Principal
from broker.auth.decoys import Models
from broker.auth.hashes import parse_hash
from broker.auth.users import DirectoryAuthenticator, Entry, canonical
from broker.errors import ClusterError, ConfigError
from broker.log import get_logger
from broker.options.authentication import StoredUsers
from cluster.registry import USERS, Registry

_log = get_logger("authentication")


class UserDocument:
    """What a document says, checked as far as one can without making a hash of it."""

    __slots__ = ("attributes", "disabled", "password", "scram", "superuser")

    def __init__(
        self,
        password: str = "",
        scram: Sequence[str] = (),
        superuser: bool = False,
        disabled: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        self.password = password
        self.scram = list(scram)
        self.superuser = superuser
        self.disabled = disabled
        self.attributes = dict(attributes or {})

    @classmethod
    def read(cls, raw: bytes) -> UserDocument:
        """ValueError for what is none; keys of later versions are passed over."""
        try:
            found = json.loads(raw)
        except RecursionError:
            raise ValueError("JSON that is nested too deep") from None
        if not isinstance(found, dict):
            raise ValueError("not an object")
        password, verifiers = found.get("password", ""), found.get("scram", [])
        attributes = found.get("attributes", {})
        if not isinstance(password, str) or not isinstance(verifiers, list) or not isinstance(attributes, dict):
            raise ValueError("password, scram or attributes is of the wrong type")
        if not all(isinstance(text, str) for text in (*verifiers, *attributes.values())):
            raise ValueError("scram or attributes holds something else than text")
        superuser, disabled = found.get("superuser", False), found.get("disabled", False)
        if not isinstance(superuser, bool) or not isinstance(disabled, bool):
            raise ValueError("superuser or disabled is not true or false")
        return cls(password, verifiers, superuser, disabled, attributes)

    def write(self) -> bytes:
        """The document."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, sort_keys=True).encode()

    def entry(self, username: str) -> Entry:
        """As the authenticator uses it; ValueError, ConfigError for a hash that it cannot."""
        password = parse_hash(self.password) if self.password else None
        return Entry(
            password,
            [scram.parse_verifier(text) for text in self.scram],
            username=username,
            superuser=self.superuser,
            disabled=self.disabled,
            attributes=self.attributes,
        )


class StoredDirectory:
    """Asks the store for each client: a user that was just made is known at once."""

    __slots__ = ("_registry",)

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry

    async def find(self, request: ConnectRequest, username: str) -> Entry | None:
        """See `Directory`."""
        return await self.entry(username)

    async def entry(self, username: str) -> Entry | None:
        """A user; a document that cannot be read is a user that nobody can be. Raises BackendError."""
        name = canonical(username)
        if not name or self._registry is None:
            return None
        try:
            raw = await self._registry.document(USERS, name)
        except ClusterError as error:
            raise BackendError(str(error)) from error
        return None if raw is None else read_entry(name, raw)


def read_entry(name: str, raw: bytes, told: bool = False) -> Entry:
    """The user of a document; disabled if it is broken, which the log says unless it was `told` before."""
    try:
        return UserDocument.read(raw).entry(name)
    except (ValueError, ConfigError) as error:
        if not told:
            _log.warning("authentication.user_unreadable", username=name, error=str(error)[:200])
        return Entry(None, disabled=True, username=name)


class StoredUserAccounts(DirectoryAuthenticator):
    """Implements `Authenticator`.

    In memory it keeps a digest of each user, for `still_valid` to answer at once for every client there is.
    """

    #: The decision depends on nothing but user name and password.
    cached: frozenset[str] | None = frozenset()

    def __init__(self, options: StoredUsers, registry: Registry | None) -> None:
        self._users = StoredDirectory(registry)
        super().__init__(options.label, self._users, registry)
        self._registry = registry
        self._credentials: dict[str, bytes] = {}
        #: Documents of users that are disabled: some cannot be read, and the log has said so.
        self._disabled: dict[str, bytes] = {}

    def _seen(self, entry: Entry) -> None:
        pass  # the models are all users

    async def still_valid(self, principal: Principal) -> bool:
        """See `Authenticator`."""
        if self._credentials.get(principal.identity) == principal.credential:
            return True
        # It may have come with a document that is newer than what was read last.
        entry = await self._users.entry(principal.identity)
        return entry is not None and not entry.disabled and entry.credential == principal.credential

    async def refresh(self) -> None:
        """See `Base`. Raises ClusterError."""
        await super().refresh()
        if self._registry is None:
            return
        documents = await self._registry.documents(USERS)
        credentials: dict[str, bytes] = {}
        disabled: dict[str, bytes] = {}
        models = Models()
        for number, (name, raw) in enumerate(sorted(documents.items())):
            if number % 100 == 0:
                await trio.lowlevel.checkpoint()
            entry = read_entry(name, raw, self._disabled.get(name) == raw)
            models.add(entry.password, entry.verifiers)
            if not entry.disabled:
                credentials[name] = entry.credential
            elif entry.password is None:
                disabled[name] = raw
        self._credentials, self._models, self._disabled = credentials, models, disabled

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Authenticator`."""
        try:
            await self.refresh()
        except ClusterError as error:
            # The node goes on: whoever watches the version of the documents will refresh once the store answers.
            _log.warning("authentication.users_unread", authenticator=self.name, error=str(error))
        task_status.started()
        await trio.sleep_forever()
