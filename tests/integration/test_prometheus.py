"""Metrics by the tools of Prometheus: promtool, and a real server that scrapes three nodes under traffic."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from broker.metrics_catalogue import CATALOGUE, FAMILIES, HISTOGRAM
from tests.conformance.peers import Peers
from tests.integration.conftest import StartNode
from tests.integration.prometheus_server import DEPLOY, RULES, Prometheus, prometheus, promtool
from tests.kit.broker_process import ROOT, BrokerProcess
from tests.kit.certificates import Chain
from tests.kit.redis_server import redis_server
from tests.multinode.nodes import Nodes

DASHBOARD = ROOT / "deploy" / "grafana" / "rookery.json"
TESTS = DEPLOY / "rookery.rules.test.yml"

#: For scrapes and rules to come to what they must.
SOON_S = 60.0
_POLL_S = 0.2

#: Fifty messages a second, until it is ended.
REPEATED = ("--repeat", "1000000", "--repeat-delay", "0.02")


def _scraped(node: BrokerProcess, accept: str = "text/plain") -> tuple[bytes, str]:
    request = urllib.request.Request(f"http://{node.http}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read(), response.headers["content-type"]


# -- what is shipped


def test_rules_and_configuration_are_what_promtool_accepts() -> None:
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))


def test_alerts_fire_when_they_have_to() -> None:
    promtool("test", "rules", str(TESTS))


def test_every_alert_has_a_test() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    assert len(alerts) > 20
    assert set(re.findall(r'alertname="(\w+)"', TESTS.read_text())) == alerts


def _names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:mqtt|process|python)_[a-z_]+\b", re.sub(r"\{[^}]*\}|\bby \([^)]*\)", "", expression)))


def _exposed() -> set[str]:
    names = set(FAMILIES)
    for family in CATALOGUE:
        if family.kind == HISTOGRAM:
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def _panels() -> list[tuple[str, str]]:
    """Title and expression of every query of the dashboard."""
    found: list[tuple[str, str]] = []
    pending: list[dict[str, Any]] = list(json.loads(DASHBOARD.read_text())["panels"])
    while pending:
        panel = pending.pop(0)
        pending += panel.get("panels", [])
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return found


PANELS = _panels()


def test_rules_name_only_what_is_declared() -> None:
    text = RULES.read_text()
    records = set(re.findall(r"- record: (\S+)", text))
    for expression in re.findall(r"expr: (.*(?:\n {10,}.*)*)", text):
        plain = re.sub(r"\b[a-z_]+:[\w:]+", lambda match: "" if match[0] in records else match[0], expression)
        assert _names(plain) <= _exposed(), expression
        for used in re.findall(r"\b[a-z_]+:\w+:\w+\b", expression):
            assert used in records


@pytest.mark.parametrize(("title", "expression"), PANELS)
def test_panels_name_only_what_is_declared(title: str, expression: str) -> None:
    assert _names(expression), title
    assert _names(expression) <= _exposed()


def test_the_dashboard_can_be_moved_between_servers_and_jobs() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables.keys() == {"datasource", "job", "instance"}
    assert variables["datasource"]["type"] == "datasource"
    for _, expression in PANELS:
        selectors = re.findall(r"(?:mqtt|process|python)_[a-z_]+(\{[^}]*\})?", expression)
        assert all('job=~"$job"' in each and 'instance=~"$instance"' in each for each in selectors), expression
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


# -- one node


async def test_metrics_are_what_promtool_accepts(start_node: StartNode) -> None:
    node = start_node(http="127.0.0.1:0")
    peers = Peers(node.host, node.port, "t")
    subscriber = await peers.subscriber("t/#", qos=1)
    await (await peers.connect()).publish("t/a", b"m", qos=1)
    await subscriber.take(b"m")
    body, content_type = await trio.to_thread.run_sync(_scraped, node)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert promtool("check", "metrics", given=body) == ""
    families = set(re.findall(r"^# TYPE (\w+) ", body.decode(), re.MULTILINE))
    assert families <= FAMILIES.keys()
    samples = body.decode().splitlines()
    assert 'mqtt_delivery_seconds_count{scope="local"} 1.0' in samples
    assert 'mqtt_node_state{state="ready"} 1.0' in samples
    assert 'mqtt_sessions{kind="ephemeral"} 2.0' in samples
    assert "mqtt_subscriptions 1.0" in samples
    listener = f'listener="tcp://{node.host}:{node.port}"'
    assert f'mqtt_connections{{{listener},protocol_version="5"}} 2.0' in samples
    await peers.close()


async def test_metrics_in_openmetrics_are_told_to_whoever_asks(start_node: StartNode) -> None:
    node = start_node(http="127.0.0.1:0")
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2"
    body, content_type = await trio.to_thread.run_sync(_scraped, node, accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    for bad in ("application/openmetrics-text;version=x", ";;,,", "a" * 5000):
        await trio.to_thread.run_sync(_scraped, node, bad)


def test_the_end_of_a_certificate_is_told(tmp_path: Path) -> None:
    server = Chain(tmp_path / "chain").server()
    node = BrokerProcess(
        tmp_path / "n",
        listen=("tcp://127.0.0.1:0", f"tls://127.0.0.1:0?certfile={server.certfile}&keyfile={server.keyfile}"),
        http="127.0.0.1:0",
    )
    node.start()
    try:
        text = _scraped(node)[0].decode()
    finally:
        node.stop()
    [value] = re.findall(
        r'^mqtt_tls_certificate_expiry_timestamp_seconds\{listener="tls://[^"]+",name=""\} (\S+)$', text, re.MULTILINE
    )
    assert float(value) > time.time()


# -- three nodes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes three nodes on one Redis, while clients publish and subscribe across them."""
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as stack:
        store = stack.enter_context(redis_server(aof=True))
        nodes = Nodes(folder, f"redis://127.0.0.1:{store.address.port}/0", ("a", "b", "c"))
        stack.callback(nodes.stop)
        trio.run(nodes.start)
        for index, name in enumerate(nodes.names):
            _leave(nodes, name)
            other = nodes.address(nodes.names[index - 1])
            for qos in range(3):
                stack.callback(_end, _subscriber(nodes, name, f"load/{name}/#", qos))
                stack.callback(_end, _publisher(other.host, other.port, f"load/{name}/{qos}", qos))
            stack.callback(_end, _subscriber(nodes, name, "$share/g/load/#", 1))
            here = nodes.address(name)
            stack.callback(_end, _publisher(here.host, here.port, f"load/{name}/here", 1))
        targets = [process.http or "" for process in nodes.processes.values()]
        yield stack.enter_context(prometheus(folder / "prometheus", targets))


