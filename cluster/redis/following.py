"""Which streams a node follows: the log of the route table, what is pushed to it, and its partition streams."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cluster.keys import NODE_STREAM, OWNER_STREAM, ROUTES_LOG, Keys
from cluster.redis.deployment import feed_groups, make_feed_link
from cluster.redis.feed import Feed, Stream

if TYPE_CHECKING:
    from cluster.api import Poller
    from cluster.redis.address import Deployment
    from cluster.redis.arrivals import Arrivals, Attached
    from cluster.redis.link import RedisLink
    from cluster.redis.routes import Routes


def make_feeds(
    address: Deployment,
    poller: Poller,
    keys: Keys,
    member: bytes,
    routes: Routes,
    version: int,
    arrivals: Arrivals,
    attached: Attached,
) -> list[Feed]:
    """One feed for each group of streams that may be read together. `version` is that of the route table as loaded.

    The route log comes first: who subscribed is known before what was stored for it."""
    log = Stream(keys.routes + ROUTES_LOG, routes.adopt, routes.reload, continues=routes.continues)
    log.move(version)
    routes.on_loaded = log.move
    own = keys.node(member)
    pushed = Stream(
        own + NODE_STREAM,
        arrivals.pushed,
        lambda: None,  # nothing else has these messages
        lambda before: ("FCALL", "rk1_trim", 1, own, before),
        ("FCALL", "rk1_open", 1, own, NODE_STREAM),
        again=True,
    )

    def owner_stream(number: int, prefix: bytes) -> Stream:
        name = OWNER_STREAM + member
        return Stream(
            prefix + name,
            partial(arrivals.stored, number),
            partial(arrivals.missed, number),
            lambda before: ("XTRIM", prefix + name, "MINID", before),
            ("FCALL", "rk1_open", 1, prefix, name),
            anew=partial(attached.restart, number),
        )

    streams = [log, *(owner_stream(number, prefix) for number, prefix in enumerate(keys.partitions)), pushed]
    by_key = {stream.key: stream for stream in streams}
    feeds = []
    for group in feed_groups(address, by_key):

        def connect(feed: Feed, key: bytes = group[0]) -> RedisLink:
            return make_feed_link(address, poller, key, on_up=feed.up)

        feeds.append(Feed([by_key[key] for key in group], connect, poller.wake))
    return feeds
