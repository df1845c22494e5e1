"""paho-mqtt against the broker: what the other suites leave out, in versions 3.1, 3.1.1 and 5."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.integration import mosquitto
from tests.integration.paho_client import Paho, properties, publish_properties
from tests.kit.broker_process import BrokerProcess

VERSIONS = [3, 4, 5]


def session(seconds: int) -> Any:
    """CONNECT properties with a Session Expiry Interval."""
    return properties(PacketTypes.CONNECT, SessionExpiryInterval=seconds)


@pytest.mark.parametrize("handling", [0, 1, 2])
def test_retain_handling(node: BrokerProcess, topic: str, handling: int) -> None:
    mosquitto.publish(node, topic, "kept", qos=1, retain=True)
    options = SubscribeOptions(qos=1, retainHandling=handling)
    with Paho(node) as client:
        client.connect()
        for _ in range(2):
            client.subscribe(topic, options=options)
        mosquitto.publish(node, topic, "live", qos=1)
        got: list[tuple[bytes | bytearray, bool]] = []
        while not got or got[-1][0] != b"live":
            message = client.take()
            got.append((message.payload, message.retain))
        kept = {0: 2, 1: 1, 2: 0}[handling]
        assert got == [(b"kept", True)] * kept + [(b"live", False)]


def test_retain_as_published_and_no_local(node: BrokerProcess, topic: str) -> None:
    with Paho(node) as plain, Paho(node) as client:
        plain.connect().subscribe(topic, 1)
        client.connect().subscribe(topic, options=SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True))
        client.publish(topic, "own", 1, retain=True)
        mosquitto.publish(node, topic, "other", qos=1, retain=True)
        assert [(m.payload, m.retain) for m in (plain.take(), plain.take())] == [(b"own", False), (b"other", False)]
        message = client.take()
        assert (message.payload, message.retain) == (b"other", True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_goes_on(node: BrokerProcess, topic: str, version: int) -> None:
    name = topic[-23:]
    connect_properties = session(600) if version == 5 else None
    client = Paho(node, version, name, clean=False).connect(connect_properties=connect_properties)
    client.subscribe(topic)
    client.crash()
    for number in range(150):
        mosquitto.publish(node, topic, str(number), qos=1 + number % 2)
    with Paho(node, version, name, clean=False) as again:
        again.connect(connect_properties=connect_properties)
        assert again.flags is not None
        assert again.flags.session_present is (version > 3)  # 3.1 cannot tell
        got = [again.take() for _ in range(150)]
        for qos in (1, 2):
            assert [int(m.payload) for m in got if m.qos == qos] == [n for n in range(150) if 1 + n % 2 == qos]
    with Paho(node, version, name, clean=True) as fresh:
        fresh.connect()
        assert fresh.flags is not None and not fresh.flags.session_present


def test_the_expiry_of_disconnect(node: BrokerProcess, topic: str) -> None:
    name = topic[-23:]
    for _ in range(2):
        client = Paho(node, 5, name, clean=False).connect(connect_properties=session(600))
        assert client.flags is not None and not client.flags.session_present
        client.client.disconnect(properties=properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0))
        client.wait_gone()
        client.client.loop_stop()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_will(node: BrokerProcess, topic: str, version: int, qos: int) -> None:
    with mosquitto.Subscriber(node, [f"{topic}/#"]) as watcher:
        for polite in (True, False):
            client = Paho(node, version, topic[-23:])
            client.client.will_set(f"{topic}/will", f"polite: {polite}", qos, retain=True)
            client.connect()
            if polite:
                client.close()
            else:
                client.crash()
        got = watcher.take()
        assert (got.payload, got.qos, got.retain) == ("polite: False", qos, False)


def test_a_delayed_will_is_cancelled(node: BrokerProcess, topic: str) -> None:
    name = topic[-23:]
    with mosquitto.Subscriber(node, [f"{topic}/#"]) as watcher:
        for ending in (True, False):
            client = Paho(node, 5, name, clean=False)
            client.client.will_set(
                f"{topic}/will", "gone", 1, properties=properties(PacketTypes.WILLMESSAGE, WillDelayInterval=1)
            )
            client.connect(connect_properties=session(600))
            client.crash()
            if ending:
                with Paho(node, 5, name, clean=False) as back:
                    back.connect(connect_properties=session(600))
        # The first was cancelled by the resumed session: only one will comes.
        assert watcher.take().payload == "gone"
        mosquitto.publish(node, f"{topic}/end", "end", qos=1)
        assert watcher.take().payload == "end"


def test_takeover(node: BrokerProcess, topic: str) -> None:
    older = Paho(node, 5, topic[-23:]).connect()
    with Paho(node, 5, topic[-23:]) as newer:
        newer.connect()
        reason = older.wait_gone()
        assert reason is not None and reason.value == 0x8E
        older.client.loop_stop()
        newer.subscribe(topic)
        newer.publish(topic, "still here", 2)
        assert newer.take().payload == b"still here"


def test_an_assigned_client_identifier(node: BrokerProcess, topic: str) -> None:
    with Paho(node) as one, Paho(node) as two, Paho(node, 4) as old:
        made: list[Any] = [client.connect().connack_properties for client in (one, two)]
        assert made[0].AssignedClientIdentifier != made[1].AssignedClientIdentifier
        old.connect().subscribe(topic)
        one.publish(topic, "x", 1)
        assert old.take().payload == b"x"


def test_what_connack_announces(node: BrokerProcess) -> None:
    with Paho(node) as client:
        connack: Any = client.connect().connack_properties
        assert connack.ReceiveMaximum == 100
        assert connack.MaximumPacketSize == 1024 * 1024
        assert connack.TopicAliasMaximum == 64
        for name in ("MaximumQoS", "RetainAvailable", "SharedSubscriptionAvailable", "ServerKeepAlive"):
            assert not hasattr(connack, name)  # everything is available


@pytest.mark.parametrize("version", VERSIONS)
def test_windows_full_both_ways(node: BrokerProcess, topic: str, version: int) -> None:
    """More messages on their way than either side's window; all arrive, in order."""
    with Paho(node, version, topic[-23:]) as client:
        client.client.max_inflight_messages_set(100)
        client.connect()
        client.subscribe(topic)
        for number in range(600):
            client.client.publish(topic, str(number), 1 + number % 2)
        got = [client.take() for _ in range(600)]
        for qos in (1, 2):
            assert [int(m.payload) for m in got if m.qos == qos] == [n for n in range(600) if 1 + n % 2 == qos]


