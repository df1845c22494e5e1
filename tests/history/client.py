"""A recorded client: keeps its session's state as the standard asks, and goes to another node when it loses one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from broker.codec.packets import (
    V5,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.history import events as ev
from tests.history.events import History
from tests.history.link import Address, Link, open_stream

#: Between attempts to connect.
RETRY_S = 0.1
#: What the broker gives a version 3 session.
V3_EXPIRY_S = 7 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class WillOptions:
    """A will; its payload is made for each connection."""

    topic: str
    qos: int = 2
    retain: bool = False
    delay_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a client behaves. `expiry_s` 0 is an ephemeral session."""

    version: int = V5
    #: Name and password; no name: neither.
    user: tuple[str, str] = ("", "")
    expiry_s: int = 0
    clean_start: bool = False
    subscriptions: Sequence[tuple[str, int]] = ()
    will: WillOptions | None = None
    #: Unacknowledged messages that it sends.
    window: int = 20
    receive_maximum: int = 100
    #: Deliveries that it holds back from acknowledging, so that there is something in flight.
    hold: int = 0
    #: Silence after which it goes elsewhere.
    patience_s: float = 8.0


class Outgoing:
    """A message of the client without the end of its exchange."""

    __slots__ = ("payload", "qos", "received", "retain", "topic")

    def __init__(self, payload: str, topic: str, qos: int, retain: bool) -> None:
        self.payload = payload
        self.topic = topic
        self.qos = qos
        self.retain = retain
        #: PUBREC came.
        self.received = False


