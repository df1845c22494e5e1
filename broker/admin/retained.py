"""Retained messages: level by level, by filter, one by one, and their removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import trio

from broker.admin.api import BAD_REQUEST, NOT_FOUND, OPERATOR, UNAVAILABLE, VIEWER, AdminError
from broker.admin.messages import STORED_S
from broker.admin.operations import Nothing, Page, operation
from broker.admin.paging import LIMIT, PORTION, Cursor, Limit, Part, Smallest, Text, cursor_of, key_of, merged
from broker.admin.payloads import Shown, shown
from broker.admin.reading import Reading
from broker.errors import ClusterError, PeerError
from broker.message import Message
from broker.topics.names import check_topic_filter, check_topic_name, is_shared
from cluster.api import PAGE_LIMIT, Publication

if TYPE_CHECKING:
    from broker.admin.office import Office

_PayloadBytes = Annotated[int, msgspec.Meta(ge=0, le=1024 * 1024, description="So much of a payload is shown.")]


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """The level to look into: the levels before it, as in a topic. Null: the first level; empty: the one below an empty
    first level (topics such as `/a`)."""

    prefix: Annotated[Text | None, msgspec.Meta(description="The levels before it; without it: the first level.")] = (
        None
    )
    limit: Limit = LIMIT
    cursor: Cursor = ""


class Branch(msgspec.Struct, kw_only=True):
    """One name at that level. `topic` are all levels up to it; it may have a retained message itself, and `below`
    topics have one further down."""

    level: str
    topic: str
    has_message: bool
    below: int


class Matching(msgspec.Struct, frozen=True, kw_only=True):
    """Which topics: those that match the filter. With `details` there is more than the topic, for at most 100 at a
    time."""

    topic_filter: Annotated[Text, msgspec.Meta(description="Topics that match.")] = "#"
    details: Annotated[bool, msgspec.Meta(description="Tell more than the topics, for at most 100 at a time.")] = False
    max_payload_bytes: _PayloadBytes = 256
    limit: Limit = LIMIT
    cursor: Cursor = ""


class RetainedTopic(msgspec.Struct, kw_only=True):
    """A topic with a retained message; null where that was not asked for, or is gone meanwhile."""

    topic: str
    message: Shown | None = None


class RetainedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The message of a topic, and how much of it is shown."""

    topic: Annotated[Text, msgspec.Meta(description="The topic name.")]
    max_payload_bytes: _PayloadBytes = 1024 * 1024


