"""What a new user does first: mosquitto_sub, mosquitto_pub and mosquitto_rr in a terminal."""

from __future__ import annotations

import pytest

from tests.integration import mosquitto
from tests.kit.broker_process import BrokerProcess

VERSIONS = [3, 4, 5]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_file_of_lines(node: BrokerProcess, topic: str, version: int, qos: int) -> None:
    lines = [f"line {number}" for number in range(50)]
    with mosquitto.Subscriber(node, [f"{topic}/#"], "-C", "50", version=version) as subscriber:
        done = mosquitto.run(
            "mosquitto_pub",
            node,
            "-t",
            f"{topic}/x",
            "-l",
            "-q",
            str(qos),
            version=version,
            text="\n".join(lines) + "\n",
        )
        assert done.returncode == 0, done.stderr
        status, messages = subscriber.end()
        assert status == 0
        assert [(message.payload, message.qos) for message in messages] == [(line, qos) for line in lines]


def test_a_file_as_one_message(node: BrokerProcess, topic: str) -> None:
    text = "0123456789abcdef" * 40_000
    with mosquitto.Subscriber(node, [topic]) as subscriber:
        done = mosquitto.run("mosquitto_pub", node, "-t", topic, "-s", "-q", "1", text=text)
        assert done.returncode == 0, done.stderr
        assert subscriber.take().payload == text


@pytest.mark.parametrize("version", VERSIONS)
def test_wildcards_and_ordinary_characters(node: BrokerProcess, topic: str, version: int) -> None:
    with (
        mosquitto.Subscriber(node, [f"{topic}/+/temp"], version=version) as plus,
        mosquitto.Subscriber(node, [f"{topic}/a b/*.>/+"], version=version) as odd,
    ):
        mosquitto.publish(node, f"{topic}/kitchen/hum", "no", version=version)
        mosquitto.publish(node, f"{topic}/kitchen/x/temp", "no", version=version)
        mosquitto.publish(node, f"{topic}/kitchen/temp", "21", qos=1, version=version)
        mosquitto.publish(node, f"{topic}/a b/x.y/é", "no", qos=1, version=version)
        mosquitto.publish(node, f"{topic}/a b/*.>/é", "yes", qos=1, version=version)
        assert plus.take().payload == "21"
        got = odd.take()
        assert (got.topic, got.payload) == (f"{topic}/a b/*.>/é", "yes")


@pytest.mark.parametrize("version", VERSIONS)
def test_retained(node: BrokerProcess, topic: str, version: int) -> None:
    mosquitto.publish(node, f"{topic}/a", "1", qos=1, retain=True, version=version)
    mosquitto.publish(node, f"{topic}/b", "2", qos=2, retain=True, version=version)
    mosquitto.publish(node, f"{topic}/c", "3", retain=True, version=version)
    mosquitto.publish(node, f"{topic}/a", "4", qos=1, retain=True, version=version)
    mosquitto.publish(node, f"{topic}/b", "", qos=1, retain=True, version=version)
    with mosquitto.Subscriber(node, [f"{topic}/#"], version=version) as subscriber:
        got = sorted((m.topic[-1], m.payload, m.qos, m.retain) for m in (subscriber.take(), subscriber.take()))
        assert got == [("a", "4", 1, True), ("c", "3", 0, True)]
        mosquitto.publish(node, f"{topic}/a", "live", qos=1, retain=True, version=version)
        assert subscriber.take()[1:4] == ("live", 1, False)
    with mosquitto.Subscriber(node, [f"{topic}/#"], "--remove-retained", qos=1, version=version) as remover:
        # It publishes empty retained messages, and gets them back as live ones.
        assert sorted((m.payload, m.retain) for m in (remover.take() for _ in range(4))) == [
            ("", False),
            ("", False),
            ("3", True),
            ("live", True),
        ]
    with mosquitto.Subscriber(node, [f"{topic}/#"], version=version) as subscriber:
        mosquitto.publish(node, f"{topic}/end", "end", qos=1, version=version)
        assert subscriber.take().payload == "end"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_will(node: BrokerProcess, topic: str, version: int, qos: int) -> None:
    will = ["--will-topic", f"{topic}/will", "--will-payload", "gone", "--will-qos", str(qos), "--will-retain"]
    with mosquitto.Subscriber(node, [f"{topic}/will"]) as watcher:
        polite = mosquitto.run("mosquitto_sub", node, "-t", "x", "-E", *will, version=version)
        assert polite.returncode == 0
        crashing = mosquitto.Subscriber(node, [f"{topic}/x"], *will, version=version)
        mosquitto.publish(node, f"{topic}/will", "before", qos=2)
        crashing.kill()
        assert watcher.take().payload == "before"
        got = watcher.take()
        assert (got.payload, got.qos, got.retain) == ("gone", qos, False)
    with mosquitto.Subscriber(node, [f"{topic}/will"]) as late:
        assert late.take()[1:4] == ("gone", qos, True)


