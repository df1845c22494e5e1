"""Which server is the primary now: what most Sentinels say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import cast

import trio

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.redis.address import SentinelAddress, StoreAddress
from cluster.redis.probe import ask

#: A Sentinel that does not answer in this time has no say.
ASK_S = 1.0
#: It is objectively down, or about to be replaced.
_FAILOVER = frozenset((b"o_down", b"failover_in_progress"))

_log = get_logger("store")


async def find_primary(address: SentinelAddress) -> StoreAddress:
    """Asks all Sentinels at once and takes the answer that most give, of equals that of the first in the URL.

    Raises StoreUnavailable with one line. Whether the server agrees is for the caller to see (`check_hello`)."""
    states: dict[int, _State] = {}
    errors: dict[int, ClusterError] = {}

    async def ask_one(number: int, seed: StoreAddress) -> None:
        try:
            states[number] = _State(await ask(seed, "SENTINEL", "MASTER", address.master, timeout_s=ASK_S), seed)
        except ClusterError as error:
            unknown = str(error).startswith("ERR No such master")
            text = f"Sentinel {seed.host}:{seed.port} knows no primary {address.master!r}"
            errors[number] = ClusterError(text) if unknown else error

    async with trio.open_nursery() as nursery:
        for number, seed in enumerate(address.seeds):
            nursery.start_soon(ask_one, number, seed)
    if not states:
        first = errors[min(errors)]
        raise StoreUnavailable(f"{address}: no Sentinel names the primary ({first})")
    if any(state.failing_over for state in states.values()):
        # The old primary may be back already, without its data, and take itself for the primary still.
        raise StoreUnavailable(f"{address}: the Sentinels are at a failover")
    # `most_common` keeps the order of the Sentinels among equals.
    votes = Counter(states[number].place for number in sorted(states))
    (host, port), _ = votes.most_common(1)[0]
    if len(votes) > 1:
        _log.warning(
            "store.sentinels_disagree", said=[f"{each[0]}:{each[1]}" for each in votes], taken=f"{host}:{port}"
        )
    return replace(address.store, host=host, port=port)


class _State:
    """What one Sentinel says of the primary. Raises ClusterError if that is no Sentinel's answer."""

    __slots__ = ("failing_over", "place")

    def __init__(self, reply: object, seed: StoreAddress) -> None:
        try:
            fields = (
                reply if isinstance(reply, dict) else dict(zip(*[iter(cast("list[bytes]", reply))] * 2, strict=True))
            )
            self.place = (fields[b"ip"].decode(), int(fields[b"port"]))
            self.failing_over = not _FAILOVER.isdisjoint(fields[b"flags"].split(b","))
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ClusterError(f"{seed.host}:{seed.port} gave no Sentinel's answer: {reply!r:.80}") from None
