"""Hooks at work: every call has an end, and what goes wrong in one is counted and hurts nobody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import trio

from broker.auth.api import (
    ALLOW,
    DENIED,
    DENY,
    IGNORE,
    IGNORED,
    PUBLISH,
    BackendError,
    ConnectRequest,
    Principal,
    Verdict,
)
from broker.auth.asking import AskingSource, Momentary, Question
from broker.auth.base import BaseAuthenticator
from broker.codec.packets import Properties
from broker.codec.publish import forwardable_to_properties, properties_to_forwardable
from broker.errors import BrokerError, PeerError
from broker.hooks import Message as HookMessage
from broker.hooks import Refused
from broker.hooks.loading import METHODS, load
from broker.log import get_logger
from broker.message import Message
from broker.metrics import Metrics
from broker.options.hooks import Hook

_log = get_logger("hooks")

#: Reason codes that CONNACK knows for a client that is turned away.
_REFUSALS: Final = frozenset({0x80, 0x85, 0x86, 0x87, 0x88, 0x8A, 0x97, 0x9C, 0x9D, 0x9F})
#: Messages that wait to be told of may not hold more memory than this.
_WAITING_BYTES: Final = 16 * 1024 * 1024
#: The last moment that a connection may be said to end at (epoch): the end of the year 9999.
LAST_S: Final = 253_402_300_800
#: How long what is waiting at the end is still told.
_LAST_S: Final = 1.0


class Failed(Exception):
    """A call that failed or took too long, and where failing means no."""


class _Tell(NamedTuple):
    """Something that a hook is told, and nobody waits for."""

    method: str
    client: Principal
    what: Message | str

    @property
    def size(self) -> int:
        return len(self.what) if isinstance(self.what, str) else self.what.size()


class RunningHook:
    """One hook: its calls, with their time-out, its queue of what it is told, and its failures."""

    def __init__(self, options: Hook, metrics: Metrics) -> None:
        self.name = options.label
        self.refresh_s = options.refresh_s
        hook = load(options)
        self.methods: dict[str, Callable[..., Awaitable[Any]]] = {
            name: getattr(hook, name) for name in METHODS if getattr(hook, name, None) is not None
        }
        self._timeout_s = options.timeout_s
        self._denies = options.on_error == "deny"
        self._counted = metrics.hooks
        self._logged: set[tuple[str, str]] = set()
        #: How many calls failed.
        self.failures = 0
        self._waiting_bytes = 0
        self._send, self._waiting = trio.open_memory_channel[_Tell](options.queue)

    async def call(self, method: str, good: Callable[[Any], bool], *arguments: object) -> Any:
        """The answer of a method, which has to be `good`. None (it has no opinion) for a call that fails where failing
        is to be ignored, Failed where it is to count as no."""
        kind = "timeout"
        try:
            with trio.move_on_after(self._timeout_s):
                answer = await self.methods[method](*arguments)
                if good(answer):
                    return answer
                kind = f"answer of type {type(answer).__name__}"
        except (Refused, BackendError):
            raise
        except (Exception, SystemExit) as error:
            self._failed(method, type(error).__name__, True)
            self._give_up(method, type(error).__name__)
        else:
            self._failed(method, kind, False)
            self._give_up(method, kind)
        return None

    def failed(self, method: str, error: Exception) -> None:
        """An answer that looked well cannot be used; Failed where that is to count as no."""
        self._failed(method, type(error).__name__, False)
        self._give_up(method, str(error))

    def _give_up(self, method: str, kind: str) -> None:
        if self._denies:
            raise Failed(f"{method}: {kind}")

    def _failed(self, method: str, kind: str, trace: bool) -> None:
        self.failures += 1
        self._counted[f"{self.name},{method},{'timeout' if kind == 'timeout' else 'error'}"] += 1
        if (method, kind) not in self._logged and len(self._logged) < 100:
            self._logged.add((method, kind))
            # The traceback is the author's; later ones of the kind are only counted.
            _log.error("hook.failed", hook=self.name, method=method, error=kind, exc_info=trace)

    def tell(self, method: str, client: Principal, what: Message | str) -> None:
        """Tell it later, in order; if too much is waiting, not at all."""
        told = _Tell(method, client, what)
        try:
            if self._waiting_bytes > _WAITING_BYTES:
                raise trio.WouldBlock
            self._send.send_nowait(told)
            self._waiting_bytes += told.size
        except (trio.WouldBlock, trio.BrokenResourceError):
            self._counted[f"{self.name},{method},dropped"] += 1

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell it what is waiting."""
        task_status.started()
        try:
            async for told in self._waiting:
                await self._told(told)
        finally:
            with trio.move_on_after(_LAST_S, shield=True):
                while True:
                    try:
                        told = self._waiting.receive_nowait()
                    except trio.WouldBlock:
                        break
                    await self._told(told)

    async def _told(self, told: _Tell) -> None:
        self._waiting_bytes -= told.size
        what = told.what if isinstance(told.what, str) else shown(told.what)
        try:
            await self.call(told.method, _anything, told.client, what)
        except (Failed, Refused, BackendError):
            return


