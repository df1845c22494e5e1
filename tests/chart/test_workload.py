"""The objects that run the nodes: what they promise about starting, stopping, secrets and rights."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
import yaml

from broker import __version__
from broker.config import SETTINGS
from broker.values import Duration
from tests.chart.helm import CHART, VERSIONS, Resource, one, refusal, render

_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "capabilities": {"drop": ["ALL"]},
}


def _pod(values: Any = None, helm: int = 3) -> Resource:
    template: Resource = one(render(values, helm), "Deployment")["spec"]["template"]
    return template


def _node(values: Any = None, helm: int = 3) -> Resource:
    container: Resource = _pod(values, helm)["spec"]["containers"][0]
    return container


# -- starting


def test_the_image_is_that_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] == __version__
    assert _node()["image"] == f"ghcr.io/rookery-mqtt/rookery:{__version__}"
    assert _node({"image": {"tag": "edge"}})["image"] == "ghcr.io/rookery-mqtt/rookery:edge"
    digest = "sha256:" + "0123456789abcdef" * 4
    values = {"image": {"registry": "", "repository": "mine", "digest": digest}}
    assert _node(values)["image"] == f"mine@{digest}"


def test_the_command() -> None:
    assert "command" not in _node()  # the image's own
    assert _node()["args"] == ["serve", "--config", "/etc/rookery/rookery.toml"]
    assert _node({"extraArgs": ["--log-level=debug"]})["args"][-1] == "--log-level=debug"


def test_probes() -> None:
    node = _node()
    paths = {name: node[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {
        "startupProbe": {"path": "/healthz", "port": "http"},
        "livenessProbe": {"path": "/healthz", "port": "http"},
        "readinessProbe": {"path": "/readyz", "port": "http"},
    }
    # The endpoints have to be gone before new clients are refused.
    ready = node["readinessProbe"]
    assert {port["name"]: port["containerPort"] for port in node["ports"]}["http"] == 18083
    assert ready["periodSeconds"] * ready["failureThreshold"] <= 5
    replaced = _node({"livenessProbe": {"httpGet": None, "tcpSocket": {"port": "mqtt"}, "periodSeconds": 99}})
    assert replaced["livenessProbe"]["tcpSocket"] == {"port": "mqtt"}
    assert "httpGet" not in replaced["livenessProbe"]
    assert "livenessProbe" not in _node({"livenessProbe": None})


@pytest.mark.parametrize("name", ["startupProbe", "livenessProbe", "readinessProbe"])
@pytest.mark.parametrize(
    "asked", [{"tcpSocket": {"port": "mqtt"}}, {"exec": {"command": ["x"]}}, {"grpc": {"port": 1}}]
)
def test_a_probe_asks_in_one_way(name: str, asked: dict[str, Any]) -> None:
    """An API server refuses two."""
    found = _node({name: asked})[name]
    assert "httpGet" not in found
    assert asked.items() <= found.items()
    assert found["periodSeconds"]  # the rest stays


def test_nodes_are_named_by_their_pods() -> None:
    environment = {each["name"]: each for each in _node()["env"]}
    assert environment["ROOKERY_NODE_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    long = one(render({"fullnameOverride": "n" * 80}), "Deployment")["metadata"]["name"]
    assert len(long) + len("-5d8f7c9b6d-x2x7k") <= 64  # as long as a node's name may be


@pytest.mark.parametrize("helm", VERSIONS)
def test_a_rollout_never_has_fewer_nodes(helm: int) -> None:
    spec = one(render(None, helm), "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert spec["minReadySeconds"] == 10
    assert "replicas" not in one(render({"autoscaling": {"enabled": True}}, helm), "Deployment")["spec"]
    recreated = one(render({"updateStrategy": {"type": "Recreate"}}, helm), "Deployment")["spec"]
    assert recreated["strategy"] == {"type": "Recreate"}  # with anything else an API server refuses it


def _checksums(values: Any) -> dict[str, str]:
    annotations: dict[str, str] = _pod(values)["metadata"]["annotations"]
    return annotations


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"max_inflight": 5}},
        {"listeners": {"mqtts": {"enabled": True}}, "tls": {"existingSecret": "x"}},
        {"maxConnections": 5000},
    ],
)
def test_what_nodes_read_only_when_they_start_replaces_them(changed: dict[str, Any]) -> None:
    assert _checksums(changed) != _checksums(None)


def test_what_nodes_read_again_does_not() -> None:
    some = _checksums({"auth": {"users": "ann:x", "acl": "topic read #"}})
    assert some == _checksums({"auth": {"users": "bob:y", "acl": "topic write #"}})
    # Nor what is random: each rendering without a cluster would replace all pods.
    assert _checksums({"replicaCount": 3}) == _checksums({"replicaCount": 4})


def test_annotations_do_not_tell_what_secrets_are() -> None:
    """Whoever may look at pods could try guesses against a hash."""
    hidden = {"auth": {"admin": {"secret": "hunter22"}}, "redis": {"auth": {"password": "hunter2"}}}
    assert _checksums({**hidden, "secretConfig": {"response_information": "hidden/"}}).keys() == _checksums(None).keys()
    assert _checksums(hidden) == _checksums(None)
    store = [one(render(values), "StatefulSet")["spec"]["template"]["metadata"] for values in (hidden, None)]
    assert store[0] == store[1]


def test_pods_spread_over_machines() -> None:
    [spread] = _pod()["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert spread["labelSelector"]["matchLabels"].items() <= _pod()["metadata"]["labels"].items()
    mine = [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]
    assert _pod({"topologySpreadConstraints": mine})["spec"]["topologySpreadConstraints"] == mine


# -- stopping


def _stopping(values: Any = None, helm: int = 3) -> dict[str, float]:
    """What the objects say about the end of a pod, in seconds."""
    objects = render(values, helm)
    pod = one(objects, "Deployment")["spec"]["template"]["spec"]
    text = one(objects, "ConfigMap", "rookery")["data"]["rookery.toml"]
    found = {name: float(number) for name, number in re.findall(r"(drain_\w+|max_connections) = (\d+)", text)}
    command = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    if command:
        assert command[:-1] == ["rookery", "ctl", "nodes", "drain", "--wait", "--wait-for"]
        found["hook"] = Duration().parse(command[-1])
    return {**found, "grace": pod["terminationGracePeriodSeconds"]}


@pytest.mark.parametrize("helm", VERSIONS)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"maxConnections": 1},
        {"maxConnections": 6001},
        {"maxConnections": 10_000_000},
        {"maxConnections": 100_000, "drain": {"timeoutSeconds": 300, "delaySeconds": 0}},
        {"maxConnections": 6000, "drain": {"rate": 100}},
        {"maxConnections": 50, "drain": {"rate": 1, "timeoutSeconds": 50}},
        {"terminationGracePeriodSeconds": 600},
    ],
)
def test_a_full_node_is_empty_before_it_is_killed(values: dict[str, Any], helm: int) -> None:
    found = _stopping(values, helm)
    assert found["max_connections"] == values.get("maxConnections", 6000)
    assert found["max_connections"] / found["drain_rate"] <= found["drain_timeout"]
    assert found["drain_delay"] + found["drain_timeout"] <= found["hook"] < found["grace"]


def test_the_pace_follows_the_connections() -> None:
    assert _stopping()["drain_rate"] == 100
    assert _stopping({"maxConnections": 30_000})["drain_rate"] == 500
    assert _stopping()["grace"] == 5 + 60 + 15


def test_a_pace_that_does_not_fit_is_refused_with_the_figures() -> None:
    told = refusal({"maxConnections": 10_000, "drain": {"rate": 100}})
    assert "100 clients a second for 60 s empty 6000 connections, and maxConnections is 10000" in told
    assert "drain.rate to 167, or drain.timeoutSeconds to 100, or maxConnections to 6000" in told
    for repaired in (
        {"maxConnections": 10_000, "drain": {"rate": 167}},
        {"maxConnections": 10_000, "drain": {"rate": 100, "timeoutSeconds": 100}},
        {"maxConnections": 6_000, "drain": {"rate": 100}},
    ):
        assert render(repaired)


def test_too_short_a_grace_is_refused() -> None:
    assert "drain needs 80" in refusal({"terminationGracePeriodSeconds": 79})
    assert _stopping({"terminationGracePeriodSeconds": 80})["grace"] == 80


def test_without_drain_and_with_hooks_of_the_user() -> None:
    off = _stopping({"drain": {"enabled": False}})
    assert "hook" not in off
    assert (off["drain_delay"], off["drain_timeout"], off["grace"]) == (0, 0, 15)
    slow = _stopping({"drain": {"enabled": False, "rate": 1}})
    assert slow["drain_timeout"] == 0
    hooks = {"preStop": {"sleep": {"seconds": 5}}}
    assert _node({"lifecycle": hooks})["lifecycle"] == hooks


def test_the_hook_knows_its_node_and_key() -> None:
    environment = {each["name"]: each for each in _node({"listeners": {"http": {"port": 8080}}})["env"]}
    names = list(environment)
    assert environment["ROOKERY_API_KEY"]["value"] == "admin:$(ROOKERY_ADMIN_SECRET)"
    assert names.index("ROOKERY_ADMIN_SECRET") < names.index("ROOKERY_API_KEY")  # filled in from those before it
    assert environment["ROOKERY_API_URL"]["value"] == "http://127.0.0.1:8080"
    ipv6 = {each["name"]: each for each in _node({"listeners": {"address": "[::]"}})["env"]}
    assert ipv6["ROOKERY_API_URL"]["value"] == "http://[::1]:18083"


# -- rights


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "Pod"])
def test_pods_may_do_nothing_that_they_need_not(kind: str) -> None:
    item = one(render(), kind)
    pod = item["spec"] if kind == "Pod" else item["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        expected = {**_RESTRICTED, **dict.fromkeys(("runAsNonRoot", "runAsUser", "runAsGroup"))}
        if kind != "StatefulSet":
            expected = _RESTRICTED
        given = container["securityContext"]
        assert {name: given.get(name) for name in expected} == expected
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
    assert one(render(), "ServiceAccount")["automountServiceAccountToken"] is False


def test_users_of_the_platform() -> None:
    """What docs/kubernetes.md says for OpenShift leaves no user of ours."""
    page = (CHART.parents[1] / "docs" / "kubernetes.md").read_text().partition("## OpenShift")[2]
    values = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    for helm in VERSIONS:
        for kind in ("Deployment", "StatefulSet", "Pod"):
            assert not re.search("runAsUser|runAsGroup|fsGroup'", str(one(render(values, helm), kind)))
            assert "'runAsNonRoot': True" in str(one(render(values, helm), kind))


def test_all_that_is_written_goes_to_tmp() -> None:
    node = _node()
    writable = [mount["mountPath"] for mount in node["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/tmp"]


def test_who_pods_are() -> None:
    assert _pod()["spec"]["serviceAccountName"] == "rookery"
    assert _pod({"serviceAccount": {"create": False}})["spec"]["serviceAccountName"] == "default"
    assert _pod({"serviceAccount": {"create": False, "name": "mine"}})["spec"]["serviceAccountName"] == "mine"


# -- services


def _ports(objects: list[Resource], name: str) -> dict[str, int]:
    return {port["name"]: port["port"] for port in one(objects, "Service", name)["spec"]["ports"]}


def test_one_service_or_two() -> None:
    objects = render()
    assert _ports(objects, "rookery") == {"mqtt": 1883, "ws": 8083, "http": 18083}
    objects = render({"service": {"split": True, "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"]}})
    assert _ports(objects, "rookery") == {"mqtt": 1883, "ws": 8083}
    assert _ports(objects, "rookery-http") == {"http": 18083}
    inside, outside = one(objects, "Service", "rookery-http")["spec"], one(objects, "Service", "rookery")["spec"]
    assert (inside["type"], outside["type"]) == ("ClusterIP", "LoadBalancer")
    assert outside["loadBalancerSourceRanges"] == ["192.0.2.0/24"]
    for service in (inside, outside):
        assert service["selector"]["app.kubernetes.io/component"] == "node"


def test_names_of_listeners_stay_text() -> None:
    values = {
        "listeners": {"extra": [{"name": "1e3", "scheme": "tcp", "port": 1999}]},
        "service": {"ports": {"1e3": 7}},
    }
    objects = render({**values, "networkPolicy": {"enabled": True}})
    assert _ports(objects, "rookery")["1e3"] == 7
    names = [port["name"] for port in one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"]]
    assert "1e3" in names
    open_to = one(objects, "NetworkPolicy", "rookery")["spec"]["ingress"][0]["ports"]
    assert {"port": "1e3"} in open_to


def test_operators_reach_nodes_that_are_not_ready() -> None:
    """Just then they need API and dashboard. Clients do not."""
    objects = render({"service": {"split": True}})
    assert one(objects, "Service", "rookery-http")["spec"]["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in one(objects, "Service", "rookery")["spec"]


def test_ports_of_the_service_and_of_machines() -> None:
    values = {"service": {"type": "NodePort", "ports": {"ws": 80}, "nodePorts": {"mqtt": 31883}}}
    service = one(render(values), "Service", "rookery")["spec"]
    by_name = {port["name"]: port for port in service["ports"]}
    assert (by_name["ws"]["port"], by_name["ws"]["targetPort"]) == (80, "ws")
    assert by_name["mqtt"]["nodePort"] == 31883
    assert "nodePort" not in by_name["ws"]


def test_the_service_of_http_may_be_outside_too() -> None:
    objects = render({"service": {"split": True, "http": {"type": "NodePort"}, "nodePorts": {"http": 30083}}})
    inside, http = one(objects, "Service", "rookery")["spec"], one(objects, "Service", "rookery-http")["spec"]
    assert (inside["type"], http["type"]) == ("ClusterIP", "NodePort")
    assert http["ports"][0]["nodePort"] == 30083
    common = {"loadBalancerSourceRanges": ["192.0.2.0/24"], "loadBalancerClass": "x", "externalTrafficPolicy": "Local"}
    values = {"split": True, "type": "LoadBalancer", **common, "http": {"type": "LoadBalancer"}}
    http = one(render({"service": values}), "Service", "rookery-http")["spec"]
    assert {name: http[name] for name in common} == common
    own = {"loadBalancerSourceRanges": ["10.0.0.0/8"], "loadBalancerClass": "y", "externalTrafficPolicy": "Cluster"}
    http = one(render({"service": {**values, "http": {"type": "LoadBalancer", **own}}}), "Service", "rookery-http")[
        "spec"
    ]
    assert {name: http[name] for name in own} == own
    cluster = one(render({"service": {**values, "http": {}}}), "Service", "rookery-http")["spec"]
    assert not cluster.keys() & common.keys()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"service": {"nodePorts": {"mqtt": 31883}}}, "nodePorts"),
        ({"service": {"type": "NodePort", "split": True, "nodePorts": {"http": 30083}}}, "service.http.type"),
        (
            {"service": {"split": True, "http": {"externalTrafficPolicy": "Local"}}},
            "service.http.externalTrafficPolicy",
        ),
        ({"service": {"externalTrafficPolicy": "Local"}}, "externalTrafficPolicy"),
        ({"listeners": {"mqtts": {"enabled": True}}}, "tls.existingSecret"),
        ({"listeners": {"ws": {"port": 1883}}}, "the same port 1883"),
        ({"listeners": {"http": {"port": 1883}}}, "the same port 1883"),
        ({"listeners": {"mqtt": {"enabled": False}, "ws": {"enabled": False}}}, "at least one"),
        ({"maxConnections": 0}, "maxConnections"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"service": {"ports": {"wsss": 443}}}, "there is no listener wsss"),
        ({"service": {"type": "NodePort", "nodePorts": {"mqt": 31883}}}, "there is no listener mqt"),
        ({"service": {"ports": {"ws": 1883}}}, "mqtt and ws have the same port 1883 of the Service"),
        ({"service": {"ports": {"ws": 18083}}}, "ws and http have the same port 18083"),
        ({"listeners": {"extra": [{"name": "http", "scheme": "tcp", "port": 1999}]}}, "another listener http"),
        ({"listeners": {"extra": [{"name": "wss", "scheme": "tcp", "port": 1999}]}}, "another listener wss"),
        ({"listeners": {"extra": [{"name": "1999", "scheme": "tcp", "port": 1999}]}}, "name"),
        ({"listeners": {"extra": [{"name": "a--b", "scheme": "tcp", "port": 1999}]}}, "name"),
        ({"listeners": {"mqtt": {"options": {"proxy_protocol": "on"}}}}, "trusted_proxies"),
        ({"listeners": {"ws": {"options": {"proxy_protocol": True}}}}, "trusted_proxies"),
        ({"fullnameOverride": "My_Broker"}, "fullnameOverride"),
        ({"fullnameOverride": "true"}, "a word of YAML"),
        ({"tmpSizeLimit": "lots"}, "tmpSizeLimit"),
        ({"commonLabels": {"cost-center": 1234}}, "cost-center"),
        ({"podAnnotations": {"sidecar.istio.io/inject": False}}, "inject"),
        ({"nodeSelector": {"gpu": True}}, "gpu"),
        ({"extraEnv": [{"name": "A", "value": 1}]}, "value"),
        ({"maxConnections": 10_000_000, "drain": {"timeoutSeconds": 1}}, "10000000 a second"),
        ({"podDisruptionBudget": None}, "podDisruptionBudget"),
        ({"metrics": {"serviceMonitor": None}}, "serviceMonitor"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], told: str) -> None:
    assert told in refusal(values)


# -- what users are told


def _notes(values: dict[str, Any], helm: int = 3) -> str:
    told = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}}
    shown = {**told, "data": {"notes": '{{ include "rookery.notes" . | b64enc }}'}}
    made = one(render({**values, "extraDeploy": [shown]}, helm), "ConfigMap", "notes")
    return base64.b64decode(made["data"]["notes"]).decode()


@pytest.mark.parametrize("helm", VERSIONS)
def test_the_notes_tell_the_next_commands(helm: int) -> None:
    notes = _notes({}, helm)
    for command in (
        "kubectl --namespace mqtt rollout status deployment/rookery",
        "helm test rookery --namespace mqtt",
        "port-forward service/rookery 18083:18083",
        """get secret rookery -o go-template='{{index .data "admin-secret" | base64decode}}'""",
        "rookery ctl api users put USER --password -",
        "mosquitto_pub -h 127.0.0.1 -p 1883 -u USER -P PASSWORD -t greeting -m hello",
    ):
        assert command in notes
    assert "WARNING: the Valkey of this release" in notes
    assert "credentials (auth.allowAnonymous)" not in notes


def test_the_notes_tell_who_is_outside() -> None:
    assert "get service rookery\n" not in _notes({})
    balanced = _notes({"service": {"type": "LoadBalancer"}})
    assert "the port 1883 of the address (EXTERNAL-IP)" in balanced
    assert "kubectl --namespace mqtt get service rookery\n" in balanced
    assert "behind 1883: among PORT(S)" in _notes({"service": {"type": "NodePort"}})


def test_the_notes_tell_how_to_connect_over_tls_and_web_socket() -> None:
    off = {"mqtt": {"enabled": False}, "ws": {"enabled": False}}
    certificate = {"existingSecret": "mine"}
    tls = {"listeners": {**off, "mqtts": {"enabled": True}}, "tls": certificate}
    notes = _notes(tls)
    assert "mqtts://rookery.mqtt.svc:8883." in notes
    assert "-p 8883 -u USER -P PASSWORD --cafile ca.crt --insecure -t greeting -m hello" in notes
    assert "in the Secret mine" in notes
    strict = _notes({**tls, "tls": {**certificate, "clientCertificates": "required"}})
    assert "--insecure --cert client.crt --key client.key" in strict
    web = _notes({"listeners": {**off, "wss": {"enabled": True}}, "tls": certificate})
    assert "wss://rookery.mqtt.svc:8084/mqtt" in web
    assert "wss://127.0.0.1:8084/mqtt is the URL" in web
    proxied = {"listeners": {"mqtt": {"options": {"proxy_protocol": "on", "trusted_proxies": ["10.0.0.0/8"]}}}}
    behind = _notes({**proxied, "listeners": {**proxied["listeners"], "ws": {"enabled": False}}})
    assert "mqtt://rookery.mqtt.svc:1883." in behind
    assert "mosquitto_pub" not in behind


def test_the_notes_take_no_ports_that_are_for_root() -> None:
    notes = _notes({"service": {"ports": {"http": 80, "mqtt": 883}}})
    assert "http://127.0.0.1:10080" in notes
    assert "port-forward service/rookery 10080:80\n" in notes
    assert "port-forward service/rookery 10883:883\n" in notes
    assert "mosquitto_pub -h 127.0.0.1 -p 10883 " in notes


def test_the_notes_warn() -> None:
    notes = _notes({"auth": {"allowAnonymous": True}, "service": {"type": "LoadBalancer"}})
    assert "clients need no credentials (auth.allowAnonymous)" in notes
    assert "service.split keeps it inside" in notes
    outside = _notes({"service": {"split": True, "http": {"type": "LoadBalancer"}}})
    assert "API and dashboard are outside" in outside
    assert "-u USER" not in notes
    quiet = _notes({"redis": {"enabled": False}, "externalRedis": {"hosts": ["r:6379"]}})
    assert "WARNING" not in quiet


def test_the_test_asks_what_it_can() -> None:
    def words(values: dict[str, Any]) -> list[str]:
        return list(one(render(values), "Pod")["spec"]["containers"][0]["args"])

    plain = {"mqtt": {"enabled": False}, "mqtts": {"enabled": True}}
    assert words({}) == ["probe", "tcp://rookery:1883", "--wait=120", "--make-user"]
    assert words({"auth": {"allowAnonymous": True}}) == ["probe", "tcp://rookery:1883", "--wait=120"]
    # Rules are about anybody but the superuser that is made.
    ruled = {"auth": {"allowAnonymous": True, "storeRules": True}}
    assert words(ruled)[-1] == "--make-user"
    assert words({"auth": {**ruled["auth"], "store": False}}) == ["ctl", "health"]
    assert words({**ruled, "test": {"topic": "open"}}) == ["probe", "tcp://rookery:1883", "--wait=120", "--topic=open"]
    assert words({"service": {"ports": {"mqtt": 1884}}})[1] == "tcp://rookery:1884"
    tls = {"listeners": plain, "tls": {"existingSecret": "x"}}
    assert words(tls) == ["probe", "tls://rookery:8883", "--wait=120", "--no-verify", "--make-user"]
    assert words({**tls, "tls": {"existingSecret": "x", "clientCertificates": "required"}}) == ["ctl", "health"]
    proxied = {"mqtt": {"options": {"proxy_protocol": "on", "trusted_proxies": ["10.0.0.0/8"]}}}
    assert words({"listeners": proxied}) == ["ctl", "health"]
    jwt = {"auth": {"store": False}, "config": {"authentication": [{"type": "jwt", "public_key": "/x"}]}}
    assert words(jwt) == ["ctl", "health"]
    assert not [item for item in render({"test": {"enabled": False}}) if item["kind"] == "Pod"]


# -- the schema


def test_every_setting_is_the_charts_or_the_users() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    config, secret = (set(schema["properties"][name]["properties"]) for name in ("config", "secretConfig"))
    by_name = {setting.name: setting for setting in SETTINGS}
    assert config <= secret <= set(by_name)
    assert not [name for name in config if by_name[name].secret]
    made = "".join(path.read_text() for path in sorted((CHART / "templates").glob("*.*")))
    for name in set(by_name) - secret:
        files = name.endswith("_file") or name in ("config", "data_dir", "workers")
        assert files or f'"{name}"' in made or by_name[name].variable in made or name == "listen", name


def test_values_that_are_described_are_in_the_table() -> None:
    table = (CHART / "README.md").read_text()
    for name in ("replicaCount", "drain.timeoutSeconds", "externalRedis.sentinel.primary", "tls.clientCertificates"):
        assert f"| `{name}` |" in table
