"""MQTT.js in a real browser: MQTT 5 over WSS, from a page of an origin that is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.browser.chromium import Page, website
from tests.integration import mosquitto
from tests.kit.broker_process import BrokerProcess
from tests.kit.certificates import Chain

TCP, WSS, STRICT = range(3)


class Place(NamedTuple):
    """A node, the origin of the page, and where the page connects."""

    node: BrokerProcess
    origin: str
    url: str
    strict_url: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A node that lets pages of one origin in, and at another listener pages of none that is served here."""
    folder = tmp_path_factory.mktemp("browser")
    server = Chain(folder / "chain").server()
    keys = f"certfile={server.certfile}&keyfile={server.keyfile}"
    with website() as origin:
        listen = (
            "tcp://127.0.0.1:0",
            f"wss://127.0.0.1:0/mqtt?{keys}&origins={origin}",
            f"wss://127.0.0.1:0/mqtt?{keys}&origins=https://elsewhere.example",
        )
        node = BrokerProcess(folder / "n", listen=listen)
        node.start()
        yield Place(node, origin, node.listeners[WSS], node.listeners[STRICT])
        node.stop()


@pytest.fixture
def page(place: Place, tmp_path: Path) -> Iterator[Page]:
    """The page, freshly loaded."""
    with Page(f"{place.origin}/", tmp_path) as made:
        yield made


def test_messages_and_a_lost_connection(place: Place, page: Page) -> None:
    options = {"clientId": "browser", "clean": False, "properties": {"sessionExpiryInterval": 600}}
    assert page.call("connectTo", place.url, options) == {"sessionPresent": False, "reasonCode": 0}
    assert [each["qos"] for each in page.call("subscribe", "from/#", 2)] == [2]

    for qos in (1, 2):
        page.call("publish", f"from/{qos}", "hello", {"qos": qos, "properties": {"userProperties": {"a": "b"}}})
    got = page.call("take", 2)
    assert [(each["topic"], each["payload"], each["qos"]) for each in got] == [
        ("from/1", "hello", 1),
        ("from/2", "hello", 2),
    ]
    assert got[0]["properties"]["userProperties"] == {"a": "b"}

    page.call("publishMany", "from/many", 500, 1)
    assert [each["payload"] for each in page.call("take", 500)] == [str(number) for number in range(500)]
    page.call("publishLarge", "from/large", 700_000, 2)
    assert [each["size"] for each in page.call("take", 1)] == [700_000]

    for times in (1, 2):
        page.call("interrupt")
        for qos in (1, 2):
            mosquitto.publish(place.node, f"from/outside/{times}", f"at {qos}", qos=qos)
        assert page.call("reconnected", times) == {"sessionPresent": True, "reasonCode": 0}
        got = page.call("take", 2)
        assert sorted((each["payload"], each["qos"]) for each in got) == [("at 1", 1), ("at 2", 2)]

    with mosquitto.Subscriber(place.node, ["to/#"], qos=2) as outside:
        page.call("publishMany", "to/outside", 50, 2)
        assert outside.payloads(50) == [str(number) for number in range(50)]
    page.call("end")


def test_what_the_browser_sees_of_refusals(place: Place, page: Page) -> None:
    assert page.call("knock", place.url, ["mqttv5", "mqtt"], "text") == {
        "opened": "mqttv5",
        "code": 1003,
        "clean": True,
    }
    refused = {"opened": None, "code": 1006, "clean": False}
    assert page.call("knock", place.strict_url, ["mqtt"], "") == refused
    assert page.call("knock", place.url, ["chat"], "") == refused
    assert page.call("knock", place.url.replace("/mqtt", "/other"), ["mqtt"], "") == refused
