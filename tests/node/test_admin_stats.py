"""Numbers, rates, settings and logs; and lists in parts."""

from __future__ import annotations

import logging
import random
import time
from itertools import pairwise
from typing import Any

import pytest
import structlog
import trio

from broker import log
from broker.admin.api import VIEWER, AdminError, Caller
from broker.admin.paging import Key, Part, Smallest, cursor_of, key_of, merged
from broker.codec.packets import Publish
from broker.config import load
from broker.measuring.history import FIELDS, averaged, quantile, summed
from tests.node.admin_kit import desk


async def test_rates_of_late(autojump_clock: object) -> None:
    async with desk() as ask:
        history = ask.office.measuring.history
        peer = await ask.world.subscriber("c", "t", expiry_s=100)
        history.note(1000.0)
        for number in range(20):
            await peer.send(Publish("t", b"x", 1, False, False, number + 1))
        await ask.office.measuring.census.take()
        history.note(1002.0)
        found = await ask("stats.show")
        numbers = found["cluster"]
        assert (numbers["connections"], numbers["sessions"], numbers["subscriptions"]) == (1, 1, 1)
        assert numbers["messages_in_per_s"] == 10.0 and numbers["messages_out_per_s"] == 10.0
        assert numbers["bytes_in_per_s"] > 0 and found["nodes"]["a"]["messages_in_per_s"] == 10.0
        assert found["uptime_s"]["a"] >= 0 and found["missing_nodes"] == []


