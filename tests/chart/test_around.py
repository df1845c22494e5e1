"""What stands around the nodes in the chart: scaling, network policies, monitoring, ways in, certificates."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.helm import VALUE_SETS, Resource, merged, of_kind, one, pod_templates, refusal, render
from tests.chart.schemas import KUBERNETES, faults
from tests.integration.prometheus_server import DEPLOY, RULES, promtool
from tests.kit.broker_process import ROOT

_KEDA = {"enabled": True, "prometheus": {"serverAddress": "http://prometheus:9090"}}
_EXTERNAL = {"redis": {"enabled": False}, "externalRedis": {"hosts": ["redis:6380"]}}


class TestScaling:
    def test_nodes_go_slowly(self) -> None:
        """Not faster than a node's clients have found their way, and their waves are over."""
        objects = render({"autoscaling": {"enabled": True}})
        down = one(objects, "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleDown"]
        grace = one(objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert [policy["type"] for policy in down["policies"]] == ["Pods"]
        assert down["policies"][0]["value"] == 1
        assert down["policies"][0]["periodSeconds"] > grace
        assert down["stabilizationWindowSeconds"] >= 600

    def test_by_default_at_half_a_core(self) -> None:
        """Of the one that a node can use: what docs/clustering.md says."""
        objects = render({"autoscaling": {"enabled": True}})
        (cpu,) = one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
        requests = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
        assert int(requests["cpu"].removesuffix("m")) * cpu["resource"]["target"]["averageUtilization"] == 500 * 100

    def test_sections_that_are_taken_away_are_off(self) -> None:
        objects = render({"autoscaling": None, "keda": None})
        assert not of_kind(objects, "HorizontalPodAutoscaler") + of_kind(objects, "ScaledObject")
        assert one(render({"autoscaling": {"enabled": True}, "keda": None}), "HorizontalPodAutoscaler")
        assert one(render({"keda": _KEDA, "autoscaling": None}), "ScaledObject")

    def test_by_cpu_memory_and_connections(self) -> None:
        autoscaling = {"enabled": True, "cpu": 60, "memory": 75, "connections": {"enabled": True}}
        metrics = one(render({"autoscaling": autoscaling}), "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert [each["type"] for each in metrics] == ["Resource", "Resource", "Pods"]
        assert [each["resource"]["target"]["averageUtilization"] for each in metrics[:2]] == [60, 75]
        # 70 % of the 6,000 that a node takes by default.
        assert metrics[2]["pods"]["target"] == {"type": "AverageValue", "averageValue": "4200"}

    def test_large_numbers_stay_whole(self) -> None:
        values = merged(
            {"maxConnections": 2_000_000, "drain": {"timeoutSeconds": 3600}},
            {"autoscaling": {"enabled": True, "connections": {"enabled": True}}},
        )
        metrics = one(render(values), "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert metrics[-1]["pods"]["target"]["averageValue"] == "1400000"

    @pytest.mark.parametrize("kind", ["autoscaling", "keda"])
    def test_the_number_of_nodes_is_left_to_it(self, kind: str) -> None:
        objects = render({kind: _KEDA if kind == "keda" else {"enabled": True}})
        assert "replicas" not in one(objects, "Deployment")["spec"]
        assert one(render(), "Deployment")["spec"]["replicas"] == 2

    def test_keda_asks_prometheus_for_this_release(self, tmp_path: Path) -> None:
        scaled = one(render({"keda": _KEDA}, name="blue"), "ScaledObject")["spec"]
        assert scaled["scaleTargetRef"] == {"name": "blue-rookery"}
        prometheus, cpu = scaled["triggers"]
        assert prometheus["metadata"]["threshold"] == "4200"
        assert cpu["metadata"] == {"value": "200"}
        series = 'mqtt_connections{{job="{}", instance="{}", listener="tcp"}}'
        test = {
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": series.format("mqtt/blue-rookery", "a"), "values": "100x5"},
                        {"series": series.format("mqtt/blue-rookery", "b"), "values": "50x5"},
                        {"series": series.format("test/blue-rookery", "a"), "values": "7x5"},
                    ],
                    "promql_expr_test": [
                        {
                            "expr": prometheus["metadata"]["query"],
                            "eval_time": "3m",
                            "exp_samples": [{"labels": "{}", "value": 150}],
                        }
                    ],
                }
            ]
        }
        (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
        promtool("test", "rules", str(tmp_path / "test.yml"))

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"autoscaling": {"enabled": True}, "keda": _KEDA}, "one of them"),
            ({"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}}, "minReplicas 5"),
            ({"autoscaling": {"enabled": True, "cpu": None}}, "by what"),
            ({"keda": {"enabled": True}}, "where is Prometheus"),
            ({"keda": {**_KEDA, "minReplicas": 11}}, "minReplicas 11"),
        ],
        ids=str,
    )
    def test_what_cannot_be_meant_is_refused(self, values: dict[str, Any], said: str) -> None:
        assert said in refusal(values)


