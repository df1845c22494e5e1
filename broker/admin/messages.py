"""Publishing, and asking a client something by a message that it answers."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import trio

from broker.admin.api import BAD_REQUEST, FORBIDDEN, OPERATOR, TIMED_OUT, UNAVAILABLE, AdminError
from broker.admin.inside import PRIVATE
from broker.admin.operations import operation
from broker.admin.paging import Text
from broker.admin.payloads import Encoding, Properties, Shown, bytes_of, forwardable_of, shown
from broker.admin.questions import question
from broker.codec.publish import forwardable_to_properties
from broker.errors import BrokerError, ClusterError, PeerError, StoreFull
from broker.message import Message
from broker.reasons import NOT_AUTHORIZED
from broker.routes import AckSlot, Route
from cluster import keys

if TYPE_CHECKING:
    from broker.admin.office import Office

#: How long the store may take to have a message.
STORED_S: Final = 20.0
#: Bytes of an answer that are shown; longer ones are cut.
_ANSWER_BYTES: Final = 1024 * 1024

QoS = Annotated[int, msgspec.Meta(ge=0, le=2)]


class Publishing(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message to publish. `payload_encoding` says how `payload` is written. `client_id`: as if this client had
    published it, for subscriptions with No Local; it need not exist."""

    topic: Annotated[Text, msgspec.Meta(description="The topic name; `$delayed/SECONDS/TOPIC` publishes later.")]
    payload: Annotated[str, msgspec.Meta(description="The payload.")] = ""
    payload_encoding: Annotated[Encoding, msgspec.Meta(description="How the payload is written: plain or base64.")] = (
        "plain"
    )
    qos: Annotated[QoS, msgspec.Meta(description="QoS.")] = 0
    retain: Annotated[
        bool, msgspec.Meta(description="Keep it as the topic's retained message; an empty one removes that.")
    ] = False
    properties: Properties = msgspec.field(default_factory=Properties)
    client_id: Annotated[Text, msgspec.Meta(description="As if this client had published it (No Local).")] = ""


class Published(msgspec.Struct, kw_only=True):
    """`matched` subscribers: persistent sessions (connected or not), connected clients of all nodes, and each shared
    subscription once; of a delayed message none are known yet. `message_id` names a QoS 2 message in logs.
    `missing_nodes` did not say in time how many of their clients match; they got the message nevertheless."""

    matched: int
    message_id: str | None = None
    missing_nodes: list[str] = []


class Bulk(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Messages that are published in this order."""

    messages: Annotated[list[Publishing], msgspec.Meta(max_length=1000)]


class Failure(msgspec.Struct, kw_only=True):
    """Why one of them was not published: as a problem of its own would say."""

    status: int
    title: str
    detail: str


class BulkItem(msgspec.Struct, kw_only=True):
    """What became of one message: `error` is null, or the message was not published (status 504: perhaps it was)."""

    matched: int = 0
    message_id: str | None = None
    error: Failure | None = None


class BulkPublished(msgspec.Struct, kw_only=True):
    """One item for each message, in their order."""

    items: list[BulkItem]
    missing_nodes: list[str] = []


class Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message that somebody answers. `response_topic`: where the answer is waited for (one of its own for each
    request if it is not given, `response/` and something random); the one who answers has to be allowed to publish
    there. With correlation data (made if they are not given) only an answer that repeats them counts, or one without
    any that comes to a topic made for this request."""

    topic: Annotated[Text, msgspec.Meta(description="The topic name.")]
    payload: Annotated[str, msgspec.Meta(description="The payload.")] = ""
    payload_encoding: Annotated[Encoding, msgspec.Meta(description="How the payload is written: plain or base64.")] = (
        "plain"
    )
    qos: Annotated[QoS, msgspec.Meta(description="QoS.")] = 1
    properties: Properties = msgspec.field(default_factory=Properties)
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60, description="How long to wait for the answer.")] = 10.0


class Stored(AckSlot):
    """Waits until the store has a message."""

    __slots__ = ("_done", "error")

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._done = trio.Event()

    def settle(self, error: Exception | None) -> None:
        """See `AckSlot`."""
        self.error = error
        self._done.set()

    async def wait(self) -> None:
        """Raises what the store said, AdminError (504) if it says nothing."""
        with trio.move_on_after(STORED_S):
            await self._done.wait()
        if not self._done.is_set():
            raise AdminError(
                TIMED_OUT, "not acknowledged", f"nothing says that the message is stored after {STORED_S:g} s"
            )
        if isinstance(self.error, ClusterError):
            raise self.error
        if self.error is not None:
            raise AdminError(UNAVAILABLE, "not stored", str(self.error))


