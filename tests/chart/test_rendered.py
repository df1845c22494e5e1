"""Every value set of the chart, by Helm 3 and Helm 4: what an API server, an operator and a reader would say to it."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from broker import __version__
from tests.chart.helm import (
    CHART,
    VALUE_SETS,
    VERSIONS,
    Resource,
    merged,
    of_kind,
    one,
    pod_templates,
    refusal,
    render,
    run,
    text_of,
)
from tests.chart.schemas import KUBERNETES, called, faults, faults_of_custom
from tests.kit.broker_process import ROOT

#: Without them each rendering makes new ones.
_SECRETS = {"auth": {"admin": {"secret": "not-a-secret"}}, "redis": {"auth": {"password": "not-a-secret"}}}
#: What users may give to the release, and so may lack what the chart gives to its own objects.
_GIVEN = "extraDeploy"

every_set = pytest.mark.parametrize("name", VALUE_SETS)


def objects_of(name: str, *, given: bool = True) -> list[Resource]:
    """The objects of a value set; without `given` only those of the chart itself."""
    values: dict[str, Any] = merged(VALUE_SETS[name], _SECRETS)
    return render(values if given else values | {_GIVEN: []})


def test_there_are_value_sets_for_every_section() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    used = {key for path in VALUE_SETS.values() for key in yaml.safe_load(path.read_text()) or {}}
    assert set(defaults) - used <= {
        # Probes and the like: maps and texts that stand in the pod as they are given (test_workload.py).
        *("global", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe", "podSecurityContext"),
        *("resources", "revisionHistoryLimit", "securityContext", "tmpSizeLimit"),
    }


@pytest.mark.parametrize("helm", VERSIONS)
@every_set
def test_lint(name: str, helm: int) -> None:
    done = run(helm, "lint", "--strict", str(CHART), "--values", str(VALUE_SETS[name]))
    assert done.returncode == 0, done.stdout + done.stderr


@every_set
def test_both_helms_render_the_same(name: str) -> None:
    values = merged(VALUE_SETS[name], _SECRETS)
    assert render(values, helm=3) == render(values, helm=4)


@every_set
def test_the_text_is_sound(name: str) -> None:
    """A key that a template writes twice is lost without a word when the text is read."""
    rules: dict[str, object] = {"key-duplicates": {}, "octal-values": {}, "truthy": {}}
    found = linter.run(text_of(merged(VALUE_SETS[name], _SECRETS)), YamlLintConfig(json.dumps({"rules": rules})))
    assert [str(each) for each in found] == []


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_takes_every_object_and_drops_no_field(kubernetes: str) -> None:
    for name in VALUE_SETS:
        assert faults(objects_of(name), kubernetes) == [], name


def test_operators_take_every_object_and_drop_no_field() -> None:
    objects = [item for name in VALUE_SETS for item in objects_of(name)]
    assert faults_of_custom(objects) == []


def test_faults_are_found() -> None:
    """The two tests before this one can fail: fields that nobody knows, and values of other types."""
    objects = objects_of("everything")
    for item in objects:
        if item["kind"] in ("Deployment", "TCPRoute", "ServiceMonitor", "Certificate"):
            item["spec"]["bogus"] = 1
        elif item["kind"] == "Service":
            item["spec"]["ports"][0]["port"] = "http"
        elif item["kind"] == "TLSRoute":
            item["spec"]["rules"][0]["backendRefs"][0]["port"] = "mqtts"
    kinds = [fault.split()[0] for fault in faults(objects, KUBERNETES[-1]) + faults_of_custom(objects)]
    services = len(of_kind(objects, "Service"))
    expected = {"Deployment": 1, "Service": services, "Certificate": 1, "ServiceMonitor": 1, "TCPRoute": 1}
    counted = Counter(kinds)
    assert counted.pop("TLSRoute") >= 1
    assert counted == expected


@every_set
def test_names_labels_and_namespaces(name: str) -> None:
    objects = objects_of(name, given=False)
    identities = Counter(
        (item["kind"], item["metadata"]["name"], item["metadata"].get("namespace")) for item in objects
    )
    assert set(identities.values()) == {1}, identities
    common = merged(VALUE_SETS[name]).get("commonLabels", {})
    for item in objects:
        meta = item["metadata"]
        assert meta["namespace"] in ("mqtt", "monitoring"), called(item)
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", meta["name"]) and len(meta["name"]) <= 63, called(item)
        labels = meta["labels"]
        assert labels["app.kubernetes.io/instance"] == "rookery", called(item)
        assert labels["app.kubernetes.io/managed-by"] == "Helm", called(item)
        assert labels["app.kubernetes.io/version"] == __version__, called(item)
        assert labels.items() >= common.items(), called(item)
        assert all(
            re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value) for value in labels.values()
        )


def test_long_names_stay_valid() -> None:
    objects = render(merged(VALUE_SETS["everything"], {_GIVEN: []}), name="r" * 53)
    for item in objects:
        # A StatefulSet's pods carry its name and "-0", and a label of at most 63 with it and a hash.
        assert len(item["metadata"]["name"]) <= 52, called(item)
    assert faults(objects, KUBERNETES[-1]) == []


def test_long_names_stay_different() -> None:
    first, second = ({item["metadata"]["name"] for item in render(None, name="r" * 52 + end)} for end in "ab")
    assert not first & second


def test_names_that_are_numbers_and_words_of_yaml_stay_text() -> None:
    """As of releases: names of objects are those of Services, which begin with a letter."""
    for name in ("true", "1e3"):
        values = merged(VALUE_SETS["everything"], {"fullnameOverride": "broker", "metrics": {"podMonitor": {}}})
        objects = render(values | {_GIVEN: []}, name=name, namespace="2024")
        assert {item["metadata"]["labels"]["app.kubernetes.io/instance"] for item in objects} == {name}
        assert {item["metadata"]["namespace"] for item in objects} == {"2024"}
        assert faults(objects, KUBERNETES[-1]) + faults_of_custom(objects) == []


@pytest.mark.parametrize("name", ["123", "a.b"])
def test_releases_whose_services_could_have_no_name_are_refused(name: str) -> None:
    done = run(3, "template", name, str(CHART))
    assert "set fullnameOverride" in done.stderr
    assert run(3, "template", name, str(CHART), "--set", "fullnameOverride=broker").returncode == 0


def test_labels_of_the_chart_are_not_the_users_to_change() -> None:
    """Selectors are made of them; and a key that is there twice is a fault in YAML."""
    mine = {
        "app.kubernetes.io/name": "x",
        "app.kubernetes.io/version": "x",
        "app.kubernetes.io/component": "x",
        "rookery.io/http": "x",
        "team": "a",
    }
    metrics = {"serviceMonitor": {"enabled": True, "labels": {**mine, "team": "b"}}}
    values = {"commonLabels": mine, "podLabels": mine, "service": {"labels": mine}, "metrics": metrics}
    found = linter.run(text_of(values), YamlLintConfig('{"rules": {"key-duplicates": {}}}'))
    assert [str(each) for each in found] == []
    objects = render(values)
    for item in objects:
        labels = item["metadata"]["labels"]
        assert (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/version"]) == ("rookery", __version__)
        assert labels["team"] == ("b" if item["kind"] == "ServiceMonitor" else "a")
    assert one(objects, "Service", "rookery")["metadata"]["labels"]["rookery.io/http"] == "true"


@every_set
def test_selectors_meet_pods(name: str) -> None:
    objects = objects_of(name)
    pods = [pod for _, pod in pod_templates(objects)]
    for item in objects:
        spec = item.get("spec") or {}
        match item["kind"]:
            case "Deployment" | "StatefulSet":
                assert _selects(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"])
                assert len(_selected(spec["selector"]["matchLabels"], pods)) == 1, called(item)
            case "Service":
                (pod,) = _selected(spec["selector"], pods)
                for port in spec["ports"]:
                    assert port["targetPort"] in _ports(pod), called(item)
            case "PodDisruptionBudget":
                assert len(_selected(spec["selector"]["matchLabels"], pods)) == 1
            case "NetworkPolicy":
                among = {each["key"]: each["values"] for each in spec["podSelector"].get("matchExpressions", [])}
                pod, *jobs = [
                    pod
                    for pod in _selected(spec["podSelector"]["matchLabels"], pods)
                    if all(pod["metadata"]["labels"].get(key) in values for key, values in among.items())
                ]
                assert len(jobs) == len(of_kind(objects, "Job")) * bool(among), called(item)
                ports = [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
                assert set(ports) <= {*_ports(pod), *_ports(pod).values()}, called(item)
            case "HorizontalPodAutoscaler" | "ScaledObject":
                workload = one(objects, "Deployment")
                assert spec["scaleTargetRef"]["name"] == workload["metadata"]["name"]
                assert "replicas" not in workload["spec"]
            case "ServiceMonitor":
                services = [
                    service
                    for service in of_kind(objects, "Service")
                    if _selects(spec["selector"]["matchLabels"], service["metadata"]["labels"])
                ]
                # Exactly one: with two, each node would be scraped twice.
                (service,) = services
                assert spec["endpoints"][0]["port"] in [port["name"] for port in service["spec"]["ports"]]
            case "PodMonitor":
                (pod,) = _selected(spec["selector"]["matchLabels"], pods)
                assert spec["podMetricsEndpoints"][0]["port"] in _ports(pod)


@every_set
def test_what_is_referred_to_exists(name: str) -> None:
    """In the release, or because the values name it: then it is the user's to have it."""
    objects = objects_of(name)
    theirs = set(_texts(merged(VALUE_SETS[name])))
    here: dict[tuple[str, str], set[str]] = {}
    for item in objects:
        data = item if item["kind"] in ("ConfigMap", "Secret") else {}
        here[item["kind"], item["metadata"]["name"]] = {*data.get("data", {}), *data.get("stringData", {})}
        if item["kind"] == "Certificate":
            here["Secret", item["spec"]["secretName"]] = {"tls.crt", "tls.key", "ca.crt"}
        if item["kind"] == "Service":
            here["Service", item["metadata"]["name"]] = {
                text for port in item["spec"]["ports"] for text in (port["name"], str(port["port"]))
            }
    for item in objects:
        for kind, referred, keys in _references(item):
            if referred in theirs:
                continue
            assert (kind, referred) in here, f"{called(item)} refers to {kind} {referred}"
            lacks = keys - here[kind, referred]
            assert not lacks, f"{called(item)}: {kind} {referred} lacks {lacks}"