def test_will_properties(node: BrokerProcess, topic: str) -> None:
    will = ["--will-topic", f"{topic}/will", "--will-payload", "gone", "--will-qos", "1"]
    will += ["-D", "will", "content-type", "text/plain", "-D", "will", "response-topic", "r"]
    will += ["-D", "will", "correlation-data", "c", "-D", "will", "user-property", "b", "2"]
    will += ["-D", "will", "user-property", "a", "1", "-D", "will", "user-property", "b", "3"]
    will += ["-D", "will", "message-expiry-interval", "500", "-D", "will", "will-delay-interval", "1"]
    will += ["-x", "60"]
    with mosquitto.Subscriber(node, [f"{topic}/will"]) as watcher:
        client = mosquitto.Subscriber(node, ["x"], *will, "-i", topic[-23:])
        client.kill()
        got = watcher.take()
        assert got.user_properties == [("b", "2"), ("a", "1"), ("b", "3")]
        assert got.properties["content-type"] == "text/plain"
        assert got.properties["response-topic"] == "r"
        assert got.properties["correlation-data"] == "c"
        assert 490 <= got.properties["message-expiry-interval"] <= 500


def test_disconnect_with_will(node: BrokerProcess, topic: str) -> None:
    will = ["--will-topic", f"{topic}/will", "--will-payload", "told", "--will-qos", "1"]
    with mosquitto.Subscriber(node, [f"{topic}/will"]) as watcher:
        client = mosquitto.Subscriber(node, ["x"], *will)
        client.leave()  # SIGTERM: DISCONNECT with 0x04
        client_said = " ".join(client.lines)
        assert watcher.take().payload == "told", client_said


@pytest.mark.parametrize("version", VERSIONS)
def test_persistent_session(node: BrokerProcess, topic: str, version: int) -> None:
    name = ["-c", "-i", topic[-23:]]
    first = mosquitto.run("mosquitto_sub", node, "-t", topic, "-q", "2", "-E", *name, version=version)
    assert first.returncode == 0, first.stdout
    for number in range(20):
        mosquitto.publish(node, topic, str(number), qos=1 + number % 2, version=version)
    mosquitto.publish(node, topic, "not queued", qos=0, version=version)
    with mosquitto.Subscriber(node, [topic], "-C", "20", *name, version=version, subscribed=False) as again:
        status, messages = again.end()
        assert status == 0
        # Within a QoS, in order: mosquitto_sub prints a QoS 2 message when it is released.
        for qos in (1, 2):
            assert [m.payload for m in messages if m.qos == qos] == [str(n) for n in range(20) if 1 + n % 2 == qos]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_shared_subscription(node: BrokerProcess, topic: str, version: int, qos: int) -> None:
    shared = f"$share/workers/{topic}/+"
    with (
        mosquitto.Subscriber(node, [shared], version=version) as one,
        mosquitto.Subscriber(node, [shared], version=version) as two,
        mosquitto.Subscriber(node, [f"{topic}/+"], version=version) as everything,
    ):
        sent = [str(number) for number in range(20)]
        done = mosquitto.run(
            "mosquitto_pub",
            node,
            "-t",
            f"{topic}/t",
            "-l",
            "-q",
            str(qos),
            version=version,
            text="\n".join(sent) + "\n",
        )
        assert done.returncode == 0
        assert everything.payloads(20) == sent
        got_one, got_two = one.payloads(10), two.payloads(10)
        assert sorted(got_one + got_two, key=int) == sent
        assert got_one == sorted(got_one, key=int) and got_two == sorted(got_two, key=int)


def test_request_and_response(node: BrokerProcess, topic: str) -> None:
    with mosquitto.Subscriber(node, [f"{topic}/question"]) as responder:
        waiting = mosquitto.Request(node, f"{topic}/question", f"{topic}/answer", "how much?", "-q", "1")
        question = responder.take()
        assert question.properties["response-topic"] == f"{topic}/answer"
        mosquitto.publish(node, question.properties["response-topic"], "42", qos=1)
        assert waiting.answer() == "42"


def test_retain_as_published(node: BrokerProcess, topic: str) -> None:
    with mosquitto.Subscriber(node, [topic], "--retain-as-published") as watcher:
        mosquitto.publish(node, topic, "kept flag", qos=1, retain=True)
        assert watcher.take().retain


def test_verbose_topics_of_many_filters(node: BrokerProcess, topic: str) -> None:
    filters = [f"{topic}/a", f"{topic}/a", f"{topic}/#", f"{topic}/+"]
    with mosquitto.Subscriber(node, filters, qos=1) as subscriber:
        mosquitto.publish(node, f"{topic}/a", "once", qos=2)
        mosquitto.publish(node, f"{topic}/a", "end", qos=2)
        assert subscriber.payloads(2) == ["once", "end"]  # overlapping subscriptions: one copy


@pytest.mark.parametrize("version", VERSIONS)
def test_unsubscribe(node: BrokerProcess, topic: str, version: int) -> None:
    with mosquitto.Subscriber(node, [f"{topic}/a", f"{topic}/b"], "-U", f"{topic}/a", version=version) as subscriber:
        subscriber.wait_for("received UNSUBACK")
        mosquitto.publish(node, f"{topic}/a", "no", qos=1, version=version)
        mosquitto.publish(node, f"{topic}/b", "yes", qos=1, version=version)
        assert subscriber.take().payload == "yes"


def test_takeover_tells_the_older_client(node: BrokerProcess, topic: str) -> None:
    name = topic[-23:]
    with mosquitto.Subscriber(node, [topic], "-i", name) as older, mosquitto.Subscriber(node, [topic], "-i", name):
        older.wait_for("Received DISCONNECT (142)")
