"""The ports of authentication and authorization, and what passes through them.

An authenticator answers a CONNECT with a `Verdict`: ALLOW, DENY or IGNORE (somebody else may know the client). The
chain (`broker.auth.chain`) makes a `Principal` of the first that is not IGNORE. A rule source answers a question
about a topic in the same three ways; `broker.auth.permissions` asks them in order for one principal.

The connection learns of refusals as `PeerError`:

- 0x86 bad user name or password
- 0x87 not authorized (no credentials where some are needed; an enhanced authentication that failed)
- 0x88 server unavailable (who had to be asked could not be reached: nobody else is asked in its place)
- 0x8A banned
- 0x8C bad authentication method (not known here)

The texts of these errors may reach the client: they are the same for an unknown user and for a wrong password.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

import trio

from broker.errors import BrokerError
from broker.peer import Peer

if TYPE_CHECKING:
    from broker.auth.judging import Entry

ANONYMOUS: Final = ""
"""The one identity of all clients that nobody checked; no mechanism may hand it out for a user."""

ALLOW: Final = 1
DENY: Final = 2
IGNORE: Final = 0

PUBLISH: Final = 1
SUBSCRIBE: Final = 2
#: A message is about to be delivered.
READ: Final = 4

NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})


class BackendError(BrokerError):
    """Who has to be asked cannot be reached, or gave no answer that makes sense. The text is for the log only."""


class ConnectRequest:
    """What a client says of itself in CONNECT, and who it is to the transport. Authenticators do not change it."""

    __slots__ = ("client_id", "password", "peer", "user_properties", "username", "version")

    def __init__(
        self,
        client_id: str,
        username: str | None,
        password: bytes | None,
        peer: Peer,
        version: int = 5,
        user_properties: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.client_id = client_id
        self.username = username
        self.password = password
        self.peer = peer
        #: 3, 4 or 5.
        self.version = version
        self.user_properties = user_properties


class Rule(Protocol):
    """One rule; `broker.auth.rules.rule_from` makes them."""

    def entries(self, principal: Principal) -> Sequence[Entry]:
        """What it means for a client: one entry per topic, none if it is not about it."""
        ...


class Verdict:
    """The answer of an authenticator.

    With ALLOW, `username` is the name that was proved (never ANONYMOUS; None: the one in CONNECT), `client_id`
    replaces that of the client if not None, `expires_at_s` (epoch) is when the connection ends, `rules` are those that
    came with the credentials (None: none came), and `credential` is a digest of what was checked against, so that a
    change of it can be noticed by `still_valid`. `authenticator` is set where it is not the one that was asked.
    """

    __slots__ = (
        "attributes",
        "authenticator",
        "client_id",
        "credential",
        "decision",
        "expires_at_s",
        "rules",
        "superuser",
        "username",
    )

    def __init__(
        self,
        decision: int,
        username: str | None = None,
        *,
        client_id: str | None = None,
        superuser: bool = False,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        rules: Sequence[Rule] | None = None,
        expires_at_s: float | None = None,
        credential: bytes = b"",
    ) -> None:
        self.decision = decision
        self.username = username
        self.client_id = client_id
        self.superuser = superuser
        self.attributes = attributes
        self.rules = rules
        self.expires_at_s = expires_at_s
        self.credential = credential
        self.authenticator = ""


IGNORED: Final = Verdict(IGNORE)
DENIED: Final = Verdict(DENY)


class Principal:
    """Who a connection is, from CONNACK on. `identity` owns the session (G19): the proved name, or ANONYMOUS.

    `username` is what `${username}` stands for: the proved name, None for a client that nobody checked, whatever it
    claims. `authenticator` is the name of the one that let it in, "" for none.
    """

    __slots__ = (
        "attributes",
        "authenticator",
        "client_id",
        "credential",
        "expires_at_s",
        "identity",
        "peer",
        "rules",
        "superuser",
        "username",
    )

    def __init__(
        self,
        identity: str,
        client_id: str,
        peer: Peer,
        username: str | None = None,
        *,
        superuser: bool = False,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        rules: Sequence[Rule] | None = None,
        expires_at_s: float | None = None,
        credential: bytes = b"",
        authenticator: str = "",
    ) -> None:
        self.identity = identity
        self.client_id = client_id
        self.peer = peer
        self.username = username
        self.superuser = superuser
        self.attributes = attributes
        self.rules = rules
        self.expires_at_s = expires_at_s
        self.credential = credential
        self.authenticator = authenticator


class Step:
    """One answer of an exchange: the Authentication Data to send, and the verdict once `done`.

    Not done: send AUTH 0x18 with `data`. Done: CONNACK (or AUTH 0x00 after a re-authentication) carries `data`.
    """

    __slots__ = ("data", "done", "verdict")

    def __init__(self, data: bytes, verdict: Verdict | None = None) -> None:
        self.data = data
        self.done = verdict is not None
        self.verdict = verdict


class Exchange(Protocol):
    """One enhanced authentication of one client; after a failure or the end every further step fails."""

    async def step(self, data: bytes) -> Step:
        """Take the client's next Authentication Data; PeerError 0x87 if it does not authenticate."""
        ...


