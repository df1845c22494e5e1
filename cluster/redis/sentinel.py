"""Which server is the primary now: what most Sentinels say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import trio

from broker.errors import ClusterError, StoreUnavailable
from broker.log import get_logger
from cluster.redis.address import SentinelAddress, StoreAddress
from cluster.redis.probe import ask

#: A Sentinel that does not answer in this time has no say.
ASK_S = 1.0

_log = get_logger("store")


async def find_primary(address: SentinelAddress) -> StoreAddress:
    """Asks all Sentinels at once and takes the answer that most give, of equals that of the first in the URL.

    Raises StoreUnavailable with one line. Whether the server agrees is for the caller to see (`check_hello`)."""
    found: list[tuple[str, int] | None] = [None] * len(address.seeds)
    errors: dict[int, ClusterError] = {}

    async def ask_one(number: int, seed: StoreAddress) -> None:
        try:
            found[number] = _place(
                await ask(seed, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master, timeout_s=ASK_S), seed
            )
            if found[number] is None:
                errors[number] = ClusterError(f"Sentinel {seed.host}:{seed.port} knows no primary {address.master!r}")
        except ClusterError as error:
            errors[number] = error

    async with trio.open_nursery() as nursery:
        for number, seed in enumerate(address.seeds):
            nursery.start_soon(ask_one, number, seed)
    votes = Counter(place for place in found if place is not None)
    if not votes:
        first = errors[min(errors)]
        raise StoreUnavailable(f"{address}: no Sentinel names the primary ({first})")
    # `most_common` keeps the order of the Sentinels among equals.
    (host, port), _ = votes.most_common(1)[0]
    if len(votes) > 1:
        _log.warning(
            "store.sentinels_disagree", said=[f"{each[0]}:{each[1]}" for each in votes], taken=f"{host}:{port}"
        )
    return replace(address.store, host=host, port=port)


def _place(reply: object, seed: StoreAddress) -> tuple[str, int] | None:
    if reply is None:
        return None
    try:
        host, port = reply  # type: ignore[misc]
        return host.decode(), int(port)  # type: ignore[has-type]
    except (TypeError, ValueError, AttributeError):
        raise ClusterError(f"{seed.host}:{seed.port} gave no Sentinel's answer: {reply!r:.80}") from None