class TestDisruption:
    @pytest.mark.parametrize(
        ("values", "there"),
        [
            ({}, True),
            ({"replicaCount": 1}, False),
            ({"replicaCount": 1, "autoscaling": {"enabled": True}}, True),
            ({"autoscaling": {"enabled": True, "minReplicas": 1}}, False),
            ({"podDisruptionBudget": {"enabled": False}}, False),
        ],
        ids=str,
    )
    def test_a_budget_where_a_node_can_be_spared(self, values: dict[str, Any], there: bool) -> None:
        """With one node it would only keep machines from being emptied."""
        assert bool(of_kind(render(values), "PodDisruptionBudget")) == there

    def test_one_node_at_a_time(self) -> None:
        spec = one(render(), "PodDisruptionBudget")["spec"]
        assert spec["maxUnavailable"] == 1
        assert "minAvailable" not in spec
        # Nodes that are not ready (no store) must not keep machines from being emptied.
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"

    def test_the_other_way_round(self) -> None:
        spec = one(render({"podDisruptionBudget": {"minAvailable": 0}}), "PodDisruptionBudget")["spec"]
        assert spec["minAvailable"] == 0
        assert "maxUnavailable" not in spec


class TestNetworkPolicy:
    def test_the_ports_that_are_on_are_open(self) -> None:
        values = merged(VALUE_SETS["split-services"], {"networkPolicy": {"enabled": True}})
        listeners, http = one(render(values), "NetworkPolicy", "rookery")["spec"]["ingress"]
        assert [port["port"] for port in listeners["ports"]] == ["mqtt", "ws", "devices", "internal"]
        assert [port["port"] for port in http["ports"]] == ["http"]
        assert "from" not in listeners and "from" not in http

    def test_listeners_and_http_may_be_for_some(self) -> None:
        peer = {"ipBlock": {"cidr": "10.0.0.0/8"}}
        policy = {"enabled": True, "clients": [peer], "http": [peer]}
        objects = render({"networkPolicy": policy})
        probe = next(pod for item, pod in pod_templates(objects) if item["kind"] == "Pod")
        for rule in one(objects, "NetworkPolicy", "rookery")["spec"]["ingress"]:
            first, test = rule["from"]
            assert first == peer
            # The pod of `helm test` gets in.
            assert _matches(test["podSelector"], probe)
        untested = render({"networkPolicy": policy, "test": {"enabled": False}})
        assert one(untested, "NetworkPolicy", "rookery")["spec"]["ingress"][0]["from"] == [peer]

    def test_a_migration_reaches_the_store(self) -> None:
        objects = render({"networkPolicy": {"enabled": True}, "migration": {"enabled": True}})
        nodes, redis = (one(objects, "NetworkPolicy", name)["spec"] for name in ("rookery", "rookery-redis"))
        [peer] = redis["ingress"][0]["from"]
        assert peer["podSelector"] == nodes["podSelector"]
        labels = next(pod for item, pod in pod_templates(objects) if item["kind"] == "Job")["metadata"]["labels"]
        [among] = peer["podSelector"]["matchExpressions"]
        assert labels[among["key"]] in among["values"]
        assert _matches(peer["podSelector"], {"metadata": {"labels": labels}})
        # No client is sent to it.
        assert not one(objects, "Service", "rookery")["spec"]["selector"].items() <= labels.items()

    def test_the_store_and_dns_are_within_reach(self) -> None:
        objects = render({"networkPolicy": {"enabled": True}})
        dns, store = one(objects, "NetworkPolicy", "rookery")["spec"]["egress"]
        assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(53, "UDP"), (53, "TCP")}
        redis = one(objects, "StatefulSet")["spec"]["template"]
        assert _matches(store["to"][0]["podSelector"], redis)
        assert [port["port"] for port in store["ports"]] == [
            port["containerPort"] for port in redis["spec"]["containers"][0]["ports"]
        ]

    def test_dns_has_other_ports_somewhere(self) -> None:
        policy = {"enabled": True, "egress": {"dnsPorts": [53, 5353]}}
        dns, _ = one(render({"networkPolicy": policy}), "NetworkPolicy", "rookery")["spec"]["egress"]
        assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {
            (port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")
        }

    def test_the_built_in_store_is_for_nodes_only(self) -> None:
        objects = render({"networkPolicy": {"enabled": True}})
        spec = one(objects, "NetworkPolicy", "rookery-redis")["spec"]
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        assert "egress" not in spec
        ((peer,),) = (rule["from"] for rule in spec["ingress"])
        admitted = {item["kind"] for item, pod in pod_templates(objects) if _matches(peer["podSelector"], pod)}
        assert admitted == {"Deployment"}

    @pytest.mark.parametrize(
        ("values", "ports"),
        [
            (_EXTERNAL, [6380]),
            (VALUE_SETS["sentinel"], [26379, 6379]),
            (VALUE_SETS["cluster"], [7000, 7001, 7002, 7003, 7004, 7005]),
        ],
        ids=["standalone", "sentinel", "cluster"],
    )
    def test_external_stores(self, values: dict[str, Any] | Path, ports: list[int]) -> None:
        peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}}}
        objects = render(merged(values, {"networkPolicy": {"enabled": True, "egress": {"redis": [peer]}}}))
        spec = one(objects, "NetworkPolicy")["spec"]
        assert sorted(port["port"] for port in spec["egress"][1]["ports"]) == sorted(ports)
        assert spec["egress"][1]["to"] == [peer]

    def test_egress_may_stay_open(self) -> None:
        values = {"networkPolicy": {"enabled": True, "egress": {"enabled": False}}}
        spec = one(render(values), "NetworkPolicy", "rookery")["spec"]
        assert spec["policyTypes"] == ["Ingress"]
        assert "egress" not in spec


