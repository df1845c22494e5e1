"""deploy/compose.yaml: what it says holds together, and what it gives to its programs is what they take."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from broker import __version__
from broker.config import load
from tests.deploy.compose_file import (
    DEPLOY,
    FILE,
    SECRETS,
    environment_of,
    make_secrets,
    nodes,
    seconds,
    services,
    whole,
    with_secrets,
)
from tests.integration.prometheus_server import promtool
from tests.kit.broker_process import BrokerProcess
from tests.kit.ports import free_port
from tests.kit.redis_server import find_server

NODES = ("rookery-1", "rookery-2", "rookery-3")
#: What HAProxy tells about itself; Prometheus may ask, the world may not.
STATS_PORT = "8404"


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_secrets(tmp_path_factory.mktemp("compose"))


def run(*command: str | Path, environment: dict[str, str] | None = None, given: str = "") -> str:
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rookery(*arguments: str, environment: dict[str, str], given: str = "") -> str:
    return run(sys.executable, "-m", "broker", *arguments, environment=environment, given=given)


def test_the_file_is_what_the_specification_of_compose_allows(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command: list[str | Path] = [program, "--builtin-schema", "vendor.compose-spec"]
    run(*command, FILE)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("read_only:", "readonly:", 1))
    assert subprocess.run([*command, wrong], capture_output=True, check=False).returncode != 0


def test_what_is_named_is_there(deploy: Path) -> None:
    file = whole()
    for name, service in services().items():
        for network in service["networks"]:
            assert network in file["networks"], (name, network)
        for secret in service.get("secrets", []):
            source = secret if isinstance(secret, str) else secret["source"]
            assert source in file["secrets"], (name, source)
        for volume in service.get("volumes", []):
            if isinstance(volume, str):
                assert volume.partition(":")[0] in file["volumes"], (name, volume)
            else:
                assert (DEPLOY / volume["source"]).is_file(), (name, volume)
                assert volume["read_only"], (name, volume)
        for other in service.get("depends_on", {}):
            # `service_healthy` of a service without a check fails; the image of the nodes brings its own.
            assert other in nodes() or "healthcheck" in services()[other]
            assert set(services()[other]["networks"]) & set(service["networks"]), (name, other)
    for secret, given in file["secrets"].items():
        assert (deploy / given["file"]).stat().st_size > 8, secret


def test_every_service_is_confined() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service and "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), f"{name}: no version"


def test_no_secret_is_in_the_file() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if re.search("password|secret|key|token", variable, re.IGNORECASE):
                assert value.startswith(SECRETS), (name, variable)


def test_the_image_has_the_name_and_the_version_of_this_release() -> None:
    assert {node["image"] for node in nodes().values()} == {f"ghcr.io/rookery-mqtt/rookery:{__version__}"}
    for node in nodes().values():
        build = node["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_haproxy_knows_the_nodes_and_their_ports(deploy: Path) -> None:
    haproxy = services()["haproxy"]
    text = (DEPLOY / "haproxy.cfg").read_text()
    bound = set(re.findall(r"^\s*bind :(\d+)", text, re.MULTILINE))
    assert {port.rpartition(":")[2] for port in haproxy["ports"]} == bound - {STATS_PORT}
    # A port has the same number inside and outside: its configuration and its users mean the same.
    assert all(re.fullmatch(r"(127\.0\.0\.1:)?(\d+):\2", port) for port in haproxy["ports"])
    assert f"127.0.0.1:{STATS_PORT}/" in haproxy["healthcheck"]["test"][-1]

    settings = load({}, environment_of("rookery-1", deploy)).settings
    assert settings.http is not None
    served = {str(listener.port) for listener in settings.listen} | {str(settings.http.port)}
    servers = re.findall(r"^\s*server (\S+) ([^\s:]+):(\d+)", text, re.MULTILINE)
    assert {name for name, _, _ in servers} == {host for _, host, _ in servers} == set(nodes()) == set(NODES)
    assert {port for _, _, port in servers} == served

    [secret] = haproxy["secrets"]
    assert set(re.findall(r"\scrt (\S+)", text)) == {secret["target"]}
    [volume] = haproxy["volumes"]
    assert (DEPLOY / volume["source"]).samefile(DEPLOY / "haproxy.cfg")
    limit = re.search(r"fd-hard-limit (\d+)", text)
    assert limit is not None
    assert haproxy["ulimits"]["nofile"] >= int(limit[1])


@pytest.mark.parametrize("name", NODES)
def test_nodes_take_what_they_are_given(name: str, deploy: Path) -> None:
    environment = environment_of(name, deploy)
    rookery("check-config", environment=environment)
    settings = load({}, environment).settings
    assert settings.node_name == name
    # The load balancer is believed, and nobody who is not in its network.
    [network] = whole()["networks"]["mqtt"]["ipam"]["config"]
    for listener in settings.listen:
        assert listener.options.proxy_protocol == "on"
        assert listener.options.trusted_proxies == (network["subnet"],)
    assert settings.http_trusted_proxies == (network["subnet"],)
    assert not settings.allow_anonymous and settings.authentication
    assert re.fullmatch(r"redis://redis:6379/\d", settings.store)
    assert settings.store_password == (deploy / "secrets/redis_password").read_text().strip()
    # A node has stopped by itself before Docker kills it.
    grace = seconds(services()[name]["stop_grace_period"])
    assert grace >= settings.drain_delay_s + settings.drain_timeout_s + 15


def test_prometheus_takes_its_file(tmp_path: Path) -> None:
    service = services()["prometheus"]
    for volume in service["volumes"]:
        if not isinstance(volume, str):
            target = tmp_path / volume["target"].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(DEPLOY / volume["source"], target)
    [option] = [word for word in service["command"] if word.startswith("--config.file=")]
    path = tmp_path / option.partition("=/")[2]
    assert "1 rule files found" in promtool("check", "config", str(path))
    [job] = yaml.safe_load(path.read_text())["scrape_configs"]
    [targets] = job["static_configs"]
    assert targets["targets"] == [f"{name}:18083" for name in NODES]
    assert set(service["networks"]) & set(nodes()["rookery-1"]["networks"])


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    service = services()["grafana"]
    mounted = {item["target"]: DEPLOY / item["source"] for item in service["volumes"] if isinstance(item, dict)}
    provisioned: dict[str, Any] = {}
    for target, source in mounted.items():
        if target.startswith("/etc/grafana/provisioning/"):
            provisioned |= yaml.safe_load(source.read_text())
    [datasource] = provisioned["datasources"]
    assert (datasource["type"], datasource["url"]) == ("prometheus", "http://prometheus:9090")
    assert set(service["networks"]) & set(services()["prometheus"]["networks"])
    [provider] = provisioned["providers"]
    dashboards = [target for target in mounted if target.startswith(provider["options"]["path"] + "/")]
    assert dashboards == [service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]]
    assert mounted[dashboards[0]].samefile(DEPLOY / "grafana/rookery.json")


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    deploy = with_secrets(tmp_path)
    secrets = deploy / "secrets"

    def contents() -> dict[str, str]:
        return {path.name: path.read_text() for path in secrets.iterdir()}

    before = contents()
    assert set(before) == {Path(given["file"]).name for given in whole()["secrets"].values()}
    assert len({before[name] for name in ("redis_password", "admin_secret", "grafana_password")}) == 3
    make_secrets(deploy)
    assert contents() == before
    (secrets / "admin_secret").unlink()
    make_secrets(deploy)
    after = contents()
    assert {name for name in before if before[name] != after[name]} == {"admin_secret", "api_key"}
    # Others of the machine cannot come here; the users of the containers get the files themselves.
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in secrets.iterdir())
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(secrets / "server.pem")


@contextmanager
def store(deploy: Path, folder: Path) -> Iterator[int]:
    """The service `redis` as a process: its shell and its command line, with paths and the port of this machine."""
    data, port = folder / "data", free_port()
    data.mkdir()
    configuration = folder / "valkey.conf"
    text = (DEPLOY / "valkey.conf").read_text().replace("dir /data", f"dir {data}")
    configuration.write_text(text.replace("bind * -::*", f"bind 127.0.0.1\nport {port}"))
    shell, option, script = services()["redis"]["entrypoint"]
    script = script.replace("$$", "$").replace("/tmp/", f"{folder}/").replace("valkey-server", find_server())
    script = script.replace(SECRETS, f"{deploy}/secrets/").replace("/etc/valkey/valkey.conf", str(configuration))
    password = (deploy / "secrets/redis_password").read_text().strip()
    with (folder / "store.log").open("wb") as log:
        process = subprocess.Popen([shell, option, script], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        retry = Retry(ConstantBackoff(0.05), 400)
        with redis.Redis(port=port, password=password, retry=retry) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("dir") == {"dir": str(data)}
            # Docker's SIGTERM reaches the process it started: that has to be the server.
            assert client.info("server")["process_id"] == process.pid
        assert password.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        yield port
    finally:
        process.terminate()
        process.wait(20)


def test_a_node_runs_with_what_the_file_gives_it(deploy: Path, tmp_path: Path) -> None:
    with store(deploy, tmp_path) as port:
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        environment = environment_of("rookery-2", deploy)
        environment["ROOKERY_STORE"] = f"redis://127.0.0.1:{port}/0"
        listen = environment.pop("ROOKERY_LISTEN")
        node = BrokerProcess(
            tmp_path / "node",
            environment["ROOKERY_STORE"],
            listen=tuple(re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", url) for url in listen.split()),
            http="127.0.0.1:0",
            environment={**environment, "ROOKERY_DRAIN_DELAY": "0s"},
            admin_secret=None,
        )
        node.start()
        try:
            environment["ROOKERY_API_URL"] = f"http://{node.http}"
            rookery("ctl", "health", environment=environment)
            assert "rookery-2" in rookery("ctl", "nodes", environment=environment)
            rookery("ctl", "users", "add", "alice", "--stdin", environment=environment, given="a password\n")
            assert "alice" in rookery("ctl", "api", "users", "list", environment=environment)
        finally:
            node.stop()
