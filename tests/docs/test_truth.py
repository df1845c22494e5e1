"""What the pages say of names in the code is what the code says."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from broker import reasons
from broker.config import SETTINGS
from broker.http.report import DRAINING, FENCED, JOINING, OVERLOADED, STARTING, UNREACHABLE
from broker.metrics_catalogue import CATALOGUE
from broker.migration import mosquitto
from tests.docs.pages import DOCS, ROOT
from tests.docs.sizing import run

TROUBLES = (DOCS / "troubleshooting.md").read_text("utf-8")
MONITORING = (DOCS / "monitoring.md").read_text("utf-8")
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rookery.rules.yml").read_text("utf-8"))


def _rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its head."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in found[1:]]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@cache
def _source() -> str:
    files = [path for folder in ("broker", "cluster") for path in sorted((ROOT / folder).rglob("*.py"))]
    return "\n".join(path.read_text("utf-8") for path in files)


def test_every_alert_is_on_the_page() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    alerts = [rule["alert"] for rule in rules if "alert" in rule]
    assert re.findall(r"^### (Rookery\w+)$", MONITORING, re.MULTILINE) == alerts
    for rule in rules:
        if rule.get("labels", {}).get("severity") == "critical":
            assert re.search(rf"^### {rule['alert']}\nCritical\. ", MONITORING, re.MULTILINE), rule["alert"]
    for name in re.findall(r"`(\w+:\w+:\w+)`", MONITORING):
        assert name in {rule.get("record") for rule in rules}, name


def test_states_of_readiness() -> None:
    said = {name.strip() for row in _rows(MONITORING, "Health") for name in _names(row[0])}
    assert said == {STARTING, JOINING, UNREACHABLE, FENCED, DRAINING, OVERLOADED.strip()}


@pytest.mark.parametrize("page", ["monitoring.md", "troubleshooting.md", "clustering.md", "sizing.md", "concepts.md"])
def test_metrics_exist(page: str) -> None:
    known = {family.name for family in CATALOGUE}
    for name in re.findall(r"`(mqtt_\w+|process_\w+)(?:\{[^`]*)?`", (DOCS / page).read_text("utf-8")):
        assert name in known or name.endswith("_"), name


def test_log_events_exist() -> None:
    events = [name for row in _rows(TROUBLES, "In the log") for name in _names(row[0])]
    assert len(events) > 20
    for event in events:
        assert f'"{event}"' in _source(), event


def test_messages_exist() -> None:
    """Words of a message, in one piece in the code or with a value between them."""
    joined = re.sub(r'"\s*\n\s*f?"', "", _source())
    messages = [name for row in _rows(TROUBLES, "The node does not start, or ends") for name in _names(row[0])]
    assert len(messages) > 10
    for message in messages:
        assert message in joined, message


def test_reason_codes_are_used() -> None:
    numbers = {
        f"0x{value:02X}": name for name, value in vars(reasons).items() if name.isupper() and isinstance(value, int)
    }
    outside = re.sub(r'"""(.*?)"""', "", _source(), flags=re.DOTALL)
    found = set(re.findall(r"`(0x[0-9A-F]{2})`", TROUBLES))
    assert len(found) > 15
    for number in found:
        name = numbers[number]
        assert len(re.findall(rf"\b{name}\b", outside)) > 1, (number, name)


def test_reasons_of_metrics_exist() -> None:
    for name in re.findall(
        r"`((?:queue|group_queue|output|store|packet|tls|proxy|untrusted)_[a-z_]+)`", MONITORING + TROUBLES
    ):
        assert re.search(rf'"{name}"', _source()) or name in {setting.name for setting in SETTINGS}, name


def test_settings_of_mosquitto() -> None:
    """All that the import knows is on the page, and nothing else is said to have a counterpart."""
    page = (DOCS / "migration-mosquitto.md").read_text("utf-8")
    carried = {name.split()[0] for row in _rows(page, "Settings") for name in _names(row[0])}
    read = {*mosquitto._SETTINGS, *mosquitto._LISTENER, *mosquitto._SETTINGS_OF_LISTENER, *mosquitto._ACCESS}
    read |= set(mosquitto._PACKET_LIMITS)
    assert read <= carried | {"max_qos"}, read - carried
    assert carried - read == {"listener", "port", "bind_address", "per_listener_settings", "log_type"}
    known = {setting.name for setting in SETTINGS}
    for name, (here, _) in mosquitto._SETTINGS.items():
        row = next(row for row in _rows(page, "Settings") if name in _names(row[0]))
        assert here in known and here in _names(row[1]), name
    needless = {name for row in _rows(page, "What is not needed") for name in _names(row[0])}
    assert needless <= set(mosquitto._NEEDLESS), needless - set(mosquitto._NEEDLESS)


def test_settings_for_those_from_emqx() -> None:
    page = (DOCS / "migration-emqx.md").read_text("utf-8")
    options = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "configuration.md").read_text("utf-8"), re.MULTILINE))
    known = {setting.name for setting in SETTINGS} | options
    for row in _rows(page, "Settings"):
        for name in _names(row[1]):
            if re.fullmatch(r"[a-z_]+", name):
                assert name in known | {"certificate"}, name


def test_requests_for_those_from_emqx() -> None:
    page = (DOCS / "migration-emqx.md").read_text("utf-8")
    listed = re.findall(r"`[A-Z]+ (/[^`]*)`", (DOCS / "operations.md").read_text("utf-8"))
    paths = {re.sub(r"\{[^}]*\}", "X", path) for path in listed} | {"/metrics", "/healthz", "/readyz"}
    for row in _rows(page, "The API"):
        for name in _names(row[1]):
            if found := re.search(r"/\S+", name):
                assert re.sub(r"\b(ID|NODE|TOPIC)\b", "X", found[0]) in paths, name


def test_sizes_in_the_store() -> None:
    """Measured anew, with less of everything; within a third, as the tables of the store grow by doubling."""
    page = (DOCS / "sizing.md").read_text("utf-8")
    rows = _rows(page, "Memory of the store")
    said = [int(row[1].split()[0]) for row in rows]
    assert len(said) == 4
    for measured, told in zip(run(1100), said, strict=True):
        assert abs(measured - told) < told / 3, (measured, told)


def test_pages_name_existing_files() -> None:
    for page in (DOCS / "clustering.md", DOCS / "sizing.md", DOCS / "monitoring.md", ROOT / "README.md"):
        for name in re.findall(r"`((?:deploy|tests|docs)/[\w./-]+)`", page.read_text("utf-8")):
            assert Path(ROOT / name).exists(), name