class TestMonitoring:
    def test_series_carry_the_job_of_the_release(self) -> None:
        """The alerts of the release are about this job, and the dashboard has it among its variables."""
        for kind, endpoints in (("ServiceMonitor", "endpoints"), ("PodMonitor", "podMetricsEndpoints")):
            monitor = {kind[0].lower() + kind[1:]: {"enabled": True}}
            spec = one(render({"metrics": monitor}, name="blue"), kind)["spec"]
            (endpoint,) = spec[endpoints]
            assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "mqtt/blue-rookery"}]
            assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
            assert spec["namespaceSelector"] == {"matchNames": ["mqtt"]}

    def test_a_token_where_metrics_are_for_keys(self) -> None:
        credentials = {"name": "viewer", "key": "token"}
        metrics = {"serviceMonitor": {"enabled": True, "credentials": credentials}}
        (endpoint,) = one(render({"metrics": metrics}), "ServiceMonitor")["spec"]["endpoints"]
        assert endpoint["authorization"] == {"type": "Bearer", "credentials": credentials}

    def test_nodes_are_scraped_once(self) -> None:
        metrics = {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}
        assert "twice" in refusal({"metrics": metrics})

    def test_releases_of_one_name_do_not_meet_in_the_namespace_of_prometheus(self) -> None:
        elsewhere = {"enabled": True, "namespace": "monitoring"}
        values = {"metrics": dict.fromkeys(("serviceMonitor", "prometheusRule", "grafanaDashboard"), elsewhere)}
        found = [
            (item["kind"], item["metadata"]["name"])
            for namespace in ("staging", "production")
            for item in render(values, namespace=namespace)
            if item["metadata"]["namespace"] == "monitoring"
        ]
        assert len(set(found)) == len(found) == 6
        assert ("ServiceMonitor", "staging-rookery") in found

    def test_the_dashboard_is_the_shipped_one(self) -> None:
        (found,) = [
            item
            for item in of_kind(render({"metrics": {"grafanaDashboard": {"enabled": True}}}), "ConfigMap")
            if item["metadata"]["labels"].get("grafana_dashboard") == "1"
        ]
        shipped = json.loads((ROOT / "deploy" / "grafana" / "rookery.json").read_text())
        assert json.loads(found["data"]["rookery.json"]) == shipped


