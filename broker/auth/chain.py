"""The chain of authenticators: from what a client says of itself to who it is."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from broker.auth.api import (
    ALLOW,
    ANONYMOUS,
    DENY,
    IGNORE,
    Authenticator,
    BackendError,
    ConnectRequest,
    Exchange,
    Principal,
    Verdict,
)
from broker.auth.cache import Cache, remembers
from broker.auth.checking import Busy
from broker.auth.scram import Scram
from broker.auth.template import Template, Unresolved, lookup_of
from broker.errors import ConfigError, PeerError
from broker.log import get_logger
from broker.metrics import Metrics
from broker.options.authentication import ClientAttribute
from broker.options.listener import ListenerOptions

_log = get_logger("authentication")

_OFF = ("off",)

_RESULTS = {ALLOW: "allow", DENY: "deny", IGNORE: "ignore"}


class Chain:
    """All ways to become an identity on this node."""

    def __init__(
        self,
        allow_anonymous: bool,
        authenticators: Sequence[Authenticator] = (),
        attributes: Sequence[ClientAttribute] = (),
        cache: Cache | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = Metrics() if metrics is None else metrics
        self.allow_anonymous = allow_anonymous
        self.cache = Cache(0, 0.0) if cache is None else cache
        self.authenticators = {each.name: each for each in authenticators}
        self._attributes = [(each.name, Template(each.value), re.compile(each.match)) for each in attributes]

    def asked(self, options: ListenerOptions) -> Sequence[Authenticator]:
        """Who is asked about clients of a listener, in order."""
        chosen = options.authentication
        if chosen == _OFF:
            return ()
        return [self.authenticators[name] for name in chosen] if chosen else list(self.authenticators.values())

    def methods(self, options: ListenerOptions) -> list[str]:
        """The Authentication Methods that `begin` accepts."""
        return [method for each in self.asked(options) for method in each.exchanges()]

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The background work of all."""
        async with trio.open_nursery() as nursery:
            for each in self.authenticators.values():
                await nursery.start(_served, each)
            task_status.started()
            await trio.sleep_forever()

    def files(self) -> list[Path]:
        """Files that `reload` reads."""
        return [path for each in self.authenticators.values() for path in each.files()]

    def reload(self) -> None:
        """Read all files again. ConfigError names those that are wrong: they count as before."""
        wrong: list[str] = []
        for each in self.authenticators.values():
            try:
                each.reload()
            except ConfigError as error:
                wrong.append(str(error))
        self.cache.clear()
        if wrong:
            raise ConfigError("; ".join(wrong))

    async def refresh(self) -> None:
        """Documents of the registry changed: what is kept of them in memory is read again. Raises ClusterError."""
        try:
            for each in self.authenticators.values():
                await each.refresh()
        finally:
            self.cache.clear()

    async def authenticate(self, request: ConnectRequest, options: ListenerOptions) -> Principal:
        """Who sent a CONNECT without an Authentication Method; PeerError 0x86, 0x87 or 0x88 for nobody."""
        asked = self.asked(options)
        key = self.cache.key(request, asked)
        generation = self.cache.generation
        if key is not None and (known := self.cache.get(key)) is not None:
            self.count(known[0], "remembered")
            return self.principal(request, known[1], known[0])
        remembered = key is not None
        for index, each in enumerate(asked):
            began = time.perf_counter()
            try:
                verdict = await each.authenticate(request)
            except BackendError as error:
                self.count(each.name, "error")
                raise _unavailable(each, error) from None
            finally:
                self.metrics.authentication_seconds[each.name].observe(time.perf_counter() - began)
            self.count(each.name, _RESULTS[verdict.decision])
            remembered = remembered and remembers(each)
            if verdict.decision == ALLOW:
                if key is not None and remembered:
                    self.cache.put(key, each.name, verdict, generation)
                return self.principal(request, verdict, each.name)
            if verdict.decision == DENY:
                await self._spend(request, asked[index + 1 :])
                break
        else:
            stranger = self.stranger(request, options, bool(asked))
            if stranger is not None:
                self.count("anonymous", "allow")
                return stranger
        if request.username is None and request.password is None:
            raise PeerError(0x87, "credentials are needed here")
        raise PeerError(0x86, "bad user name or password")

    def stranger(self, request: ConnectRequest, options: ListenerOptions, asked: bool = False) -> Principal | None:
        """Who sent a CONNECT that nobody said anything of (with `asked` somebody was asked); None for nobody."""
        if not self._lets_strangers_in(request, options, asked):
            return None
        return self.principal(request, Verdict(ALLOW, ANONYMOUS), "")

    def count(self, authenticator: str, result: str) -> None:
        """An authenticator answered."""
        self.metrics.authentication[f"{authenticator},{result}"] += 1

    async def _spend(self, request: ConnectRequest, others: Sequence[Authenticator]) -> None:
        """A refusal takes as long as if nobody had known the user."""
        for each in others:
            try:
                await each.spend(request)
            except BackendError as error:
                raise _unavailable(each, error) from None

    def _lets_strangers_in(self, request: ConnectRequest, options: ListenerOptions, asked: bool) -> bool:
        """Where somebody is asked, a claimed name that nobody confirmed is no anonymous client.

        Where nobody is, everybody comes in: the configuration is refused if other machines can reach such a listener
        and nothing in it says that this is meant."""
        said = options.anonymous != "default" or not asked
        allowed = options.anonymous != "false" if said else self.allow_anonymous
        return allowed and not (asked and request.username is not None)

    def begin(self, method: str, request: ConnectRequest, options: ListenerOptions) -> tuple[Exchange, str]:
        """Start an enhanced authentication, and who does it; PeerError 0x8C if nobody knows the method.

        For a re-authentication the user name in `request` is that of the connection, so that it cannot become
        somebody else half way.
        """
        found = [
            (known, each.name) for each in self.asked(options) if (known := each.exchanges().get(method)) is not None
        ]
        sources = [source for known, _ in found if isinstance(known, Scram) for source in known.sources]
        for known, name in found:
            if isinstance(known, Scram):  # whoever has the user: the verdict says who it was
                known = Scram(known.mechanism, sources)
            return known.begin(request), name
        raise PeerError(0x8C, f"unknown authentication method {method!r:.60}")  # [MQTT-4.12.0-1]

    def principal(self, request: ConnectRequest, verdict: Verdict, authenticator: str) -> Principal:
        """Who the client is from now on."""
        proved = verdict.username if verdict.username is not None else request.username or ANONYMOUS
        client_id = verdict.client_id if verdict.client_id is not None else request.client_id
        made = Principal(
            proved,
            client_id,
            request.peer,
            proved or None,  # what a client calls itself where nobody checks it is no name
            superuser=verdict.superuser,
            rules=verdict.rules,
            expires_at_s=verdict.expires_at_s,
            credential=verdict.credential,
            authenticator=verdict.authenticator or authenticator,
        )
        made.attributes = {**self._initial(made), **verdict.attributes}
        return made

    def _initial(self, principal: Principal) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name, template, match in self._attributes:
            try:
                value = template.render(lookup_of(principal, found))
            except Unresolved:
                continue
            if match.pattern:
                matched = match.search(value)
                if matched is None or not matched[1]:
                    continue
                value = matched[1]
            found[name] = value
        return found

    async def still_valid(self, principal: Principal) -> bool:
        """Whether the client would be let in again; True where its authenticator cannot tell now."""
        each = self.authenticators.get(principal.authenticator)
        if each is None:
            return not principal.authenticator
        try:
            return await each.still_valid(principal)
        except BackendError as error:
            _log.warning("authentication.unavailable", authenticator=each.name, error=str(error))
            return True


def _unavailable(authenticator: Authenticator, error: BackendError) -> PeerError:
    if not isinstance(error, Busy):  # that says it itself, once
        _log.warning("authentication.unavailable", authenticator=authenticator.name, error=str(error))
    return PeerError(0x88, "authentication is not possible now")


async def _served(each: Authenticator, *, task_status: trio.TaskStatus[None]) -> None:
    await each.serve(task_status=task_status)
