"""Which server is the primary now: what the Sentinels say that know of the latest failover."""

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


class Finder:
    """Asks the Sentinels, and takes no older word than it had before."""

    __slots__ = ("_address", "_epoch", "_place")

    def __init__(self, address: SentinelAddress) -> None:
        self._address = address
        #: Of the last answer that was taken: the number of the failover that made it the primary, and where it is.
        self._epoch = 0
        self._place: tuple[str, int] | None = None

    async def find(self) -> StoreAddress:
        """Asks all Sentinels at once and takes the newest answer: that of the latest failover. Of equals it takes the
        one that most give, then that of the first in the URL.

        Answers that name another server than before, by an older failover, come from Sentinels that were cut off or
        set up anew: a server that was the primary once may be back, and take itself for the primary. That is believed
        where most of all Sentinels say so.

        Raises StoreUnavailable with one line. Whether the server agrees is for the caller to see (`check_hello`)."""
        address = self._address
        states = await _ask_all(address)
        if any(state.failing_over for state in states):
            # The old primary may be back already, without its data, and take itself for the primary still.
            raise StoreUnavailable(f"{address}: the Sentinels are at a failover")
        epoch = max(state.epoch for state in states)
        # `most_common` keeps the order of the Sentinels among equals.
        place, count = Counter(state.place for state in states if state.epoch == epoch).most_common(1)[0]
        if epoch < self._epoch and place != self._place and 2 * count <= len(address.seeds):
            raise StoreUnavailable(f"{address}: the Sentinels that answer do not know of the last failover")
        said = list(dict.fromkeys(f"{state.place[0]}:{state.place[1]}" for state in states))
        if len(said) > 1:
            _log.warning("store.sentinels_disagree", said=said, taken=f"{place[0]}:{place[1]}")
        self._epoch, self._place = epoch, place
        return replace(address.store, host=place[0], port=place[1])


async def find_primary(address: SentinelAddress) -> StoreAddress:
    """As `Finder.find`, for the first time."""
    return await Finder(address).find()


async def _ask_all(address: SentinelAddress) -> list[_State]:
    """What those say that answer, in the order of the URL; at least one."""
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
    return [states[number] for number in sorted(states)]


class _State:
    """What one Sentinel says of the primary. Raises ClusterError if that is no Sentinel's answer."""

    __slots__ = ("epoch", "failing_over", "place")

    def __init__(self, reply: object, seed: StoreAddress) -> None:
        try:
            fields = (
                reply if isinstance(reply, dict) else dict(zip(*[iter(cast("list[bytes]", reply))] * 2, strict=True))
            )
            self.place = (fields[b"ip"].decode(), int(fields[b"port"]))
            self.epoch = int(fields.get(b"config-epoch", 0))
            self.failing_over = not _FAILOVER.isdisjoint(fields[b"flags"].split(b","))
        except (TypeError, ValueError, KeyError, AttributeError):
            raise ClusterError(f"{seed.host}:{seed.port} gave no Sentinel's answer: {reply!r:.80}") from None