def _rules(rule: dict[str, Any] | None = None, **how: Any) -> list[Resource]:
    values = {"metrics": {"prometheusRule": {"enabled": True, **(rule or {})}}}
    groups: list[Resource] = one(render(values, **how), "PrometheusRule")["spec"]["groups"]
    return groups


class TestAlerts:
    def test_promtool_accepts_them(self, tmp_path: Path) -> None:
        more = one(render(VALUE_SETS["monitoring"]), "PrometheusRule")["spec"]["groups"]
        for groups in (_rules(), _rules(name="blue"), more):
            path = tmp_path / "rules.yml"
            path.write_text(yaml.safe_dump({"groups": groups}))
            promtool("check", "rules", str(path))

    def test_they_are_the_shipped_ones(self) -> None:
        shipped = [
            rule.get("alert", rule.get("record"))
            for group in yaml.safe_load(RULES.read_text())["groups"]
            for rule in group["rules"]
        ]
        assert [rule.get("alert", rule.get("record")) for group in _rules() for rule in group["rules"]] == shipped

    def test_they_fire_when_the_shipped_ones_do(self, tmp_path: Path) -> None:
        """The tests of the shipped rules hold for those that are narrowed to the job of the release."""
        values = {"metrics": {"job": "rookery", "prometheusRule": {"enabled": True}}}
        groups = one(render(values), "PrometheusRule")["spec"]["groups"]
        (tmp_path / RULES.name).write_text(yaml.safe_dump({"groups": groups}))
        test = DEPLOY / "rookery.rules.test.yml"
        (tmp_path / test.name).write_text(test.read_text())
        promtool("test", "rules", str(tmp_path / test.name))

    def test_every_series_is_one_of_the_release(self) -> None:
        for group in _rules(name="blue"):
            for rule in group["rules"]:
                series = re.findall(r"\b(?:up|process_\w+|(?:\w+:)?mqtt_\w+(?::\w+)?)\b(\{[^}]*\})?", rule["expr"])
                assert series, rule
                assert all(labels.startswith('{job="mqtt/blue-rookery"') for labels in series), rule["expr"]

    def test_two_releases_in_one_prometheus_do_not_meddle(self, tmp_path: Path) -> None:
        for by, where in (("rookery", {}), ("blue", {"name": "blue"}), ("test", {"namespace": "test"})):
            groups = _rules({"alertLabels": {"by": by}}, **where)
            (tmp_path / f"{by}.yml").write_text(yaml.safe_dump({"groups": groups}))
        test = {
            "rule_files": ["rookery.yml", "blue.yml", "test.yml"],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": 'up{job="mqtt/rookery", instance="a"}', "values": "0x10"},
                        {"series": 'up{job="mqtt/blue-rookery", instance="b"}', "values": "1x10"},
                        {"series": 'up{job="test/rookery", instance="c"}', "values": "1x10"},
                        {"series": 'mqtt_alarms{job="mqtt/rookery", instance="a", name="x"}', "values": "1x10"},
                    ],
                    "promql_expr_test": [
                        {
                            "expr": f'count by (by) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
                            "eval_time": "5m",
                            "exp_samples": [{"labels": '{by="rookery"}', "value": 1}],
                        }
                        for alert in ("RookeryNodeDown", "RookeryAlarm")
                    ],
                }
            ],
        }
        (tmp_path / "meddling.yml").write_text(yaml.safe_dump(test))
        promtool("test", "rules", str(tmp_path / "meddling.yml"))

    def test_some_may_be_left_out_and_others_added(self) -> None:
        mine = {"alert": "Mine", "expr": "vector(1)", "labels": {"severity": "info"}}
        groups = _rules({"disabled": ["RookeryRestarts"], "rules": [mine], "alertLabels": {"team": "iot"}})
        rules = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
        assert "RookeryRestarts" not in rules
        assert rules["Mine"] == mine
        assert rules["RookeryNodeDown"]["labels"] == {"severity": "critical", "team": "iot"}


