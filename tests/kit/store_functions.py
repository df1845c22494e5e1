"""The store's function library called as it is, by the plain driver: packed arguments, unpacked answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import msgpack
import redis

from broker.message import Message
from cluster.records import pack_arguments, pack_body, unpack_answer
from cluster.redis.library import source

_prefixes = itertools.count(1)

#: Start of a queue record: format, QoS 1, no subscription identifiers.
HEAD = b"\x01\x01\x00\x00"


def body(text: str, topic: str = "t", publisher: bytes = b"p" * 16) -> bytes:
    """A message whose payload is `text`."""
    return pack_body(Message(topic.encode(), text.encode(), 1, False, b"", 0, 1, b"m" * 16, publisher))


def payload(packed: bytes) -> str:
    """The payload of a body."""
    return cast(bytes, msgpack.unpackb(packed, raw=True)[1]).decode()


def execute(client: redis.Redis, *command: object) -> object:
    """Any command, with its plain reply."""
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


class Functions:
    """One prefix of its own in a store that has the library."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.prefix = b"f%d:{p}:" % next(_prefixes)
        self._numbers: dict[str, int] = {}

    def call(self, name: str, *arguments: object) -> object:
        """FCALL; raises redis.ResponseError."""
        return execute(self.client, "FCALL", f"rk1_{name}", 1, self.prefix, *arguments)

    def key(self, suffix: bytes | str) -> bytes:
        """A whole key."""
        return self.prefix + (suffix.encode() if isinstance(suffix, str) else suffix)

    def now_ms(self) -> int:
        """The store's clock."""
        seconds, microseconds = self.client.time()
        return seconds * 1000 + microseconds // 1000

    def lane(self, name: str, node: str, *arguments: object, number: int = 0, inc: int = 1) -> list[object]:
        """An adding call of node:inc; the number is the next one."""
        key = f"{node}:{inc}"
        if not number:
            number = self._numbers[key] = self._numbers.get(key, 0) + 1
        answer = self.call(name, node, inc, self.now_ms() + 5000, number, *arguments)
        return cast("list[object]", answer)

    def enqueue(
        self,
        node: str,
        bodies: Sequence[bytes],
        sessions: Sequence[Sequence[object]] = (),
        groups: Sequence[Sequence[object]] = (),
        ids: Sequence[bytes] = (),
        *,
        limits: Sequence[int] = (1000, 1 << 23, 10_000),
        generation: int = 1,
        version: int = 0,
        number: int = 0,
    ) -> list[int | bytes]:
        """The flat answer of `rk1_enqueue`."""
        batch = pack_arguments((bodies, sessions, groups, ids))
        answer = self.lane("enqueue", node, *limits, generation, version, batch, number=number)
        assert answer[0] == 0, answer
        return unpack_answer(cast(bytes, answer[1]))

    def attach(
        self,
        sid: bytes,
        node: str,
        *,
        inc: int = 1,
        clean: int = 0,
        expiry: int = 1000,
        will: bytes = b"",
        delay: int = 0,
        margin: int = 164,
        force: str = "",
        generation: int = 1,
        will_after: str = "",
        identity: bytes | None = None,
        name: str = "",
    ) -> list[object]:
        """`rk1_attach`; the token is that of the node. `force`: the member that may be robbed."""
        token = f"token-{node}:{inc}"
        arguments = [sid, "client", token, node, inc, clean, expiry, will, delay, margin, force, generation, will_after]
        if identity is not None:
            arguments.append(identity)
        name = name or ("attach" if identity is None else "attach_as")
        return cast("list[object]", self.call(name, *arguments))

    def entries(self, suffix: str) -> list[tuple[bytes, list[list[object]]]]:
        """What a partition stream has: id and {bodies, sessions, groups}."""
        found = cast("list[tuple[bytes, dict[bytes, bytes]]]", self.client.xrange(self.key(suffix)))
        assert all(fields[b"b"][:1] == b"\x01" for _, fields in found)
        return [(number, msgpack.unpackb(fields[b"b"][1:], raw=True)) for number, fields in found]

    def sent(self, member: str) -> Iterator[tuple[bytes, int, bytes | None]]:
        """What went to the sessions of a member: sid, seq, body."""
        for _, (bodies, sessions, _) in self.entries(f"n:{member}"):
            for at in range(0, len(sessions), 4):
                sid, seq, _, place = cast("tuple[bytes, int, bytes, int]", sessions[at : at + 4])
                yield sid, seq, cast("bytes | None", bodies[place - 1] if place else None)

    def given(self, member: str) -> list[tuple[bytes, bytes, bytes, str]]:
        """Group entries that went to a member by its stream: id, sid, kept sid, payload; the stream is empty then."""
        result = []
        for _, (bodies, _, groups) in self.entries(f"n:{member}"):
            for at in range(0, len(groups), 6):
                _, entry, sid, kept, place, _ = cast("tuple[bytes, bytes, bytes, bytes, int, int]", groups[at : at + 6])
                result.append((entry, sid, kept, payload(cast(bytes, bodies[place - 1]))))
        self.client.xtrim(self.key(f"n:{member}"), maxlen=0, approximate=False)
        return result


def load_library(client: redis.Redis) -> None:
    """Loads the library as it is in the source tree."""
    execute(client, "FUNCTION", "LOAD", "REPLACE", source())