def test_missing_references_are_found() -> None:
    pods = {"spec": {"template": {"spec": {"containers": [{"envFrom": [{"secretRef": {"name": "x"}}]}]}}}}
    assert list(_references({"kind": "Deployment", **pods})) == [("Secret", "x", set())]


@pytest.mark.parametrize("helm", VERSIONS)
@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 3},
        {"config": {"max_inflght": 10}},
        {"config": {"max_inflight": "many"}},
        {"externalRedis": {"host": "redis:6379"}},
        {"autoscaling": {"minReplicas": 0}},
        {"metrics": {"servicemonitor": {"enabled": True}}},
        {"networkPolicy": {"clients": "everybody"}},
        {"service": {"type": "Loadbalancer"}},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses(values: dict[str, Any], helm: int) -> None:
    text = refusal(values, helm)
    assert "schema" in text
    # Where it is wrong is told.
    assert re.findall(r'"(\w+)":', json.dumps(values))[:2][-1] in text


@pytest.mark.parametrize("helm", VERSIONS)
def test_the_chart_can_be_packaged_and_installed_from_the_package(helm: int, tmp_path: Path) -> None:
    done = run(helm, "package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    package = tmp_path / f"rookery-{__version__}.tgz"
    # The name of the package is that of the version of the broker.
    assert package.exists()
    values = tmp_path / "values.json"
    values.write_text(json.dumps(merged(VALUE_SETS["everything"], _SECRETS)))
    options = ["--namespace", "mqtt", "--kube-version", "1.35.0", "--values", str(values)]
    done = run(helm, "template", "rookery", str(package), *options)
    assert done.returncode == 0, done.stderr
    packaged = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert packaged == objects_of("everything")
    shown = run(helm, "show", "readme", str(package)).stdout
    assert "networkPolicy.enabled" in shown


def test_an_old_kubernetes_is_refused() -> None:
    done = run(3, "template", "rookery", str(CHART), "--kube-version", "1.26.0")
    assert done.returncode != 0
    assert "1.26" in done.stderr


#: What checkov finds fault with, where (in all objects if nothing is said), and why that stays.
_ACCEPTED = {
    "CKV_K8S_43": ("", "images by digest: `image.digest` is there for who wants it"),
    "CKV_K8S_15": ("", "pullPolicy Always: the tag of a release does not move"),
    "CKV_K8S_11": ("", "no limit for the CPU: a node that is throttled is late for everybody; memory is limited"),
    "CKV_K8S_35": ("", "secrets as environment variables: so are settings read; files of users and rules are mounted"),
    "CKV_K8S_40": ("rookery-redis", "the user id of the image of Valkey is 999"),
    "CKV_K8S_8": ("rookery-test", "a probe of a pod that runs for seconds"),
    "CKV_K8S_9": ("rookery-test", "a probe of a pod that runs for seconds"),
    "CKV2_K8S_6": ("rookery-test", "nobody connects to the test"),
}


def test_checkov(tmp_path: Path) -> None:
    program = ROOT / ".cache" / "checkov" / "bin" / "checkov"
    assert program.exists(), "no checkov: run .ci/packages"
    for name in ("everything", "sentinel"):
        (tmp_path / f"{name}.yaml").write_text(text_of(merged(VALUE_SETS[name], _SECRETS, {_GIVEN: []})))
    options = ["--framework", "kubernetes", "--skip-download", "--output", "json"]
    done = subprocess.run(
        [str(program), "--directory", str(tmp_path), *options], capture_output=True, text=True, check=False, timeout=110
    )
    told = json.loads(done.stdout)
    failed = {
        (each["check_id"], each["check_name"], each["resource"])
        for each in told["results"]["failed_checks"]
        if each["check_id"] not in _ACCEPTED or _ACCEPTED[each["check_id"]][0] not in each["resource"]
    }
    assert failed == set()
    # None of the reasons is about something that is not there any more.
    assert {each["check_id"] for each in told["results"]["failed_checks"]} == set(_ACCEPTED)


def _selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


def _selected(selector: dict[str, str], pods: list[Resource]) -> list[Resource]:
    return [pod for pod in pods if _selects(selector, pod["metadata"]["labels"])]


def _ports(pod: Resource) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, dict):
        for value in values.values():
            yield from _texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value)
    elif isinstance(values, str):
        yield values


