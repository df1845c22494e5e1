"""Releases over their lives, by Helm against a server that stores objects: what upgrades keep, change and take away."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.api_server import ApiServer, api_server
from tests.chart.helm import CHART, VERSIONS, Resource, run


class Release:
    """The release `rookery` in the namespace `mqtt` of a cluster."""

    def __init__(self, server: ApiServer, helm: int) -> None:
        self.server = server
        self._helm = helm

    def do(self, *arguments: str) -> str:
        """What Helm says when it succeeds."""
        cluster = ["--kubeconfig", str(self.server.kubeconfig), "--namespace", "mqtt"]
        done = run(self._helm, *arguments, *cluster)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, *options: str, chart: Path = CHART) -> str:
        """The notes of the chart."""
        told = self.do("upgrade", "--install", "rookery", str(chart), "--disable-openapi-validation", *options)
        return told.partition("NOTES:\n")[2]

    def secret(self, name: str, key: str) -> str:
        """A value of a Secret."""
        return base64.b64decode(self.server.find("secrets", name)["data"][key]).decode()

    def pods_wanted(self) -> int | None:
        """The number of nodes."""
        wanted: int | None = self.server.find("deployments", "rookery")["spec"].get("replicas")
        return wanted

    def pods(self, plural: str = "deployments", name: str = "rookery") -> Resource:
        """What a change of means that all pods are replaced."""
        template: Resource = self.server.find(plural, name)["spec"]["template"]
        return template


@pytest.fixture(params=VERSIONS, ids="helm{}".format)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Release]:
    with api_server(tmp_path) as server:
        yield Release(server, request.param)


def test_install_upgrade_rollback_uninstall(release: Release) -> None:
    notes = release.install()
    assert "kubectl --namespace mqtt rollout status deployment/rookery" in notes
    assert release.server.find("deployments", "rookery")["spec"]["replicas"] == 2
    release.install("--set", "replicaCount=3")
    assert release.server.find("deployments", "rookery")["spec"]["replicas"] == 3
    release.do("rollback", "rookery", "1")
    assert release.server.find("deployments", "rookery")["spec"]["replicas"] == 2
    release.do("uninstall", "rookery")
    assert release.server.objects == {}


def test_autoscaling_takes_over_the_nodes_that_there_are(release: Release) -> None:
    """Without a number in the manifest the API server would take its default, one, and four nodes would be drained."""
    release.install("--set", "replicaCount=5")
    scaled = ("--set", "autoscaling.enabled=true")
    release.install(*scaled)
    assert release.pods_wanted() == 5
    release.server.find("deployments", "rookery")["spec"]["replicas"] = 8  # as the autoscaler does
    release.install(*scaled, "--set", "config.max_inflight=7")
    assert release.pods_wanted() == 8
    release.server.find("deployments", "rookery")["spec"]["replicas"] = 0  # with which an autoscaler is off
    release.install(*scaled)
    assert release.pods_wanted() == 2
    release.install("--set", "replicaCount=3")
    assert release.pods_wanted() == 3


def test_the_store_is_migrated_while_no_node_runs(release: Release) -> None:
    def jobs() -> list[str]:
        return [name for plural, _, name in release.server.objects if plural == "jobs"]

    scaled = ("--set", "autoscaling.enabled=true")
    release.install(*scaled)
    notes = release.install(*scaled, "--set", "migration.enabled=true")
    assert release.pods_wanted() == 0
    [first] = jobs()
    assert f"job/{first}" in notes
    release.install(*scaled, "--set", "migration.enabled=true,config.max_inflight=7")
    [second] = jobs()
    assert second != first  # what a Job is cannot be changed
    release.install(*scaled)
    assert jobs() == []
    assert release.pods_wanted() == 2


def test_random_secrets_survive_upgrades(release: Release) -> None:
    """And nodes are not restarted by an upgrade that changes nothing."""
    release.install()
    secrets = {(name, key): release.secret(name, key) for name, key in _RANDOM}
    assert all(len(secret) == 32 for secret in secrets.values())
    assert len(set(secrets.values())) == len(secrets)
    nodes, store = release.pods(), release.pods("statefulsets", "rookery-redis")
    release.install()
    assert {(name, key): release.secret(name, key) for name, key in _RANDOM} == secrets
    assert release.pods() == nodes
    assert release.pods("statefulsets", "rookery-redis") == store


def test_what_nodes_read_replaces_them(release: Release) -> None:
    """Each node by node, as the Deployment says; what they do not read does not."""
    release.install()
    first = release.pods()
    release.install("--set", "config.max_inflight=7")
    second = release.pods()
    assert second != first
    release.install("--set", "config.max_inflight=7,auth.admin.secret=another-secret")
    third = release.pods()
    assert release.secret("rookery", "admin-secret") == "another-secret"
    assert third != second
    release.install("--set", "config.max_inflight=7,auth.admin.secret=another-secret,replicaCount=5")
    assert release.pods() == third
    release.do("rollback", "rookery", "2")
    assert release.pods() == second


def test_secrets_that_are_variables_replace_who_has_them(release: Release) -> None:
    def replaced(*options: str) -> list[str]:
        names = {"deployments": "rookery", "statefulsets": "rookery-redis"}
        before = {plural: release.pods(plural, name)["metadata"] for plural, name in names.items()}
        release.install(*(word for option in options for word in ("--set", option)))
        return [plural for plural, name in names.items() if release.pods(plural, name)["metadata"] != before[plural]]

    release.install("--set", "secretConfig.max_inflight=7")
    admin, redis = "auth.admin.secret=not-a-secret", "redis.auth.password=not-a-secret"
    assert replaced("secretConfig.max_inflight=8", admin) == ["deployments"]
    assert replaced("secretConfig.max_inflight=8", admin, redis) == ["deployments", "statefulsets"]
    assert replaced("secretConfig.max_inflight=8", admin, redis, "maxConnections=6000") == []


def test_another_version_changes_nothing_that_cannot_be_changed(release: Release, tmp_path: Path) -> None:
    release.install()
    before = {key: _fixed(item) for key, item in release.server.objects.items()}
    newer = tmp_path / "rookery"
    shutil.copytree(CHART, newer)
    chart = newer / "Chart.yaml"
    text = chart.read_text()
    version = next(line.partition(": ")[2] for line in text.splitlines() if line.startswith("version:"))
    chart.write_text(text.replace(version, "9.9.9"))
    release.install(chart=newer)
    assert release.pods()["spec"]["containers"][0]["image"].endswith(":9.9.9")
    after = {key: _fixed(item) for key, item in release.server.objects.items()}
    assert {key: fixed for key, fixed in after.items() if "helm.release" not in key[2]} == {
        key: fixed for key, fixed in before.items() if "helm.release" not in key[2]
    }


def test_what_is_switched_off_goes(release: Release) -> None:
    release.install()
    options = {"redis": {"enabled": False}, "externalRedis": {"hosts": ["redis:6379"]}, "replicaCount": 1}
    path = release.server.kubeconfig.with_name("values.json")
    path.write_text(json.dumps(options))
    release.install("--values", str(path))
    left = {(plural, name) for plural, _, name in release.server.objects}
    assert ("statefulsets", "rookery-redis") not in left
    assert ("poddisruptionbudgets", "rookery") not in left
    assert ("deployments", "rookery") in left


_RANDOM = (("rookery", "admin-secret"), ("rookery-redis", "redis-password"))


def _fixed(item: Resource) -> Any:
    """What the API server lets nobody change."""
    spec = item.get("spec", {})
    match item["kind"]:
        case "Deployment":
            return spec["selector"]
        case "StatefulSet":
            return spec["selector"], spec["serviceName"], spec.get("volumeClaimTemplates")
        case "Service":
            return spec.get("clusterIP"), spec["selector"]
    return None