class TestWaysIn:
    def test_an_ingress_for_web_socket_and_one_for_the_dashboard(self) -> None:
        objects = render(VALUE_SETS["ingress"])
        ws = one(objects, "Ingress", "rookery-ws")["spec"]
        assert ws["ingressClassName"] == "nginx"
        (rule,) = ws["rules"]
        (path,) = rule["http"]["paths"]
        # The path of the listener.
        assert (rule["host"], path["path"]) == ("mqtt.example.org", "/mqtt")
        assert path["backend"]["service"] == {"name": "rookery", "port": {"name": "ws"}}
        dashboard = one(objects, "Ingress", "rookery-dashboard")["spec"]
        assert [rule["host"] for rule in dashboard["rules"]] == ["rookery.example.org", "rookery.example.com"]
        for rule in dashboard["rules"]:
            assert rule["http"]["paths"][0]["backend"]["service"] == {"name": "rookery-http", "port": {"name": "http"}}

    def test_paths_are_text(self) -> None:
        ingress = {kind: {"enabled": True, "path": "/: #x"} for kind in ("ws", "dashboard")}
        for item in of_kind(render({"ingress": ingress}), "Ingress"):
            assert item["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/: #x"
        values = merged(VALUE_SETS["gateway"], {"listeners": {"ws": {"path": "/: #x"}}})
        (rule,) = one(render(values), "HTTPRoute", "rookery-ws")["spec"]["rules"]
        assert rule["matches"][0]["path"]["value"] == "/: #x"

    def test_routes_of_the_gateway_api(self) -> None:
        objects = render(merged(VALUE_SETS["gateway"], {"service": {"ports": {"mqtt": 2883}}}))
        routes = {item["metadata"]["name"]: item for item in objects if item["kind"].endswith("Route")}
        backends = {name: route["spec"]["rules"][0]["backendRefs"] for name, route in routes.items()}
        assert backends == {
            "rookery-mqtt": [{"name": "rookery", "port": 2883}],
            "rookery-mqtts": [{"name": "rookery", "port": 8883}],
            "rookery-ws": [{"name": "rookery", "port": 8083}],
            "rookery-dashboard": [{"name": "rookery", "port": 18083}],
        }
        assert routes["rookery-mqtt"]["spec"]["parentRefs"][0]["sectionName"] == "mqtt"
        assert routes["rookery-mqtts"]["spec"]["hostnames"] == ["mqtt.example.org"]

    @pytest.mark.parametrize(
        ("apis", "version", "found"),
        [
            ((), "", "v1alpha2"),
            (("gateway.networking.k8s.io/v1alpha3/TLSRoute",), "", "v1alpha3"),
            (("gateway.networking.k8s.io/v1/TLSRoute", "gateway.networking.k8s.io/v1alpha3/TLSRoute"), "", "v1"),
            (("gateway.networking.k8s.io/v1/TLSRoute",), "v1alpha2", "v1alpha2"),
        ],
    )
    def test_the_version_that_the_cluster_has(self, apis: tuple[str, ...], version: str, found: str) -> None:
        values = merged(VALUE_SETS["gateway"], {"gateway": {"mqtts": {"version": version}}})
        for helm in (3, 4):
            route = one(render(values, helm, apis=apis), "TLSRoute")
            assert route["apiVersion"] == f"gateway.networking.k8s.io/{found}"

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"ingress": {"ws": {"enabled": True}}, "listeners": {"ws": {"enabled": False}}}, "listeners.ws.enabled"),
            ({"gateway": {"mqtts": {"enabled": True, "parentRefs": [{"name": "x"}]}}}, "listeners.mqtts.enabled"),
            ({"gateway": {"mqtt": {"enabled": True}}}, "which Gateway"),
        ],
        ids=str,
    )
    def test_ways_to_nowhere_are_refused(self, values: dict[str, Any], said: str) -> None:
        assert said in refusal(values)