class _Sent:
    """A message on its way: what waits for it, None if nothing has to, and how many it matched here."""

    def __init__(self, message: Message, matched: int, elsewhere: set[str], stored: Stored | None) -> None:
        self.topic = message.topic.decode()
        self.message_id = message.message_id.hex() if message.qos == 2 and message.message_id else None
        self.matched = matched
        #: Nodes with clients that match.
        self.elsewhere = elsewhere
        self.stored = stored


# -- who matches


def counted_here(route: Route, publisher: bytes = b"", ephemeral_only: bool = False) -> int:
    """Subscribers that this node knows: persistent ones of all nodes, others of this one, and each shared
    subscription."""
    count = 0
    for item in route.entries:
        entry = item.without_own(publisher)
        if entry is None or entry.subscriber.client_id.startswith(PRIVATE):
            continue
        count += not (ephemeral_only and entry.subscriber.persistent)
    return count if ephemeral_only else count + len(route.groups)


@question("topics.matched")
def _matched(office: Office, arguments: dict[str, Any]) -> list[int]:
    """How many ephemeral sessions here match each of the topics."""
    dispatch = office.server.dispatch
    return [counted_here(dispatch.route(topic.encode()), b"", True) for topic in arguments["topics"]]


async def _add_elsewhere(office: Office, sent: Sequence[_Sent]) -> list[str]:
    """Add those of other nodes; returns the nodes that did not tell."""
    wanted = [each for each in sent if each.elsewhere]
    nodes = {node for each in wanted for node in each.elsewhere}
    if not nodes:
        return []
    answers = await office.everywhere("topics.matched", {"topics": [each.topic for each in wanted]}, sorted(nodes))
    for counts in answers.by_node.values():
        for each, count in zip(wanted, counts, strict=True):
            each.matched += count
    return answers.missing


# -- publishing


def route_of(office: Office, topic: str) -> Route:
    """Where messages of a topic go. Raises AdminError (400, 403 for topics of the server)."""
    try:
        route = office.server.dispatch.route(topic.encode())
    except PeerError as error:
        raise AdminError(BAD_REQUEST, "invalid topic", error.text) from None
    except UnicodeError:
        raise AdminError(BAD_REQUEST, "invalid topic", "the topic name is not valid UTF-8") from None
    if route.refusal:
        status = FORBIDDEN if route.refusal == NOT_AUTHORIZED else BAD_REQUEST
        raise AdminError(status, "invalid topic", route.text)
    return route


def _publish(office: Office, given: Publishing) -> _Sent:
    """Publish a message within this turn. Raises AdminError."""
    server = office.server
    quotas = server.quotas
    route = route_of(office, given.topic)
    if given.qos > quotas.maximum_qos:
        raise AdminError(BAD_REQUEST, "not supported", f"QoS {given.qos}; at most {quotas.maximum_qos} is supported")
    if given.retain and not quotas.retain_available:
        raise AdminError(BAD_REQUEST, "not supported", "retained messages are not supported")
    payload = bytes_of(given.payload, given.payload_encoding)
    forwardable = forwardable_of(given.properties)
    size = len(given.topic.encode()) + len(payload) + len(forwardable)
    if size > quotas.max_packet_size:
        raise AdminError(413, "too large", f"{size} bytes, at most {quotas.max_packet_size} are allowed")
    if quotas.validate_payload_format and given.properties.payload_format_indicator == 1:
        _check_text(payload)
    dispatch = server.dispatch
    if dispatch.suspended and not given.qos:
        raise AdminError(UNAVAILABLE, "the store cannot be reached", "the node may not publish now")
    expiry_s = given.properties.message_expiry_interval
    publisher = keys.session_id(given.client_id) if given.client_id else b""
    message = Message(
        given.topic.encode(),
        payload,
        given.qos,
        given.retain,
        forwardable,
        -1 if expiry_s is None else expiry_s,
        server.now_ms,
        dispatch.new_message_id() if given.qos == 2 else b"",
        publisher,
    )
    matched = 0 if route.delay is not None and route.delay.seconds else counted_here(route, publisher)
    elsewhere = {target.node.decode().rpartition(":")[0] for target in route.nodes}
    stored = Stored() if given.qos or (route.delay is not None and route.delay.seconds) else None
    sent = _Sent(message, matched, elsewhere, stored)
    server.metrics.api_messages[given.qos] += 1
    if dispatch.publish(message, route, stored):
        sent.stored = None
    server.reactor.wake()
    return sent


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise AdminError(
            BAD_REQUEST, "invalid payload", "the payload is not the UTF-8 text that its format indicator says"
        ) from None


