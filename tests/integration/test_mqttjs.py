"""MQTT.js against the broker, alone and together with the clients of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration import mosquitto
from tests.integration.javascript import JavaScript
from tests.kit.broker_process import BrokerProcess

VERSIONS = [3, 4, 5]


@pytest.fixture
def js(node: BrokerProcess) -> Iterator[JavaScript]:
    """A process with MQTT.js."""
    with JavaScript(node) as process:
        yield process


@pytest.mark.parametrize("subscriber", VERSIONS)
@pytest.mark.parametrize("publisher", VERSIONS)
def test_every_qos_between_versions(js: JavaScript, topic: str, publisher: int, subscriber: int) -> None:
    js.connect("js-p", publisher)
    for granted in range(3):
        name = f"js-{granted}"
        js.connect(name, subscriber)
        js.do("subscribe", name, topic=f"{topic}/{granted}", options={"qos": granted})
        for qos in range(3):
            js.do("publish", "js-p", topic=f"{topic}/{granted}", payload=f"at {qos}", options={"qos": qos})
        for qos in range(3):
            message = js.event("message")
            assert (message["client"], message["payload"]) == (name, f"at {qos}")
            assert (message["qos"], message["retain"], message["dup"]) == (min(qos, granted), False, False)


def test_properties_both_ways(js: JavaScript, node: BrokerProcess, topic: str) -> None:
    given = {
        "contentType": "text/plain",
        "responseTopic": "r/t",
        "correlationData": "c-1",
        "payloadFormatIndicator": True,
        "messageExpiryInterval": 1000,
        "userProperties": {"b": ["1", "2"], "a": "3"},
    }
    js.connect("js-props")
    js.do("subscribe", "js-props", topic=topic, options={"qos": 1, "properties": {"subscriptionIdentifier": 42}})
    with mosquitto.Subscriber(node, [topic]) as other:
        js.do("publish", "js-props", topic=topic, payload="x", options={"qos": 1, "properties": given})
        seen = other.take()
        assert seen.user_properties == [("b", "1"), ("b", "2"), ("a", "3")]
        assert seen.properties["content-type"] == "text/plain"
        message = js.event("message")
        got = message["properties"]
        assert 990 < got.pop("messageExpiryInterval") <= 1000
        assert got.pop("subscriptionIdentifier") == 42
        assert got == {name: value for name, value in given.items() if name != "messageExpiryInterval"}


def test_topic_aliases_both_ways(js: JavaScript, topic: str) -> None:
    connack = js.connect("js-alias", properties={"topicAliasMaximum": 5}, autoAssignTopicAlias=True)
    assert connack["properties"]["topicAliasMaximum"] == 64
    js.do("subscribe", "js-alias", topic=f"{topic}/#", options={"qos": 1})
    for round_number in range(3):
        for level in range(8):
            js.do("publish", "js-alias", topic=f"{topic}/{level}", payload=str(round_number), options={"qos": 1})
    for round_number in range(3):
        for level in range(8):
            message = js.event("message")
            assert (message["topic"], message["payload"]) == (f"{topic}/{level}", str(round_number))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_persistent_session(js: JavaScript, node: BrokerProcess, topic: str, version: int) -> None:
    name = f"js-away-{version}"
    options: dict[str, object] = {"clean": False}
    if version == 5:
        options["properties"] = {"sessionExpiryInterval": 600}
    assert js.connect(name, version, **options)["sessionPresent"] is False
    js.do("subscribe", name, topic=topic, options={"qos": 2})
    js.do("break", name)
    js.event("close")
    for number in range(30):
        mosquitto.publish(node, topic, str(number), qos=1 + number % 2)
    js.connect(name, version, **options)
    got = [js.event("message") for _ in range(30)]
    for qos in (1, 2):
        assert [m["payload"] for m in got if m["qos"] == qos] == [str(n) for n in range(30) if 1 + n % 2 == qos]


def test_will_and_retained(js: JavaScript, topic: str) -> None:
    js.connect("js-watch")
    js.do("subscribe", "js-watch", topic=f"{topic}/#", options={"qos": 1, "rap": True})
    will = {"topic": f"{topic}/will", "payload": "gone", "qos": 1, "retain": True, "properties": {"contentType": "t"}}
    js.connect("js-doomed", will=will)
    js.do("break", "js-doomed")
    events = sorted((js.event_of_any() for _ in range(2)), key=lambda event: str(event["event"]))
    assert [event["event"] for event in events] == ["close", "message"]
    assert (events[1]["payload"], events[1]["retain"]) == ("gone", True)
    assert events[1]["properties"]["contentType"] == "t"
    js.connect("js-late", 4)
    js.do("subscribe", "js-late", topic=f"{topic}/+")
    late = js.event("message")
    assert (late["client"], late["payload"], late["retain"]) == ("js-late", "gone", True)


def test_takeover(js: JavaScript, node: BrokerProcess, topic: str) -> None:
    js.connect("js-twice")
    with mosquitto.Subscriber(node, [topic], "-i", "js-twice"):
        assert js.event("disconnect")["reasonCode"] == 0x8E
        js.event("close")


def test_shared_with_a_member_of_another_kind(js: JavaScript, node: BrokerProcess, topic: str) -> None:
    js.connect("js-member", 4)
    js.do("subscribe", "js-member", topic=f"$share/g/{topic}", options={"qos": 1})
    with mosquitto.Subscriber(node, [f"$share/g/{topic}"], qos=1) as other:
        js.connect("js-publisher")
        for number in range(20):
            js.do("publish", "js-publisher", topic=topic, payload=str(number), options={"qos": 1})
        got = [js.event("message")["payload"] for _ in range(10)] + other.payloads(10)
        assert sorted(got, key=int) == [str(number) for number in range(20)]
        js.do("unsubscribe", "js-member", topic=f"$share/g/{topic}")
        for number in range(5):
            js.do("publish", "js-publisher", topic=topic, payload=str(number), options={"qos": 1})
        assert other.payloads(5) == ["0", "1", "2", "3", "4"]