class TestCertificate:
    def test_it_fills_the_secret_that_the_nodes_read(self) -> None:
        objects = render(VALUE_SETS["cert-manager"])
        spec = one(objects, "Certificate")["spec"]
        assert spec["dnsNames"] == ["mqtt.example.org"]
        assert spec["issuerRef"] == {"name": "letsencrypt", "kind": "ClusterIssuer", "group": "cert-manager.io"}
        volumes = json.dumps(one(objects, "Deployment")["spec"]["template"]["spec"]["volumes"])
        assert f'"{spec["secretName"]}"' in volumes

    def test_by_default_for_the_names_of_the_service(self) -> None:
        spec = one(render(VALUE_SETS["everything"], name="blue"), "Certificate")["spec"]
        assert spec["dnsNames"][:3] == ["blue-rookery", "blue-rookery.mqtt", "blue-rookery.mqtt.svc"]

    @pytest.mark.parametrize(
        ("tls", "said"),
        [({"issuerRef": {"name": ""}}, "which issuer"), ({}, "which of them")],
    )
    def test_what_cannot_be_meant_is_refused(self, tls: dict[str, Any], said: str) -> None:
        existing = "" if tls else "mine"
        values = {"tls": {"existingSecret": existing, "certManager": {"enabled": True, **tls}}}
        assert said in refusal(values)


def test_extra_objects_have_templates() -> None:
    for helm in (3, 4):
        objects = render(VALUE_SETS["extra"], helm, name="blue")
        assert one(objects, "ConfigMap", "blue-rookery-regional")["data"] == {"REGION": "eu"}
        assert one(objects, "Secret", "blue-more")["stringData"] == {"token": "not a secret"}


_PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
_BLOCKS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", _PAGE, re.DOTALL | re.MULTILINE)]


@pytest.mark.parametrize(
    "values", [block for block in _BLOCKS if "rules" not in block], ids=lambda each: "-".join(each)
)
def test_values_in_the_docs(values: dict[str, Any]) -> None:
    objects = render(values)
    assert faults(objects, KUBERNETES[-1]) == []


def test_there_are_values_in_the_docs() -> None:
    assert len(_BLOCKS) >= 6


def _matches(selector: Resource, pod: Resource) -> bool:
    labels: dict[str, str] = selector["matchLabels"]
    return bool(labels) and labels.items() <= pod["metadata"]["labels"].items()
