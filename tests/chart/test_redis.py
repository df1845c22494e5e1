"""Pods as the chart makes them, run as processes over real Redis servers: started, probed, tested, drained, stopped."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from broker.codec.packets import V5, Connect, Disconnect
from tests.chart.container import POD_NAME, Container, container_of
from tests.chart.helm import Resource, one, refusal, render
from tests.kit.broker_process import START_S, STOP_S
from tests.kit.mqtt_client import MqttClient
from tests.kit.ports import free_port
from tests.kit.redis_server import (
    make_certificate,
    plain_client,
    redis_server,
    replicated_server,
    sentinels,
    server_cluster,
    valkey_binary,
    wait_until,
)

#: What is common to all: no time is lost with load balancers that are not there.
_COMMON: dict[str, Any] = {"drain": {"delaySeconds": 0}, "listeners": {"ws": {"enabled": False}}}
_OURS = {"name": "redis-credentials", "password": "of-redis", "sentinel": "of-sentinels"}
_TLS = "/etc/rookery/redis-tls"


class Pod:
    """A node started by the command line of its container. Ports are free ones, nothing else is different."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self._ready = container.folder / "ready.json"
        file = container.configuration
        file.write_text(re.sub(r"(0\.0\.0\.0):\d+", r"\1:0", file.read_text()))
        container.environment["ROOKERY_READY_FILE"] = str(self._ready)
        self.log = container.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                container.program(container.spec["args"]),
                cwd=container.folder,
                env=container.process_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Until it accepts clients."""
        wait_until(lambda: self._ready.exists() or self.process.poll() is not None, START_S)
        assert self.process.poll() is None, self.log.read_text()
        told = json.loads(self._ready.read_text())
        self.http = int(told["http"].rpartition(":")[2])
        self.port = int(told["listeners"][0].rpartition(":")[2])
        self.container.environment["ROOKERY_API_URL"] = f"http://127.0.0.1:{self.http}"

    def probe(self, name: str) -> int:
        """The HTTP status that the kubelet would get."""
        asked = self.container.spec[name]["httpGet"]
        assert asked["port"] == "http"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{asked['path']}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def running(objects: list[Resource], folder: Path, given: Any) -> Iterator[Pod]:
    """A node of the Deployment, ready."""
    pod = Pod(container_of(objects, "Deployment", folder, given))
    try:
        pod.start()
        yield pod
    finally:
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()


async def lives(objects: list[Resource], folder: Path, given: Any, by_hand: bool = False) -> None:
    """From the start of a pod to its end: all probes, the test of the release, and the hook before it stops."""
    async with contextlib.AsyncExitStack() as stack:
        pod = stack.enter_context(running(objects, folder / "node", given))
        for name in ("startupProbe", "livenessProbe"):
            assert await trio.to_thread.run_sync(pod.probe, name) == 200
        wait_until(lambda: pod.probe("readinessProbe") == 200)

        test = container_of(objects, "Pod", folder / "test", given)
        assert test.environment["ROOKERY_API_URL"] == "http://rookery:18083"
        test.environment["ROOKERY_API_URL"] = f"http://127.0.0.1:{pod.http}"
        words = [word.replace("tcp://rookery:1883", f"tcp://127.0.0.1:{pod.port}") for word in test.spec["args"]]
        assert words != test.spec["args"]
        done = await trio.to_thread.run_sync(test.run, words)
        assert done.returncode == 0, done.stderr
        assert "published and received" in done.stdout

        if by_hand:
            users = ["ctl", "api", "users", "put", "ann", "--password", "pencil"]
            done = await trio.to_thread.run_sync(pod.container.run, users)
            assert done.returncode == 0, done.stderr
        else:
            secret = pod.container.environment["ROOKERY_ADMIN_SECRET"]
            url = f"http://127.0.0.1:{pod.http}/api/v1/users/ann"
            async with httpx.AsyncClient(auth=("admin", secret), trust_env=False) as admin:
                assert (await admin.put(url, json={"password": "pencil"})).status_code == 200
        client = await stack.enter_async_context(await MqttClient.open("127.0.0.1", pod.port))
        answer = await client.connect(Connect(V5, "ann", username="ann", password=b"pencil"))
        assert answer.reason_code == 0

        hook = pod.container.spec["lifecycle"]["preStop"]["exec"]["command"]
        done = await trio.to_thread.run_sync(pod.container.run, hook)
        assert done.returncode == 0, done.stderr
        assert (await client.expect(Disconnect)).reason_code == 0x8B
        assert await trio.to_thread.run_sync(pod.probe, "readinessProbe") == 503
        assert await trio.to_thread.run_sync(pod.probe, "livenessProbe") == 200
        events = [json.loads(line) for line in pod.log.read_text().splitlines()]
        assert [each["node"] for each in events if each["event"] == "node.ready"] == [POD_NAME]
        assert await trio.to_thread.run_sync(pod.stop) == 0


def _given(name: str, key: str) -> str:
    """The Secret of the user with passwords of Redis."""
    assert name == _OURS["name"]
    return {"redis-password": _OURS["password"], "sentinel-password": _OURS["sentinel"]}[key]


# -- the Valkey of the release


async def test_the_built_in_valkey(tmp_path: Path) -> None:
    objects = render(_COMMON)
    store = container_of(objects, "StatefulSet", tmp_path / "valkey")
    port, data = free_port(), tmp_path / "data"
    data.mkdir()
    arguments = [word.replace("6379", str(port)).replace("/data", str(data)) for word in store.arguments]
    assert store.spec["command"] == ["valkey-server"]
    password = store.environment["REDIS_PASSWORD"]
    command = [valkey_binary(), *arguments, "--bind", "127.0.0.1", "--unixsocket", str(data / "s")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (data / "s").exists())
        with plain_client(data / "s", password=password) as client:
            assert client.ping()
            settings = client.config_get("append*", "maxmemory*", "save")
        assert settings["appendonly"] == "yes"
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["maxmemory"] == str(384 << 20)
        assert settings["save"] == ""
        title = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert password.encode() not in title
        # The node finds it by the name of its Service.
        objects = _elsewhere(objects, "rookery-redis:6379", f"127.0.0.1:{port}")
        await lives(objects, tmp_path, None, by_hand=True)
    finally:
        server.terminate()
        server.wait(STOP_S)


def _elsewhere(objects: list[Resource], name: str, address: str) -> list[Resource]:
    config = one(objects, "ConfigMap", "rookery")["data"]
    assert name in config["rookery.toml"]
    config["rookery.toml"] = config["rookery.toml"].replace(name, address)
    return objects


def test_what_it_keeps_and_how() -> None:
    pod = one(render(), "StatefulSet")["spec"]
    assert pod["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "8Gi"
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {"data": "/data"}
    lost = one(render({"redis": {"persistence": {"enabled": False}}}), "StatefulSet")["spec"]
    assert lost["template"]["spec"]["volumes"] == [{"name": "data", "emptyDir": {}}]
    mine = one(render({"redis": {"persistence": {"existingClaim": "mine"}}}), "StatefulSet")["spec"]
    assert mine["template"]["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mine"}
    assert "volumeClaimTemplates" not in mine


def test_a_copy_of_what_changes_has_room_while_the_file_is_written_anew() -> None:
    for maxmemory, limits in (("512mb", {"memory": "1Gi"}), ("4gb", {"memory": "8.6G"}), ("4gb", {"memory": None})):
        assert render({"redis": {"maxmemory": maxmemory, "resources": {"limits": limits}}})
    assert render({"redis": {"maxmemory": "4gb", "resources": None}})


# -- servers of the user


def _external(**external: Any) -> dict[str, Any]:
    return {**_COMMON, "redis": {"enabled": False}, "externalRedis": external}


def test_one_server_with_a_password(tmp_path: Path) -> None:
    with redis_server(aof=True, password=_OURS["password"]) as server:
        hosts = [f"127.0.0.1:{server.address.port}"]
        values = _external(hosts=hosts, database=3, existingSecret=_OURS["name"])
        migration = render({**values, "migration": {"enabled": True}})
        job = container_of(migration, "Job", tmp_path / "job", _given)
        with running(render(values), tmp_path / "node", _given) as pod:
            wait_until(lambda: pod.probe("readinessProbe") == 200)
            early = job.run(job.spec["args"], "tests.upgrade.next_layout")
            assert early.returncode != 0
            assert POD_NAME in early.stderr
            assert pod.stop() == 0
        done = job.run(job.spec["args"])
        assert (done.returncode, done.stdout.partition(":")[0]) == (0, "nothing to do"), done.stderr
        done = job.run(job.spec["args"], "tests.upgrade.next_layout")
        assert done.returncode == 0, done.stderr
        done = job.run(["rookery", "store", "status"])
        assert "layout" in done.stdout and "2" in done.stdout, done.stdout + done.stderr
        assert one(migration, "Deployment")["spec"]["replicas"] == 0
        with server.client() as client:
            assert set(client.info("keyspace")) == {"db3"}


def test_one_server_over_tls(tmp_path: Path) -> None:
    made = make_certificate(tmp_path)
    pem = Path(made.ca_file).read_text()
    with redis_server(tls=made) as server:
        tls = {"enabled": True, "existingSecret": "redis-tls", "caKey": "ca.pem"}
        values = _external(hosts=[f"localhost:{server.address.port}"], tls=tls)
        objects = render(values)
        with running(objects, tmp_path / "node", lambda name, key: {("redis-tls", "ca.pem"): pem}[name, key]) as pod:
            wait_until(lambda: pod.probe("readinessProbe") == 200)


async def test_sentinels(tmp_path: Path) -> None:
    with (
        replicated_server(1, aof=True, password=_OURS["password"]) as store,
        sentinels(store, password=_OURS["sentinel"]) as found,
    ):
        values = _external(
            mode="sentinel",
            hosts=[f"127.0.0.1:{each.port}" for each in found.seeds],
            existingSecret=_OURS["name"],
            sentinel={"primary": "mymaster", "passwordKey": "sentinel-password"},
        )
        await lives(render(values, helm=4), tmp_path, _given)


async def test_a_cluster(tmp_path: Path) -> None:
    with server_cluster(password=_OURS["password"]) as store:
        hosts = [f"127.0.0.1:{each.address.port}" for each in store.servers[:2]]
        values = _external(mode="cluster", hosts=hosts, password=_OURS["password"])
        await lives(render(values, helm=4), tmp_path, None)


@pytest.mark.parametrize(
    ("external", "url"),
    [
        ({"hosts": ["r:6379"]}, "redis://r:6379/0"),
        ({"hosts": ["r:6379"], "tls": {"enabled": True}}, "rediss://r:6379/0"),
        (
            {
                "hosts": ["r:6379"],
                "tls": {"enabled": True, "existingSecret": "t", "certKey": "tls.crt", "keyKey": "tls.key"},
            },
            f"rediss://r:6379/0?ssl_ca_certs={_TLS}/ca.crt&ssl_certfile={_TLS}/tls.crt&ssl_keyfile={_TLS}/tls.key",
        ),
        ({"mode": "sentinel", "hosts": ["a:1", "b:2"]}, "redis+sentinel://a:1,b:2/mymaster"),
        ({"mode": "sentinel", "hosts": ["a:1"], "database": 4}, "redis+sentinel://a:1/mymaster?db=4"),
        ({"mode": "cluster", "hosts": ["a:1", "b:2"], "tls": {"enabled": True}}, "rediss+cluster://a:1,b:2"),
    ],
)
def test_the_url_of_the_store(external: dict[str, Any], url: str) -> None:
    text = one(render(_external(**external)), "ConfigMap", "rookery")["data"]["rookery.toml"]
    assert f'store = "{url}"' in text
    assert not [item for item in render(_external(**external)) if item["kind"] == "StatefulSet"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"redis": {"enabled": False}}, "there is no store"),
        ({"externalRedis": {"hosts": ["r:6379"]}}, "redis.enabled"),
        (_external(hosts=["a:1", "b:2"]), "mode"),
        (_external(mode="cluster", hosts=["a:1"], database=1), "database 0"),
        (_external(hosts=["redis://a:1"]), "hosts"),
        (_external(hosts=["user:secret@a:1"]), "hosts"),
        (_external(hosts=["a:6379x"]), "hosts"),
        (_external(hosts=["a:99999"]), "port"),
        (_external(mode="cluster", hosts=["a:6379", "b:0"]), "port"),
        ({"redis": {"maxmemory": "4gb"}}, "maxmemory: 4gb"),
        ({"redis": {"maxmemory": "513mb"}}, "limits.memory is 1Gi"),
        ({"redis": {"persistence": {"size": "much"}}}, "size"),
        (_external(hosts=["a:1"], tls={"enabled": True, "existingSecret": "t", "certKey": "tls.crt"}), "private key"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], told: str) -> None:
    assert told in refusal(values)