@operation("messages.publish", OPERATOR, "POST", "/messages", "Publish a message", Publishing, Published)
async def publish(office: Office, arguments: Publishing) -> Published:
    """Publishes as a client that may do everything would. At QoS 1 and 2 (and for `$delayed/SECONDS/...`) the answer
    comes when the message is stored as safely as the durability class says. An empty payload with `retain` removes the
    retained message of the topic."""
    sent = _publish(office, arguments)
    missing = await _add_elsewhere(office, [sent])
    if sent.stored is not None:
        await sent.stored.wait()
    return Published(matched=sent.matched, message_id=sent.message_id, missing_nodes=missing)


@operation("messages.publish_bulk", OPERATOR, "POST", "/messages/bulk", "Publish many messages", Bulk, BulkPublished)
async def publish_bulk(office: Office, arguments: Bulk) -> BulkPublished:
    """Publishes up to 1000 messages in their order. One that cannot be published does not keep back the others: its
    item says why."""
    results: list[BulkItem] = []
    sent: list[tuple[BulkItem, _Sent]] = []
    for number, each in enumerate(arguments.messages, 1):
        item = BulkItem()
        results.append(item)
        try:
            sent.append((item, _publish(office, each)))
        except AdminError as error:
            item.error = _failure(error)
        if number % 50 == 0:
            await trio.lowlevel.checkpoint()
    missing = await _add_elsewhere(office, [each for _, each in sent])
    for item, gone in sent:
        item.matched, item.message_id = gone.matched, gone.message_id
        try:
            if gone.stored is not None:
                await gone.stored.wait()
        except (AdminError, ClusterError) as error:
            item.matched, item.error = 0, _failure(error)
    return BulkPublished(items=results, missing_nodes=missing)


def _failure(error: BrokerError) -> Failure:
    if isinstance(error, AdminError):
        return Failure(status=error.status, title=error.title, detail=error.detail)
    if isinstance(error, StoreFull):
        return Failure(status=507, title="the store is full", detail=str(error))
    return Failure(status=UNAVAILABLE, title="the store cannot be reached", detail=str(error))


# -- requests


@operation(
    "messages.request", OPERATOR, "POST", "/requests", "Publish a message and wait for the answer", Request, Shown
)
async def request(office: Office, arguments: Request) -> dict[str, Any]:
    """Publishes a message with a response topic and correlation data (MQTT 5), and returns the first message that
    answers it. 504: nobody did in time, or nobody subscribes to the topic."""
    properties = msgspec.structs.replace(arguments.properties)
    own_topic = properties.response_topic is None
    if own_topic:
        properties.response_topic = f"response/{os.urandom(12).hex()}"
    if properties.correlation_data is None:
        properties.correlation_data = base64.b64encode(os.urandom(12)).decode()
    topic = properties.response_topic
    assert topic is not None
    correlation = bytes_of(properties.correlation_data, "base64", "correlation_data")
    route_of(office, topic)
    given = Publishing(
        topic=arguments.topic,
        payload=arguments.payload,
        payload_encoding=arguments.payload_encoding,
        qos=arguments.qos,
        properties=properties,
    )
    route_of(office, given.topic)
    published = False
    with trio.move_on_after(arguments.timeout_s):
        async with office.inside.subscription(topic) as messages:
            sent = _publish(office, given)
            published = True
            if not sent.matched and not sent.elsewhere:
                raise AdminError(TIMED_OUT, "no answer", f"nobody subscribes to {given.topic!r:.200}")
            async for message in messages:
                if _answers(message, correlation, own_topic):
                    return shown(message, office.server.now_ms, _ANSWER_BYTES)
    if not published:
        detail = f"the store did not answer in {arguments.timeout_s:g} s; nothing was published"
        raise AdminError(UNAVAILABLE, "the store cannot be reached", detail)
    raise AdminError(TIMED_OUT, "no answer", f"nobody answered in {arguments.timeout_s:g} s")


def _answers(message: Message, correlation: bytes, own_topic: bool) -> bool:
    found = forwardable_to_properties(message.properties).correlation_data if message.properties else None
    return found == correlation or (own_topic and found is None)