async def test_the_course_of_the_day(autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk() as ask:
        history = ask.office.measuring.history
        end = int(time.time()) // 60 * 60
        received = ask.world.metrics.messages_received
        for second in range(end - 3600, end + 1):
            received[0] += 5
            history.note(float(second))
        monkeypatch.setattr(time, "time", lambda: float(end))
        assert len(history.seconds) == 900 and len(history.minutes) == 60
        for minutes, step_s, count in ((1, 1, 60), (5, 1, 300), (15, 5, 180), (60, 60, 60), (24 * 60, 300, 12)):
            found = await ask("stats.history", minutes=minutes)
            assert found["step_s"] == step_s
            assert abs(len(found["items"]) - count) <= 1, minutes
            times = [each["at_ms"] for each in found["items"]]
            assert times == sorted(times) and {b - a for a, b in pairwise(times)} == {1000 * step_s}
            assert {each["cluster"]["messages_in_per_s"] for each in found["items"]} == {5.0}
        assert (await ask.refused("stats.history", minutes=0))[0] == 400


async def test_rates_as_they_come(autojump_clock: object) -> None:
    async with desk() as ask:
        ask.world.server.start(ask.office.measuring.history.serve)
        await ask.world.connect("c")
        async with ask.office.stream("stats.live", {}, Caller("x", VIEWER)) as points:
            found: list[Any] = []
            async for point in points:
                found.append(point)
                if len(found) == 3:
                    break
        assert found[-1]["cluster"]["connections"] == 1 and set(found[-1]["nodes"]) == {"a"}
        assert set(found[-1]["nodes"]["a"]) >= set(FIELDS)


def test_points_together() -> None:
    one, other = [float(n) for n in range(12)], [float(2 * n) for n in range(12)]
    assert averaged([one, other])[:5] == [0, 2, 4, 6, 6.0] and averaged([one, other])[-1] == 22
    assert summed([one, other])[:5] == [0, 3, 6, 9, 12] and summed([one, other])[-1] == 22
    assert quantile((1.0, 2.0), [0, 0, 0], 0.5) == 0.0
    assert quantile((1.0, 2.0), [10, 10, 0], 0.5) == 1.0
    assert quantile((1.0, 2.0), [10, 10, 0], 0.75) == 1.5
    assert quantile((1.0, 2.0), [0, 0, 10], 0.99) == 2.0


async def test_options_of_hooks_are_secret(autojump_clock: object) -> None:
    """They are where a hook gets its tokens."""
    loaded = load({"hooks": [{"type": "hook", "target": "m:a", "options": '{"token": "t0psecret"}'}]}, {})
    async with desk(settings=loaded.settings) as ask:
        found = await ask("settings.show")
    assert "t0psecret" not in str(found)
    [shown] = [item["value"] for item in found["items"] if item["name"] == "hooks"]
    assert shown.endswith("&options=***")


async def test_settings_with_their_origins(autojump_clock: object) -> None:
    loaded = load({"node_name": "a", "admin_secret": "very secret"}, {"ROOKERY_MAX_QOS": "1"})
    async with desk(settings=loaded.settings) as ask:
        found = await ask("settings.show")
        by_name = {item["name"]: item for item in found["items"]}
        assert by_name["max_qos"]["value"] == "1" and by_name["max_qos"]["origin"] == "environment ROOKERY_MAX_QOS"
        assert by_name["admin_secret"]["value"] == "***" and by_name["workers"]["origin"] == "default"
        assert "very secret" not in str(found)
        changed = await ask("settings.show", changed=True)
        assert {item["name"] for item in changed["items"]} == {"node_name", "admin_secret", "max_qos"}
        assert (await ask.refused("settings.show", node="m"))[0] == 404


async def test_another_log_level_for_a_while(autojump_clock: object) -> None:
    async with desk() as ask:
        configure_back = ask.office.settings.log_level
        try:
            [shown] = (await ask("logs.set_level", level="error", duration_s=60))["items"]
            assert (shown["node"], shown["level"], shown["configured"]) == ("a", "error", "info")
            assert shown["back_in_s"] == 60
            await trio.sleep(30)
            [shown] = (await ask("logs.set_level", level="warning", node="a"))["items"]
            assert (shown["level"], shown["back_in_s"]) == ("warning", None)
            await trio.sleep(60)
            assert (await ask("logs.level"))["items"][0]["level"] == "warning"
            await ask("logs.set_level", level="debug", duration_s=1)
            await trio.sleep(2)
            assert (await ask("logs.level"))["items"][0]["level"] == "info"
            assert (await ask.refused("logs.set_level", level="loud"))[0] == 400
            assert (await ask.refused("logs.set_level", level="info", node="m"))[0] == 404
        finally:
            log.configure(configure_back)
            structlog.reset_defaults()


async def test_warnings_of_late(autojump_clock: object) -> None:
    async with desk() as ask:
        log.configure("error")
        log.recent.lines.clear()
        try:
            logger = log.get_logger("test")
            logger.info("not.kept")
            logger.warning("one.warning", client_id="c", text="x" * 1000)
            try:
                raise ValueError("what it was")
            except ValueError:
                logger.exception("one.error")
            for number in range(600):
                logger.error("many.errors", number=number)
            assert len(log.recent.lines) == 500
            log.recent.lines.clear()
            logger.error("one.error", client_id="d")
            logging.getLogger("library").error("something %s", "else")
            found = (await ask("logs.list"))["items"]
            assert [(line["event"], line["level"]) for line in found] == [
                ("something else", "error"),
                ("one.error", "error"),
            ]
            assert found[1]["fields"]["client_id"] == "d" and found[1]["node"] == "a"
            assert len((await ask("logs.list", contains="one"))["items"]) == 1
            assert len((await ask("logs.list", limit=1))["items"]) == 1
        finally:
            log.recent.lines.clear()
            log.configure("info")
            structlog.reset_defaults()


# -- lists in parts


def test_the_first_of_many() -> None:
    for seed in range(50):
        random.seed(seed)
        names = [str(random.randrange(10_000)) for _ in range(random.randrange(2000))]
        limit = random.randrange(1, 60)
        after: Key | None = None
        told: list[str] = []
        while True:
            found: Smallest[str] = Smallest(limit, after)
            for name in names:
                if found.wants((name,)):
                    found.put((name,), name)
            part = found.part()
            told += [name for _, name in part.items]
            if part.until is None:
                break
            after = part.until
        assert told == sorted(set(names)), seed


def test_parts_of_several_become_one() -> None:
    for seed in range(50):
        random.seed(seed)
        sources = [sorted(random.sample(range(1000), random.randrange(100))) for _ in range(3)]
        limit = random.randrange(1, 30)
        after: Key | None = None
        told: list[str] = []
        for _ in range(2000):
            parts = []
            for source in sources:
                keys = [(f"{n:04}",) for n in source if after is None or (f"{n:04}",) > after]
                cut = random.randrange(1, 40)
                until = keys[cut - 1] if len(keys) > cut else None
                parts.append(Part([(key, key[0]) for key in keys[:cut]], until))
            items, after = merged(parts, limit)
            assert len(items) <= limit
            told += items
            if after is None:
                break
        assert told == [f"{n:04}" for n in sorted({n for source in sources for n in source})], seed


def test_cursors() -> None:
    for key in (("",), ("a/b",), ("ä€𝄞",), ("x" * 1000,)):
        cursor = cursor_of(key)
        assert cursor is not None and key_of(cursor) == key
    assert cursor_of(None) is None and key_of("") is None
    for wrong in ("!", "AAAA", "W10", cursor_of(("a", "b")) or ""):
        with pytest.raises(AdminError):
            key_of(wrong)