def _references(item: Resource) -> Iterator[tuple[str, str, set[str]]]:
    """Kind, name and needed keys of all that an object refers to in its namespace."""
    for _, pod in pod_templates([item]):
        yield from _of_pod(pod["spec"])
    spec = item.get("spec") or {}
    if item["kind"] == "Ingress":
        for rule in spec["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                yield "Service", service["name"], {service["port"]["name"]}
        yield from (("Secret", tls["secretName"], set()) for tls in spec.get("tls", []))
    elif item["kind"].endswith("Route"):
        for rule in spec["rules"]:
            yield from (("Service", each["name"], {str(each["port"])}) for each in rule["backendRefs"])


def _of_pod(spec: Resource) -> Iterator[tuple[str, str, set[str]]]:
    if spec.get("serviceAccountName", "default") != "default":
        yield "ServiceAccount", spec["serviceAccountName"], set()
    yield from (("Secret", each["name"], set()) for each in spec.get("imagePullSecrets", []))
    volumes: list[Resource] = []
    for volume in spec.get("volumes", []):
        volumes += [volume, *volume.get("projected", {}).get("sources", [])]
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], set()
    for volume in volumes:
        for kind, source in (("Secret", volume.get("secret")), ("ConfigMap", volume.get("configMap"))):
            if source and not source.get("optional"):
                name = source.get("secretName") or source["name"]
                yield kind, name, {each["key"] for each in source.get("items", [])}
    names = [volume["name"] for volume in spec.get("volumes", [])]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for each in container.get("env", []):
            for kind, field in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
                source = each.get("valueFrom", {}).get(field)
                if source and not source.get("optional"):
                    yield kind, source["name"], {source["key"]}
        for each in container.get("envFrom", []):
            for kind, field in (("Secret", "secretRef"), ("ConfigMap", "configMapRef")):
                if (source := each.get(field)) and not source.get("optional"):
                    yield kind, source["name"], set()
        for mount in container.get("volumeMounts", []):
            # Claims of a StatefulSet are no volumes of its pods' spec.
            assert mount["name"] in [*names, "data"], mount
