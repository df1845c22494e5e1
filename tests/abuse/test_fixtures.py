"""The watchers of this folder can fail: a test that cannot fail proves nothing."""

from __future__ import annotations

import pytest

from broker.codec.packets import Disconnect
from tests.abuse.conftest import Nodes
from tests.abuse.world import DEFECTS, Bystanders


@pytest.mark.parametrize(
    "line",
    [
        "error   reactor.handler_failed fd=7 logger=reactor",
        "error   server.task_failed logger=server",
        "Traceback (most recent call last):",
    ],
)
def test_a_defect_is_seen(line: str) -> None:
    assert DEFECTS.search(f"info    node.ready\n{line}\n")


def test_ordinary_lines_are_no_defects() -> None:
    assert not DEFECTS.search("info    connection.error reason=malformed_packet detail='a PUBLISH' logger=connection\n")


async def test_bystanders_notice_a_disconnect(nodes: Nodes) -> None:
    pair = Bystanders(nodes.get())
    await pair.begin()
    await pair._publisher.send(Disconnect())
    with pytest.raises(AssertionError):
        await pair._send()
    await pair.close()


async def test_bystanders_notice_a_missing_message(nodes: Nodes) -> None:
    pair = Bystanders(nodes.get())
    await pair.begin()
    await pair._send()
    with pytest.raises(AssertionError):
        await pair._take(2)
    await pair.close()