def test_request_and_response(node: BrokerProcess, topic: str) -> None:
    asks_for = properties(PacketTypes.CONNECT, RequestResponseInformation=1)
    with Paho(node) as requester, Paho(node) as responder:
        connack: Any = requester.connect(connect_properties=asks_for).connack_properties
        answers = f"{connack.ResponseInformation}/answers"
        requester.subscribe(answers, 1)
        responder.connect().subscribe(f"{topic}/question", 1)
        for number in range(5):
            requester.publish(
                f"{topic}/question",
                str(number),
                1,
                props=publish_properties(ResponseTopic=answers, CorrelationData=b"n%d" % number),
            )
            question = responder.take()
            props: Any = question.properties
            responder.publish(
                props.ResponseTopic,
                bytes(question.payload) * 2,
                1,
                props=publish_properties(CorrelationData=props.CorrelationData),
            )
            answer = requester.take()
            got: Any = answer.properties
            assert (answer.payload, got.CorrelationData) == (str(number).encode() * 2, b"n%d" % number)


def test_subscription_identifiers(node: BrokerProcess, topic: str) -> None:
    name = topic[-23:]
    mosquitto.publish(node, f"{topic}/kept", "kept", qos=1, retain=True)
    client = Paho(node, 5, name, clean=False).connect(connect_properties=session(600))
    client.subscribe(f"{topic}/kept", 1, identifier=1)
    message = client.take()
    assert identifiers(message) == [1] and message.retain
    client.subscribe(f"{topic}/+", options=SubscribeOptions(qos=2, retainHandling=2), identifier=2)
    client.subscribe(f"{topic}/#", options=SubscribeOptions(qos=0, retainHandling=2))
    for qos in range(3):
        mosquitto.publish(node, f"{topic}/kept", f"at {qos}", qos=qos)
        message = client.take()
        assert (identifiers(message), message.qos) == ([1, 2], qos)
    client.crash()
    mosquitto.publish(node, f"{topic}/kept", "queued", qos=1)
    mosquitto.publish(node, f"{topic}/kept/deeper", "by the one without", qos=1)
    with Paho(node, 5, name, clean=False) as again:
        again.connect(connect_properties=session(600))
        message = again.take()
        assert (identifiers(message), message.payload) == ([1, 2], b"queued")
        mosquitto.publish(node, f"{topic}/x/y", "by the one without", qos=1)
        message = again.take()
        assert (identifiers(message), message.payload) == ([], b"by the one without")


def identifiers(message: Any) -> list[int]:
    """The Subscription Identifiers of a message, sorted: their order means nothing."""
    return sorted(getattr(message.properties, "SubscriptionIdentifier", []))


@pytest.mark.parametrize("qos", [1, 2])
def test_a_shared_subscription_of_all_versions(node: BrokerProcess, topic: str, qos: int) -> None:
    with ExitStack() as stack:
        members = [stack.enter_context(Paho(node, version, f"{version}{topic}"[:23])).connect() for version in VERSIONS]
        for member in members:
            assert member.subscribe(f"$share/g/{topic}", qos) == [qos]
        publisher = stack.enter_context(Paho(node)).connect()
        for number in range(30):
            publisher.publish(topic, str(number), qos)
        shares = [[int(member.take().payload) for _ in range(10)] for member in members]
        assert sorted(number for share in shares for number in share) == list(range(30))
        assert all(share == sorted(share) for share in shares)
        members[0].unsubscribe(f"$share/g/{topic}")
        for number in range(10):
            publisher.publish(topic, str(number), qos)
        shares = [[int(member.take().payload) for _ in range(5)] for member in members[1:]]
        assert sorted(number for share in shares for number in share) == list(range(10))


def test_nobody_is_subscribed(node: BrokerProcess, topic: str) -> None:
    with Paho(node) as client:
        client.connect()
        assert client.publish(topic, "x", 1) == 0x10
        client.subscribe(topic)
        assert client.publish(topic, "x", 1) == 0
