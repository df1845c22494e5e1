"""Scenarios of the load test: those that come along are right, and wrong ones are refused in words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from broker.codec.encode import encode
from broker.codec.packets import Properties, Publish
from loadtest import scenario
from loadtest.address import resolve, resolve_all
from loadtest.scenario import Scenario, ScenarioError, load, parse
from loadtest.wire import STAMP, Wire

P2P: dict[str, Any] = {"publishers": 1, "subscribers": 1}


@pytest.mark.parametrize("name", scenario.names())
def test_scenarios_that_come_along_can_be_read(name: str) -> None:
    found = load(name)
    assert found.name == name
    assert found.title != name
    assert found.clients > 0


def test_there_is_a_scenario_of_every_layout() -> None:
    assert {load(name).layout for name in scenario.names()} == set(scenario.LAYOUTS)


@pytest.mark.parametrize(
    "content, text",
    [
        ({**P2P, "speed": 3}, "x.toml: speed: unknown key; known are layout, publishers"),
        ({**P2P, "qos": 3}, "x.toml: qos: 3 is none of 0, 1, 2"),
        ({**P2P, "qos": True}, "x.toml: qos: True is not an integer"),
        ({**P2P, "clean": 1}, "x.toml: clean: 1 is not true or false"),
        ({**P2P, "size": "64"}, "x.toml: size: '64' is not an integer"),
        ({**P2P, "size": 15}, "x.toml: size: 15 is not within 16 to"),
        ({**P2P, "rate": -1}, "x.toml: rate: -1 is not within 0 to"),
        ({**P2P, "layout": "ring"}, "x.toml: layout: 'ring' is none of p2p, fanin"),
        ({**P2P, "cut": 1.5}, "x.toml: cut: 1.5 is not within 0 to 1"),
        ({**P2P, "prefix": "a/#"}, "x.toml: prefix: 'a/#' is no topic name"),
        ({**P2P, "prefix": "$SYS/a"}, "x.toml: prefix: '\\$SYS/a': topics that begin with \\$ are the broker's own"),
        ({**P2P, "prefix": "a" * 66_000}, "x.toml: prefix: 66,000 bytes, but at most 65,435 are possible"),
        ({"publishers": 1}, "x.toml: subscribers: layout p2p needs at least 1"),
        ({"publishers": 2, "subscribers": 3}, "x.toml: subscribers: 3, but layout p2p needs as many as"),
        ({"layout": "none"}, "x.toml: nobody connects"),
        ({**P2P, "name": "x"}, "x.toml: name: unknown key"),
        ({**P2P, "also": 3}, "x.toml: also: give tables"),
        ({**P2P, "also": [{"seconds": 3}]}, r"x.toml: \[\[also\]\]: seconds: unknown key"),
        ({**P2P, "also": [{"layout": "none"}]}, "layout: none is no traffic"),
        ({**P2P, "layout": "retained", "also": [P2P]}, "layout retained stands alone"),
        ({**P2P, "properties": {"topic_alias": 1}}, "x.toml: properties.topic_alias: unknown property"),
        ({**P2P, "properties": {"content_type": 1}}, "x.toml: properties.content_type: 1 is not of type str"),
        ({**P2P, "properties": {"message_expiry_interval": -1}}, "expiry_interval: -1 is not within 0 to 4294967295"),
        ({**P2P, "properties": {"payload_format_indicator": 7}}, "payload_format_indicator: 7 is not within 0 to 1"),
        ({**P2P, "properties": {"response_topic": "a/#"}}, "response_topic: 'a/#' is no topic name"),
        ({**P2P, "properties": {"content_type": "x" * 66_000}}, "content_type: 66,000 bytes, but at most 65,535"),
        ({**P2P, "properties": {"user": {"a": "b\0"}}}, r"user: 'b\\x00' has characters that MQTT does not permit"),
        ({**P2P, "version": 4, "properties": {"content_type": "x"}}, "x.toml: properties: only with version = 5"),
    ],
    ids=str,
)
def test_wrong_scenarios_are_refused(content: dict[str, Any], text: str) -> None:
    with pytest.raises(ScenarioError, match=text):
        parse(content, "x", "x.toml")


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no scenario 'p2q': give one of away, .* or the path of a TOML file"):
        load("p2q")
    with pytest.raises(ScenarioError, match=r"none\.toml: No such file"):
        load(str(tmp_path / "none.toml"))
    path = tmp_path / "mine.toml"
    path.write_text("qos = \n", "utf-8")
    with pytest.raises(ScenarioError, match=r"mine\.toml: Invalid value \(at line 1"):
        load(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(ScenarioError, match=r"mine\.toml: "):
        load(str(path))


def test_overrides_count_instead_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(scenario.find("p2p1").read_text("utf-8"), "utf-8")
    found = load(str(path), {"rate": 10, "qos": 2})
    assert (found.name, found.qos, found.rate, found.publishers) == ("mine", 2, 10.0, 100)
    with pytest.raises(ScenarioError, match="--set: qos: 7 is none of"):
        load("p2p1", {"qos": 7})


def test_titles_say_what_is_not_as_the_file_says() -> None:
    assert load("p2p1", {"qos": 0, "publishers": 2, "subscribers": 2, "seconds": 1}).title == (
        "p2p QoS 1, 100 pairs (qos 0, publishers 2, subscribers 2)"
    )
    assert load("p2p1", {"clean": False, "rate": 10.0}).title == "p2p QoS 1, 100 pairs (clean false, rate 10)"
    assert load("p2p1", {"qos": 1, "warmup": 0.2}).title == "p2p QoS 1, 100 pairs"
    assert load("p2p1", {"qos": 0, "title": "mine"}).title == "mine"


@pytest.mark.parametrize(
    "text, pair",
    [
        ("qos=1", ("qos", 1)),
        ("rate = 1e3", ("rate", 1000.0)),
        ("clean=false", ("clean", False)),
        ("title=some words", ("title", "some words")),
        ('title="quoted"', ("title", "quoted")),
        ("title=3", ("title", "3")),
        ("properties={content_type = 'x'}", ("properties", {"content_type": "x"})),
        ("qos=", ("qos", "")),
    ],
)
def test_settings_of_a_command_line(text: str, pair: tuple[str, Any]) -> None:
    assert scenario.override(text) == pair


def test_a_setting_has_a_value() -> None:
    with pytest.raises(ScenarioError, match="give KEY=VALUE"):
        scenario.override("qos")


def test_the_settings_of_a_result_are_a_scenario_again() -> None:
    found = load("mixed")
    content = found.as_dict()
    assert parse(content, "mixed", "again") == found
    assert set(content) == {*scenario.keys(), "also"}
    assert set(tomllib.loads(scenario.find("mixed").read_text("utf-8"))) <= set(content)


def test_counts_of_clients() -> None:
    assert Scenario(layout="none", idle=5).clients == 5
    assert Scenario(publishers=2, subscribers=2, idle=1).clients == 5
    assert Scenario(layout="none", idle=5, publishers=7).clients == 5


def test_properties_are_those_of_the_codec() -> None:
    wanted = {"content_type": "a/b", "message_expiry_interval": 60, "user": {"k": "v"}}
    wire = Wire(5, 1, 40, 1, wanted)
    properties = Properties()
    properties.content_type, properties.message_expiry_interval, properties.user_properties = "a/b", 60, [("k", "v")]
    payload = STAMP.pack(1, 2, 3) + wire.padding
    packet = wire.struct.pack(wire.head("t"), b"\x00\x07", wire.properties, 1, 2, 3, wire.padding)
    assert packet == encode(Publish("t", payload, 1, packet_id=7, properties=properties), 5)


@pytest.mark.parametrize(
    "url, said",
    [
        ("127.0.0.1", "mqtt://127.0.0.1:1883"),
        ("127.0.0.1:7", "mqtt://127.0.0.1:7"),
        ("mqtt://127.0.0.1", "mqtt://127.0.0.1:1883"),
        ("mqtts://127.0.0.1", "mqtts://127.0.0.1:8883"),
        ("mqtt://[::1]:9", "mqtt://[::1]:9"),
    ],
)
def test_addresses(url: str, said: str) -> None:
    assert str(resolve(url)) == said


@pytest.mark.parametrize(
    "url, text",
    [
        ("ws://h", "does not speak WebSocket"),
        ("http://h", "http:// is unknown"),
        ("mqtt://me:secret@h", "no user and password in a URL"),
        ("mqtt://h/path", "is not mqtt://HOST:PORT"),
        ("mqtt://", "is not mqtt://HOST:PORT"),
        ("mqtt://h:port", "Port could not be cast"),
    ],
)
def test_wrong_addresses(url: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        resolve(url)
    assert "secret" not in str(caught.value)


def test_several_addresses() -> None:
    found = resolve_all(["127.0.0.1:1,127.0.0.1:2", "127.0.0.1:3"])
    assert [address.port for address in found] == [1, 2, 3]


def test_the_scenario_of_the_docs_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text("utf-8")
    [block] = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(parse(tomllib.loads(block), "docs", "loadtest.md").streams) == 2