class Hooks:
    """All hooks of a node, in the order of the configuration; the flags say whether any has the method."""

    def __init__(self, configured: Sequence[Hook], metrics: Metrics | None = None) -> None:
        self.running = [RunningHook(options, metrics if metrics is not None else Metrics()) for options in configured]
        self.connects = bool(self._with("connect"))
        self.publishes = bool(self._with("publish"))
        self.delivers = bool(self._with("deliver"))
        self.disconnects = bool(self._with("disconnect"))
        self._delivering = self._with("deliver")
        self._publishing = self._with("publish")

    def _with(self, method: str) -> list[RunningHook]:
        return [hook for hook in self.running if method in hook.methods]

    def authenticators(self) -> list[HookAuthenticator]:
        """One for each hook with `authenticate`."""
        return [HookAuthenticator(hook) for hook in self._with("authenticate")]

    def sources(self) -> list[HookSource]:
        """One for each hook with `authorize`."""
        return [HookSource(hook) for hook in self._with("authorize")]

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell hooks what they only hear of."""
        async with trio.open_nursery() as nursery:
            for hook in self.running:
                nursery.start_soon(hook.serve)
            task_status.started()

    async def connect(self, request: ConnectRequest) -> None:
        """A client wants to connect; PeerError if a hook turns it away."""
        for hook in self._with("connect"):
            try:
                answer = await hook.call("connect", _is_opinion, request)
            except Refused as refused:
                code = refused.reason_code if refused.reason_code in _REFUSALS else 0x87
                raise PeerError(code, refused.text) from None
            except (Failed, BackendError):
                raise PeerError(0x88, "connecting is not possible now") from None
            if answer is False:
                raise PeerError(0x87, "refused")

    async def publish(self, principal: Principal, message: Message) -> Message | None:
        """The message that takes the place of `message`, mostly itself; None: it is refused. Never raises."""
        for hook in self._publishing:
            try:
                answer = await hook.call("publish", _is_message, principal, shown(message))
                if answer is False:
                    return None
                if isinstance(answer, HookMessage):
                    try:
                        message = changed(message, answer)
                    except (TypeError, ValueError, AttributeError, BrokerError) as error:
                        hook.failed("publish", error)
            except (Failed, Refused, BackendError):
                return None
        return message

    def delivered(self, principal: Principal, message: Message) -> None:
        """A message was written to a connection."""
        for hook in self._delivering:
            hook.tell("deliver", principal, message)

    def disconnected(self, principal: Principal, reason: str) -> None:
        """A client that was let in is gone."""
        for hook in self._with("disconnect"):
            hook.tell("disconnect", principal, reason)


class HookAuthenticator(BaseAuthenticator):
    """Implements `Authenticator` with a hook."""

    def __init__(self, hook: RunningHook) -> None:
        super().__init__(hook.name)
        self._hook = hook

    async def authenticate(self, request: ConnectRequest) -> Verdict:
        """See `Authenticator`."""
        try:
            answer = await self._hook.call("authenticate", _is_verdict, request)
            if answer is None:
                return IGNORED
            if isinstance(answer, Verdict):
                return answer
            return Verdict(ALLOW) if answer else DENIED
        except Failed as error:
            raise BackendError(f"hook {error}") from None
        except Refused:
            return DENIED


class HookSource(AskingSource):
    """Implements `RuleSource` with a hook."""

    def __init__(self, hook: RunningHook) -> None:
        super().__init__(hook.name, hook.refresh_s)
        self._hook = hook

    async def question(self, principal: Principal, asked: Question) -> int:
        """See `AskingSource`; what a hook has no opinion of because it failed is asked again next time."""
        action, topic, qos, retain = asked
        word = "publish" if action == PUBLISH else "subscribe"
        failures = self._hook.failures
        try:
            answer = await self._hook.call("authorize", _is_opinion, principal, word, topic, qos, retain)
        except Refused:
            return DENY
        except Failed as error:
            raise BackendError(f"hook {error}") from None
        if answer is None:
            if self._hook.failures != failures:
                raise Momentary(IGNORE)
            return IGNORE
        return ALLOW if answer else DENY


def _anything(answer: object) -> bool:
    return True


def _is_opinion(answer: object) -> bool:
    return answer is None or isinstance(answer, bool)


def _is_message(answer: object) -> bool:
    return _is_opinion(answer) or isinstance(answer, HookMessage)


def _is_verdict(answer: object) -> bool:
    return _is_sound(answer) if isinstance(answer, Verdict) else _is_opinion(answer)


def _is_sound(verdict: Verdict) -> bool:
    """Whether it is what it says that it is: what is not would be found out when the client is let in."""
    superuser: object = verdict.superuser
    ends_s: object = verdict.expires_at_s
    attributes: object = verdict.attributes
    rules: object = verdict.rules
    credential: object = verdict.credential
    return (
        verdict.decision in (ALLOW, DENY, IGNORE)
        and all(each is None or _is_text(each) for each in (verdict.username, verdict.client_id))
        and isinstance(superuser, bool)
        and (ends_s is None or (isinstance(ends_s, int | float) and ends_s is not True and 0 <= ends_s <= LAST_S))
        and isinstance(attributes, Mapping)
        and all(isinstance(text, str) for pair in attributes.items() for text in pair)
        and (rules is None or (isinstance(rules, Sequence) and all(hasattr(rule, "entries") for rule in rules)))
        and isinstance(credential, bytes)
    )


def _is_text(value: object) -> bool:
    """Text that MQTT can carry, and some."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        return len(value.encode()) <= 65535
    except UnicodeEncodeError:
        return False