def _subscriber(nodes: Nodes, name: str, topic_filter: str, qos: int) -> subprocess.Popen[bytes]:
    at = nodes.address(name)
    return subprocess.Popen(
        ["mosquitto_sub", "-h", at.host, "-p", str(at.port), "-V", "5", "-t", topic_filter, "-q", str(qos)],
        stdout=subprocess.DEVNULL,
    )


def _publisher(host: str, port: int, topic: str, qos: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["mosquitto_pub", "-h", host, "-p", str(port), "-V", "5", "-t", topic, "-q", str(qos), "-m", "x", *REPEATED],
        stdout=subprocess.DEVNULL,
    )


def _leave(nodes: Nodes, name: str) -> None:
    """One client that comes and goes."""
    at = nodes.address(name)
    subprocess.run(["mosquitto_pub", "-h", at.host, "-p", str(at.port), "-t", "left", "-m", "x"], check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def _until_data(server: Prometheus, expression: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + SOON_S
    while not (found := server.query(expression)):
        assert time.monotonic() < deadline, f"no data: {expression}"
        time.sleep(_POLL_S)
    return found


def _filled(expression: str) -> str:
    """As Grafana does."""
    return expression.replace("$job", "rookery").replace("$instance", ".*").replace("$__rate_interval", "10s")


@pytest.mark.timeout(300)
class TestThreeNodes:
    """Under traffic, on one store."""

    def test_all_are_scraped(self, world: Prometheus) -> None:
        deadline = time.monotonic() + SOON_S
        while list(world.targets().values()) != ["up"] * 3:
            assert time.monotonic() < deadline, world.targets()
            time.sleep(_POLL_S)

    @pytest.mark.parametrize(("title", "expression"), PANELS)
    def test_panels_have_data(self, world: Prometheus, title: str, expression: str) -> None:
        for sample in _until_data(world, _filled(expression)):
            assert sample["value"][1] != "NaN" or "histogram_quantile" in expression, (title, sample)

    def test_every_rule_is_evaluated(self, world: Prometheus) -> None:
        deadline = time.monotonic() + SOON_S
        while wrong := [rule for rule in world.rules() if rule["health"] != "ok"]:
            assert time.monotonic() < deadline, wrong
            time.sleep(_POLL_S)
        for rule in world.rules():
            world.query(rule["query"])

    def test_no_critical_alert_fires_at_healthy_nodes(self, world: Prometheus) -> None:
        # Some see nodes come while it starts; what is critical has to be silent.
        firing = world.query('ALERTS{alertstate="firing", severity="critical"}')
        assert firing == []

    def test_recording_rules_have_data(self, world: Prometheus) -> None:
        for rule in world.rules():
            # Nothing is dropped, perhaps.
            if rule["type"] == "recording" and "dropped" not in rule["name"]:
                _until_data(world, rule["name"])

    def test_messages_between_nodes_are_measured(self, world: Prometheus) -> None:
        _until_data(world, 'sum by (instance) (mqtt_delivery_seconds_count{scope="remote"}) > 10')
        [within] = _until_data(world, 'sum(mqtt_delivery_seconds_bucket{scope="remote", le="10.0"})')
        [every] = _until_data(world, 'sum(mqtt_delivery_seconds_bucket{scope="remote", le="+Inf"})')
        assert float(within["value"][1]) > 0.9 * float(every["value"][1])

    def test_what_is_of_the_cluster_is_the_same_at_all(self, world: Prometheus) -> None:
        values = {sample["value"][1] for sample in _until_data(world, "mqtt_cluster_members")}
        assert values == {"3"}