class Authenticator(Protocol):
    """One link of the chain. `name` is unique among them: the option `name`, else the type.

    `cached`: the placeholders that its decision depends on beside user name and password, for `broker.auth.cache`;
    None: its verdicts are not to be remembered."""

    name: str
    cached: frozenset[str] | None

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """Decide, with the same work for unknown users and for wrong passwords. Raises BackendError.

        Whatever costs more than some microseconds happens in threads (with a limiter), or by awaiting."""
        ...

    async def spend(self, request: ConnectRequest) -> None:
        """Take the time that an unknown user takes, without asking anybody: somebody else has refused the client, and
        the time of the answer shall not tell who. May raise BackendError."""
        ...

    async def still_valid(self, principal: Principal) -> bool:
        """Whether it would let in again whom it let in: asked for every client after users or files changed.

        Cheap (no password is at hand): the user exists, is enabled, and its `credential` is the same."""
        ...

    def exchanges(self) -> Mapping[str, EnhancedAuthenticator]:
        """Authentication Methods of MQTT 5 that it knows, by name."""
        ...

    def files(self) -> Sequence[Path]:
        """Files that `reload` reads: it is called after one of them changed."""
        ...

    def reload(self) -> None:
        """Read files again, in whatever thread; on ConfigError everything stays as it was."""
        ...

    async def refresh(self) -> None:
        """Documents of the registry changed: those that are kept in memory are read again. Raises ClusterError."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Background work (connections, refreshing keys) until cancelled; started before the first CONNECT."""
        ...


class EnhancedAuthenticator(Protocol):
    """One Authentication Method of MQTT 5."""

    def begin(self, request: ConnectRequest) -> Exchange:
        """Start an exchange; with a user name in `request` only that user may come out of it."""
        ...


class RuleSource(Protocol):
    """One source of the authorization chain.

    `steady`: answers of its judges stay the same until `refresh`, `reload` or a judge's `changed` says otherwise, so
    that they may be remembered. `generation` is another number when `reload` or `refresh` found other rules."""

    name: str
    steady: bool
    generation: int

    async def open(self, principal: Principal) -> Judge:
        """Whatever it needs to answer for this principal, at once from then on where possible. Raises BackendError."""
        ...

    def files(self) -> Sequence[Path]:
        """Files that `reload` reads: it is called after one of them changed."""
        ...

    def reload(self) -> None:
        """Read files again, in whatever thread; on ConfigError everything stays as it was."""
        ...

    async def refresh(self) -> None:
        """Documents of the registry changed: those that are kept in memory are read again. Raises ClusterError."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """As `Authenticator.serve`."""
        ...


class Judge(Protocol):
    """A rule source for one principal.

    `changed` is set by who asks, and called (in a turn of the node) when answers may be others from then on."""

    changed: Callable[[], None] | None

    def decide(self, action: int, topic: str, qos: int, retain: bool) -> int | None:
        """ALLOW, DENY or IGNORE; None if `ask` has to be awaited. Never None for READ.

        `topic` is a topic name for PUBLISH and READ, a topic filter (without `$share/NAME/`) for SUBSCRIBE. ALLOW for a
        filter means: the client may have it, what it may not READ of it is kept from it on delivery.
        """
        ...

    def covers(self, topic_filter: str) -> bool:
        """Whether every topic that matches the filter may be READ, whatever the topic: then no delivery is checked."""
        ...

    async def ask(self, action: int, topic: str, qos: int, retain: bool) -> int:
        """The answer that `decide` did not have; it has it from now on, for a while. Raises BackendError."""
        ...
