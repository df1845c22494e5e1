"""Every QoS of publisher and subscriber between clients of all three versions, with independent clients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration import mosquitto
from tests.integration.paho_client import Paho, publish_properties
from tests.kit.broker_process import BrokerProcess

VERSIONS = [3, 4, 5]

USER_PROPERTIES = [("colour", "red"), ("colour", "blue"), ("a", "1"), ("colour", "red")]


@pytest.mark.parametrize("subscriber_version", VERSIONS)
@pytest.mark.parametrize("publisher_version", VERSIONS)
def test_paho_to_mosquitto(node: BrokerProcess, topic: str, publisher_version: int, subscriber_version: int) -> None:
    props = None
    if publisher_version == 5:
        props = publish_properties(
            UserProperty=USER_PROPERTIES,
            ContentType="text/plain",
            ResponseTopic=f"{topic}/answer",
            CorrelationData=b"c-1",
            PayloadFormatIndicator=1,
            MessageExpiryInterval=1000,
        )
    with ExitStack() as stack:
        subscribers = [
            stack.enter_context(mosquitto.Subscriber(node, [topic], qos=qos, version=subscriber_version))
            for qos in range(3)
        ]
        publisher = stack.enter_context(Paho(node, publisher_version, "" if publisher_version > 3 else topic[-23:]))
        publisher.connect()
        for qos in range(3):
            publisher.publish(topic, f"at {qos}", qos, props=props)
        for granted, subscriber in enumerate(subscribers):
            for qos in range(3):
                message = subscriber.take()
                assert (message.payload, message.qos) == (f"at {qos}", min(qos, granted))
                assert not message.retain
                if publisher_version == 5 and subscriber_version == 5:
                    assert message.user_properties == USER_PROPERTIES
                    assert message.properties["content-type"] == "text/plain"
                    assert message.properties["response-topic"] == f"{topic}/answer"
                    assert message.properties["correlation-data"] == "c-1"
                    assert message.properties["payload-format-indicator"] == 1
                    assert 990 < message.properties["message-expiry-interval"] <= 1000
                else:
                    assert message.properties == {}


@pytest.mark.parametrize("subscriber_version", VERSIONS)
@pytest.mark.parametrize("publisher_version", VERSIONS)
def test_mosquitto_to_paho(node: BrokerProcess, topic: str, publisher_version: int, subscriber_version: int) -> None:
    arguments: list[str] = []
    if publisher_version == 5:
        for name, value in USER_PROPERTIES:
            arguments += ["-D", "publish", "user-property", name, value]
        arguments += ["-D", "publish", "content-type", "text/plain"]
        arguments += ["-D", "publish", "response-topic", f"{topic}/answer"]
        arguments += ["-D", "publish", "correlation-data", "c-1"]
        arguments += ["-D", "publish", "payload-format-indicator", "1"]
    with ExitStack() as stack:
        subscribers = []
        for qos in range(3):
            client_id = f"{qos}{topic}"[:23] if subscriber_version == 3 else ""
            subscriber = stack.enter_context(Paho(node, subscriber_version, client_id)).connect()
            assert subscriber.subscribe(topic, qos) == [qos]
            subscribers.append(subscriber)
        for qos in range(3):
            mosquitto.publish(node, topic, f"at {qos}", *arguments, qos=qos, version=publisher_version)
        for granted, subscriber in enumerate(subscribers):
            for qos in range(3):
                message = subscriber.take()
                assert (message.payload, message.qos) == (f"at {qos}".encode(), min(qos, granted))
                assert not message.retain and not message.dup
                if publisher_version == 5 and subscriber_version == 5:
                    got: Any = message.properties
                    assert got.UserProperty == USER_PROPERTIES
                    assert (got.ContentType, got.ResponseTopic) == ("text/plain", f"{topic}/answer")
                    assert (got.CorrelationData, got.PayloadFormatIndicator) == (b"c-1", 1)
                elif subscriber_version == 5:
                    nothing: Any = message.properties
                    assert nothing.isEmpty()