def shown(message: Message) -> HookMessage:
    """A message as hooks see it."""
    topic = message.topic.decode()
    if not message.properties:
        return HookMessage(topic, message.payload, message.qos, message.retain)
    properties = forwardable_to_properties(message.properties)
    return HookMessage(
        topic,
        message.payload,
        message.qos,
        message.retain,
        tuple(properties.user_properties),
        properties.content_type,
        properties.response_topic,
        properties.correlation_data,
    )


def changed(message: Message, by: HookMessage) -> Message:
    """`message` as a hook wants it; ValueError or TypeError for what can be no message."""
    before = shown(message)
    if by == before:
        return message
    types = type(by.payload) is bytes and type(by.topic) is str
    if by.qos != message.qos or not types or not by.topic:
        raise ValueError("a hook may change neither the QoS nor the types of a message")
    encoded = message.properties
    kept = (by.user_properties, by.content_type, by.response_topic, by.correlation_data)
    if kept != (before.user_properties, before.content_type, before.response_topic, before.correlation_data):
        properties = forwardable_to_properties(encoded) if encoded else Properties()
        properties.user_properties = list(by.user_properties)
        properties.content_type = by.content_type
        properties.response_topic = by.response_topic
        properties.correlation_data = by.correlation_data
        encoded = properties_to_forwardable(properties)
    return Message(
        by.topic.encode(),
        by.payload,
        message.qos,
        bool(by.retain),
        encoded,
        message.expiry_s,
        message.accepted_at_ms,
        message.message_id,
        message.publisher,
    )