class RetainedTopicName(msgspec.Struct, frozen=True):
    """Of which topic."""

    topic: Annotated[Text, msgspec.Meta(description="The topic name.")]


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be removed: the messages of all topics that match the filter, at most `limit` of them."""

    topic_filter: Annotated[str, msgspec.Meta(min_length=1, max_length=65535, description="Topics that match.")]
    limit: Limit = 1000
    cursor: Cursor = ""


class Swept(msgspec.Struct, kw_only=True):
    """How many messages were removed. `cursor` not null: there may be more; ask again with it."""

    deleted: int
    cursor: str | None = None


class _Clearing(Publication):
    """Removes a retained message; nobody is sent anything."""

    __slots__ = ("done",)

    def __init__(self, topic: str, now_ms: int) -> None:
        super().__init__(Message(topic.encode(), b"", 1, True, accepted_at_ms=now_ms), retain=True)
        self.done = trio.Event()

    def stored(self) -> None:
        self.done.set()


def _check_filter(topic_filter: str) -> None:
    try:
        check_topic_filter(topic_filter)
    except PeerError as error:
        raise AdminError(BAD_REQUEST, "invalid topic filter", error.text) from None
    if is_shared(topic_filter):
        raise AdminError(BAD_REQUEST, "invalid topic filter", "a shared subscription has no retained messages")


def _check_topic(topic: str) -> None:
    try:
        check_topic_name(topic)
    except PeerError as error:
        raise AdminError(BAD_REQUEST, "invalid topic", error.text) from None


async def _matching(office: Office, topic_filter: str, limit: int, cursor: str) -> Part[None]:
    """The first topics behind the cursor."""
    _check_filter(topic_filter)
    found: Smallest[None] = Smallest(limit, key_of(cursor))
    async with office.looking.turn():
        for number, topic in enumerate(office.cluster.retained_match(topic_filter), 1):
            if topic is None or number % PORTION == 0:
                await trio.lowlevel.checkpoint()
            if topic is not None and found.wants((topic,)):
                found.put((topic,), None)
    return found.part()


@operation("retained.browse", VIEWER, "GET", "/retained/tree", "Browse retained messages", Level, Page[Branch])
async def browse(office: Office, arguments: Level) -> Page[Branch]:
    """The names at one level of the topics that have retained messages, in order. Topics that begin with `$` are shown,
    too."""
    levels = [] if arguments.prefix is None else arguments.prefix.split("/")
    found: Smallest[tuple[bool, int]] = Smallest(arguments.limit, key_of(arguments.cursor))
    async with office.looking.turn():
        for number, (level, has_message, below) in enumerate(office.cluster.retained_children(levels), 1):
            if number % PORTION == 0:
                await trio.lowlevel.checkpoint()
            if found.wants((level,)):
                found.put((level,), (has_message, below))
    part = found.part()
    before = "".join(f"{each}/" for each in levels)
    items = [
        (key, Branch(level=key[0], topic=before + key[0], has_message=has_message, below=below))
        for key, (has_message, below) in part.items
    ]
    branches, until = merged([Part(items, part.until)], arguments.limit)
    return Page(items=branches, cursor=cursor_of(until))


@operation("retained.list", VIEWER, "GET", "/retained", "List retained messages", Matching, Page[RetainedTopic])
async def list_retained(office: Office, arguments: Matching) -> Page[RetainedTopic]:
    """The topics with a retained message that match a filter, in order; `#` leaves out those that begin with `$`. A
    part may have less items than asked for without being the last: `cursor` tells."""
    limit = min(arguments.limit, PAGE_LIMIT) if arguments.details else arguments.limit
    part = await _matching(office, arguments.topic_filter, limit, arguments.cursor)
    if not arguments.details:
        topics = Part([(key, RetainedTopic(topic=key[0])) for key, _ in part.items], part.until)
        items, until = merged([topics], limit)
        return Page(items=items, cursor=cursor_of(until))
    names = [key[0] for key, _ in part.items]
    reading: Reading[RetainedTopic] = Reading(len(names))
    while reading.going:
        at = len(reading.items)
        wanted = names[at : at + reading.count()]
        async with office.reading.turn():
            values = await office.cluster.retained_values(wanted)
        reading.read(values)
        for topic, message in zip(wanted, values, strict=True):
            if not reading.room:
                break
            fields = None if message is None else shown(message, office.server.now_ms, arguments.max_payload_bytes)
            reading.add(RetainedTopic(topic=topic, message=None if fields is None else Shown(**fields)))
    more = len(reading.items) < len(names)
    return Page(items=reading.items, cursor=cursor_of((reading.items[-1].topic,) if more else part.until))


@operation(
    "retained.show", VIEWER, "GET", "/retained/messages/{topic:path}", "Show a retained message", RetainedMessage, Shown
)
async def show_retained(office: Office, arguments: RetainedMessage) -> dict[str, Any]:
    """The retained message of a topic."""
    return shown(await _message(office, arguments.topic), office.server.now_ms, arguments.max_payload_bytes)


async def _message(office: Office, topic: str) -> Message:
    """Of a topic. Raises AdminError (400, 404)."""
    _check_topic(topic)
    async with office.reading.turn():
        [message] = await office.cluster.retained_values([topic])
    if message is None:
        raise AdminError(NOT_FOUND, "no retained message", f"topic {topic!r:.200} has no retained message")
    return message


@operation(
    "retained.delete",
    OPERATOR,
    "DELETE",
    "/retained/messages/{topic:path}",
    "Remove a retained message",
    RetainedTopicName,
    Nothing,
)
async def delete_retained(office: Office, arguments: RetainedTopicName) -> None:
    """Removes it on all nodes; subscribers are told nothing. Setting one is publishing with `retain`."""
    await _message(office, arguments.topic)
    await _clear(office, [arguments.topic])


@operation(
    "retained.delete_matching",
    OPERATOR,
    "DELETE",
    "/retained",
    "Remove the retained messages that match a filter",
    Sweep,
    Swept,
)
async def delete_matching(office: Office, arguments: Sweep) -> Swept:
    """Removes up to `limit` messages and says how many that were, as far as this node knew of them (what others do
    comes to know a moment later); where more match, `cursor` is for the next call."""
    part = await _matching(office, arguments.topic_filter, arguments.limit, arguments.cursor)
    topics = [key[0] for key, _ in part.items]
    for at in range(0, len(topics), PAGE_LIMIT):
        await _clear(office, topics[at : at + PAGE_LIMIT])
    return Swept(deleted=len(topics), cursor=cursor_of(part.until))


async def _clear(office: Office, topics: list[str]) -> None:
    clearings = [_Clearing(topic, office.server.now_ms) for topic in topics]
    for clearing in clearings:
        office.cluster.publish(clearing)
    office.server.reactor.wake()
    with trio.move_on_after(STORED_S):
        for clearing in clearings:
            await clearing.done.wait()
    for clearing in clearings:
        if isinstance(clearing.error, ClusterError):
            raise clearing.error
        if clearing.error is not None or not clearing.done.is_set():
            raise AdminError(UNAVAILABLE, "the store cannot be reached", "not all messages are known to be removed")