class RecordedClient:
    """One client id. `run` connects and stays connected; everything goes into the history.

    `pick(client)` says where to connect next. `publish` and the rest may be called at any time: what cannot be sent
    now is sent later, QoS 0 excepted.
    """

    def __init__(
        self, history: History, name: str, profile: Profile, pick: Callable[[RecordedClient], Address]
    ) -> None:
        self.history = history
        self.name = name
        self.profile = profile
        self.link: Link | None = None
        #: Highest number of deliveries that are not acknowledged yet; may be changed at any time.
        self.hold = profile.hold
        #: Retained messages by topic, as they came last.
        self.retained: dict[str, str] = {}
        #: Topics of all messages that came.
        self.seen: set[str] = set()
        #: Live messages that came, repetitions included.
        self.delivered = 0
        self.connected = trio.Event()
        self._pick = pick
        self._links: list[Link] = []
        self._backlog: deque[Outgoing] = deque()
        self._unacked: dict[int, Outgoing] = {}
        self._packet_id = 0
        self._number = 0
        self._known: dict[int, str] = {}
        self._unconfirmed: deque[tuple[int, int, str]] = deque()
        #: Filter -> QoS; -1: to be removed.
        self._wanted: dict[str, int] = dict(profile.subscriptions)
        self._granted: set[str] = set()
        self._asked: dict[int, tuple[str, ...]] = {}
        self._has_session = False
        self._changed = trio.Event()
        self._away = False
        self._wake = trio.Event()
        self._stopped = False
        self._connecting: Link | None = None
        self._answer: Connack | None = None

    # -- what a test asks for

    def publish(self, topic: str, qos: int = 1, retain: bool = False) -> str:
        """Send a message with a payload of its own and return that; "" if it is QoS 0 and there is no connection."""
        if not qos and (self.link is None or self.link.given_up):
            return ""
        self._number += 1
        payload = f"{self.name}:{self._number}"
        outgoing = Outgoing(payload, topic, qos, retain)
        if qos:
            self._backlog.append(outgoing)
            self._pump()
        else:
            assert self.link is not None
            self._send(self.link, outgoing, 0, False)
        return payload

    @property
    def idle(self) -> bool:
        """All that was published is acknowledged, to the end."""
        return not self._backlog and not self._unacked

    @property
    def backlog(self) -> int:
        """Messages that wait for room in the window."""
        return len(self._backlog)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something about this client has become true; the caller bounds it."""
        while not condition():
            await self._changed.wait()

    async def settled(self) -> None:
        """Wait until all is acknowledged."""
        await self.until(lambda: self.idle)

    async def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribe and wait for the SUBACK, over reconnections if need be."""
        self._wanted[topic_filter] = qos
        self._granted.discard(topic_filter)
        self._ask(topic_filter)
        await self.until(lambda: topic_filter in self._granted)

    async def unsubscribe(self, topic_filter: str) -> None:
        """Unsubscribe and wait for the UNSUBACK."""
        self._wanted[topic_filter] = -1
        self._ask(topic_filter)
        await self.until(lambda: topic_filter not in self._wanted)

    @property
    def subscribed(self) -> bool:
        """Connected, with every subscription acknowledged."""
        return self.link is not None and all(name in self._granted for name, qos in self._wanted.items() if qos >= 0)

    def leave(self, bye: bool = True) -> None:
        """Disconnect (or reset the connection) and stay away until `come_back`."""
        self._away = True
        self._part(bye)

    def come_back(self) -> None:
        """Connect again."""
        self._away = False
        self._wake.set()

    def drop(self) -> None:
        """Reset the connection; the client connects again."""
        self._part(False)

    def stop(self, bye: bool = True) -> None:
        """Leave for good."""
        self._stopped = True
        self._part(bye)
        for link in self._links:
            if link is not self.link and link.given_up:
                link.reset()
        self._wake.set()

    def confirm_all(self) -> None:
        """Acknowledge what was held back, and hold nothing back from now on."""
        self.hold = 0
        if self.link is not None:
            self._confirm(self.link)

    # -- connections

    async def run(self) -> None:
        """Until `stop`."""
        async with trio.open_nursery() as nursery:
            while not self._stopped:
                if self._away:
                    self._wake = trio.Event()
                    await self._wake.wait()
                    continue
                link = await self._open(nursery)
                if link is None:
                    await trio.sleep(RETRY_S)
                    continue
                while not link.closed.is_set() and not link.given_up:
                    self._wake = trio.Event()
                    await self._wake.wait()

    async def _open(self, nursery: trio.Nursery) -> Link | None:
        """A connection that was accepted, with everything unfinished sent again; None if that did not work."""
        profile = self.profile
        address = self._pick(self)
        stream = await open_stream(address, profile.patience_s)
        if stream is None or self._stopped or self._away:
            if stream is not None:
                await trio.aclose_forcefully(stream)
            return None
        link = Link(
            self.history.next_connection(), address, stream, profile.version, self._received, self._ended,
            self._fell_silent, profile.patience_s,
        )  # fmt: skip
        self._links.append(link)
        self._connecting = link
        self._answer = None
        link.write(self._connect_packet(link))
        nursery.start_soon(link.serve)
        while self._waits_for_answer(link):
            self._wake = trio.Event()
            await self._wake.wait()
        if self.link is not link and not link.closing:
            link.reset()
            return None
        return link

    def _waits_for_answer(self, link: Link) -> bool:
        return self._answer is None and not (link.closed.is_set() or link.given_up or self._away or self._stopped)

    def _connect_packet(self, link: Link) -> Connect:
        profile = self.profile
        properties: Properties | None = None
        if profile.version == V5:
            properties = Properties()
            properties.session_expiry_interval = profile.expiry_s
            properties.receive_maximum = profile.receive_maximum
        will, will_payload = None, ""
        if profile.will is not None:
            will_payload = f"will:{self.name}:{link.number}"
            will_properties: Properties | None = None
            if profile.version == V5:
                will_properties = Properties()
                will_properties.will_delay_interval = profile.will.delay_s
            will = Will(
                profile.will.topic, will_payload.encode(), profile.will.qos, profile.will.retain, will_properties
            )
        clean_start = profile.clean_start or not profile.expiry_s
        expiry_s = profile.expiry_s if profile.version == V5 else (V3_EXPIRY_S if profile.expiry_s else 0)
        self._note(
            ev.CONNECT, link, value=expiry_s, code=int(clean_start), text=will_payload,
            topic=profile.will.topic if profile.will is not None else "",
        )  # fmt: skip
        username, password = profile.user
        return Connect(
            profile.version,
            self.name,
            clean_start,
            0,
            username or None,
            password.encode() if username else None,
            will=will,
            properties=properties,
        )

    def _accepted(self, link: Link, packet: Connack) -> None:
        self._note(ev.CONNACK, link, code=packet.reason_code, value=packet.session_present)
        if packet.reason_code:
            return
        for other in self._links:
            if other is not link and not other.replaced:
                other.replaced = True
                self._talk_on(other)
                other.unacked = {packet_id: each.payload for packet_id, each in self._unacked.items()}
        self._links = [each for each in self._links if not each.closed.is_set()]
        self.link = link
        if not packet.session_present:
            self._begin_session(link)
        self._has_session = True
        self._unconfirmed.clear()
        self._asked.clear()
        for packet_id, outgoing in self._unacked.items():
            if outgoing.received:
                link.write(Pubrel(packet_id))
            else:
                self._send(link, outgoing, packet_id, True)
        for topic_filter in list(self._wanted):
            if topic_filter not in self._granted or self._wanted[topic_filter] < 0:
                self._ask(topic_filter)
        self._pump()
        self.connected.set()

    def _talk_on(self, replaced: Link) -> None:
        """A connection that was given up is still open: what is said on it now must be without effect."""
        if replaced.given_up and not replaced.closed.is_set():
            for each in self._unconfirmed:
                self._confirm_one(replaced, *each)

    def _begin_session(self, link: Link) -> None:
        """There is no session any more: QoS 1 goes out anew, what becomes of QoS 2 nobody can tell."""
        self._known.clear()
        self._granted.clear()
        again: list[Outgoing] = []
        for outgoing in self._unacked.values():
            if outgoing.qos == 1:
                again.append(outgoing)
            else:
                self._note(ev.ABANDON, link, payload=outgoing.payload)
        self._unacked.clear()
        self._backlog.extendleft(reversed(again))

    def _part(self, bye: bool) -> None:
        link, self.link = self.link, None
        self.connected = trio.Event()
        if link is not None and not link.closed.is_set():
            if bye:
                self._note(ev.BYE, link)
                link.write(Disconnect())
                link.shut()
            else:
                self._note(ev.ABORT, link)
                link.closing = True
                link.reset()
        self._notify()

    def _fell_silent(self, link: Link) -> None:
        if self.link is link:
            self.link = None
            self.connected = trio.Event()
        self.history.add(ev.MARK, self.name, link.number, link.node, text="gave up")
        self._notify()

    def _ended(self, link: Link) -> None:
        self._note(ev.CLOSED, link, code=int(link.closing))
        if self.link is link:
            self.link = None
            self.connected = trio.Event()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._wake.set()

    # -- packets

    def _note(self, kind: str, link: Link, **fields: object) -> None:
        self.history.add(kind, self.name, link.number, link.node, **fields)  # type: ignore[arg-type]

    def _pump(self) -> None:
        link = self.link
        while link is not None and self._backlog and len(self._unacked) < self.profile.window:
            outgoing = self._backlog.popleft()
            packet_id = self._next_packet_id()
            self._unacked[packet_id] = outgoing
            self._send(link, outgoing, packet_id, False)

    def _next_packet_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % 65535 + 1
            if self._packet_id not in self._unacked and self._packet_id not in self._asked:
                return self._packet_id

    def _send(self, link: Link, outgoing: Outgoing, packet_id: int, dup: bool) -> None:
        qos, retain, payload, topic = outgoing.qos, outgoing.retain, outgoing.payload, outgoing.topic
        self._note(ev.PUBLISH, link, packet_id=packet_id, payload=payload, topic=topic, qos=qos, dup=dup, retain=retain)
        link.write(Publish(topic, payload.encode(), qos, retain, dup, packet_id))

    def _ask(self, topic_filter: str) -> None:
        link = self.link
        if link is None:
            return
        packet_id = self._next_packet_id()
        self._asked[packet_id] = (topic_filter,)
        qos = self._wanted[topic_filter]
        if qos < 0:
            self._note(ev.UNSUBSCRIBE, link, topic=topic_filter)
            link.write(Unsubscribe(packet_id, [topic_filter]))
        else:
            self._note(ev.SUBSCRIBE, link, topic=topic_filter, qos=qos)
            link.write(Subscribe(packet_id, [SubscriptionRequest(topic_filter, qos)]))

    def _received(self, link: Link, packet: Packet) -> None:
        handler = self._HANDLERS.get(type(packet))
        if handler is not None:
            handler(self, link, packet)
            if not isinstance(packet, Publish) or self._changed.statistics().tasks_waiting:
                self._notify()

    def _connack(self, link: Link, packet: Connack) -> None:
        if self._connecting is link and not self._away and not self._stopped:
            self._answer = packet
            self._accepted(link, packet)

    def _acked(self, link: Link, packet: Puback | Pubrec) -> None:
        packet_id = packet.packet_id
        qos = 1 if isinstance(packet, Puback) else 2
        if link.replaced:
            payload = link.unacked.get(packet_id)
            if payload is not None:
                self._note(ev.ACK, link, packet_id=packet_id, payload=payload, qos=qos, code=packet.reason_code)
            return
        outgoing = self._unacked.get(packet_id)
        if outgoing is None:
            if qos == 2:
                link.write(Pubrel(packet_id))
            return
        self._note(ev.ACK, link, packet_id=packet_id, payload=outgoing.payload, qos=qos, code=packet.reason_code)
        if qos == 1 or packet.reason_code >= 0x80:
            del self._unacked[packet_id]
            self._pump()
        else:
            outgoing.received = True
            link.write(Pubrel(packet_id))

    def _completed(self, link: Link, packet: Pubcomp) -> None:
        if link.replaced:
            return
        outgoing = self._unacked.pop(packet.packet_id, None)
        if outgoing is not None:
            self._note(ev.COMPLETE, link, packet_id=packet.packet_id, payload=outgoing.payload)
            self._pump()

    def _delivered(self, link: Link, packet: Publish) -> None:
        payload = packet.payload.decode(errors="replace")
        self._note(
            ev.DELIVER, link, packet_id=packet.packet_id, payload=payload, topic=packet.topic_name, qos=packet.qos,
            dup=packet.dup, retain=packet.retain,
        )  # fmt: skip
        self.seen.add(packet.topic_name)
        if packet.retain:
            self.retained[packet.topic_name] = payload
        else:
            self.delivered += 1
        if not packet.qos:
            return
        if link.replaced:
            # It goes on as if nothing had happened: whatever it says has to be without effect.
            self._confirm_one(link, packet.qos, packet.packet_id, payload)
            return
        if packet.qos == 2:
            self._known[packet.packet_id] = payload
        self._unconfirmed.append((packet.qos, packet.packet_id, payload))
        self._confirm(link)

    def _confirm(self, link: Link) -> None:
        while len(self._unconfirmed) > self.hold:
            self._confirm_one(link, *self._unconfirmed.popleft())

    def _confirm_one(self, link: Link, qos: int, packet_id: int, payload: str) -> None:
        self._note(ev.CONFIRM, link, packet_id=packet_id, payload=payload, qos=qos)
        link.write(Puback(packet_id) if qos == 1 else Pubrec(packet_id))

    def _released(self, link: Link, packet: Pubrel) -> None:
        self._note(ev.RELEASE, link, packet_id=packet.packet_id)
        if not link.replaced:
            self._known.pop(packet.packet_id, None)
        link.write(Pubcomp(packet.packet_id))

    def _answered(self, link: Link, packet: Suback | Unsuback) -> None:
        if link is not self.link:
            return
        for topic_filter in self._asked.pop(packet.packet_id, ()):
            code = packet.reason_codes[0] if packet.reason_codes else 0
            if isinstance(packet, Suback):
                self._note(ev.SUBACK, link, topic=topic_filter, code=code)
                if code < 0x80:
                    self._granted.add(topic_filter)
                else:
                    self._wanted.pop(topic_filter, None)
            else:
                self._note(ev.UNSUBACK, link, topic=topic_filter, code=code)
                self._wanted.pop(topic_filter, None)
                self._granted.discard(topic_filter)

    def _told_to_go(self, link: Link, packet: Disconnect) -> None:
        self._note(ev.DISCONNECT, link, code=packet.reason_code)

    _HANDLERS: Mapping[type, Callable[..., None]] = {
        Connack: _connack,
        Puback: _acked,
        Pubrec: _acked,
        Pubcomp: _completed,
        Publish: _delivered,
        Pubrel: _released,
        Suback: _answered,
        Unsuback: _answered,
        Disconnect: _told_to_go,
    }
