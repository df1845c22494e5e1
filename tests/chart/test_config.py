"""The configuration that the chart makes: what the broker itself says to it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from broker.cli import main
from broker.config import load
from broker.options.authentication import Jwt
from tests.chart.container import Container, container_of
from tests.chart.helm import VALUE_SETS, VERSIONS, Resource, merged, of_kind, one, refusal, render
from tests.chart.test_rendered import objects_of
from tests.kit.redis_server import make_certificate

_HASH = (
    "$7$1000$722TRsNrI21eFhKX$VzquNkDjG6ZFSrhow0BCcUP0k5NbigiVIfwaLlVKGYEXpYtu696PQQNQC+10/a4iHx0E0QkznlfXB7MnhBQECg=="
)
_TEXTS = {"users": f"ann:{_HASH}\n", "acl": "topic readwrite #\n", "ROOKERY_LOG_LEVEL": "warning"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PEM files, by the ends of the keys of Secrets."""
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder)
    return {"crt": (folder / "cert.pem").read_text(), "key": (folder / "key.pem").read_text()}


def _loaded(values: Any, folder: Path) -> dict[str, Any]:
    """The settings that a pod has, by name; what the broker refuses raises."""
    container = container_of(render(values), "Deployment", folder, lambda name, key: _TEXTS.get(key, "text"))
    made = load({}, container.process_environment(), container.configuration)
    return {setting.name: getattr(made.settings, setting.attribute) for setting, _, _ in made.shown()}


def _checked(container: Container, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """What `rookery check-config` says to what `rookery serve` would get."""
    serve, *arguments = container.arguments
    assert serve == "serve"
    with mock.patch.dict(os.environ, container.process_environment(), clear=True):
        status = main(["check-config", *arguments])
    told = capsys.readouterr()
    return status, told.out + told.err


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_broker_takes_the_configuration_of_every_value_set(
    name: str, tmp_path: Path, certificate: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By one Helm: what both render is compared elsewhere."""

    def given(secret: str, key: str) -> str:
        return certificate.get(key.rpartition(".")[2]) or _TEXTS.get(key, "not-a-secret")

    objects = objects_of(name)
    status, told = _checked(container_of(objects, "Deployment", tmp_path, given), capsys)
    assert status == 0, told
    assert "configuration is valid" in told


def test_a_setting_that_the_schema_lets_by_is_refused_by_the_broker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the test above can fail."""
    values = {"config": {"max_packet_size": "1KiB", "max_packet_size_before_auth": "16KiB"}}
    status, told = _checked(container_of(render(values), "Deployment", tmp_path), capsys)
    assert status == 2
    assert "max_packet_size_before_auth" in told


def test_commands_in_the_pod_have_its_configuration(tmp_path: Path) -> None:
    values = {"auth": {"acl": "user ann\ntopic read some/#"}}
    container = container_of(render(values), "Deployment", tmp_path)
    for action, status in (("subscribe", 0), ("publish", 1)):
        done = container.run(["rookery", "ctl", "rules", "test", "--username", "ann", action, "some/topic"])
        assert done.returncode == status, done.stdout + done.stderr
        assert "acl_file" in done.stdout


# -- from values to settings


def _toml(values: Any, helm: int = 3) -> dict[str, Any]:
    return tomllib.loads(one(render(values, helm), "ConfigMap", "rookery")["data"]["rookery.toml"])


@pytest.mark.parametrize("helm", VERSIONS)
def test_values_are_the_same_in_toml(helm: int) -> None:
    config = {
        "max_queued_messages": 10_000_000,
        "max_queued_bytes": 1 << 40,
        "slow_threshold": 0.25,
        "connect_timeout": "1.5m",
        "retain_available": False,
        "validate_payload_format": True,
        "log_format": None,
        "response_information": "a \"b\" \\ <c> & 'd' {e} é \U0001f426 # ${f}",
        "shared_strategies": ["jobs=sticky", "logs=random"],
        "client_attributes": [
            {"type": "attribute", "name": "tenant", "value": "${username}", "match": r"^([a-z]+)\.\d{1,3}$"}
        ],
    }
    found = _toml({"config": config}, helm)
    del config["log_format"]  # takes the default away
    assert "log_format" not in found
    assert {name: found[name] for name in config} == config
    for name in ("max_queued_messages", "max_queued_bytes", "max_connections", "drain_rate"):
        assert type(found[name]) is int


def test_text_may_have_templates() -> None:
    found = _toml({"config": {"response_information": "{{ .Release.Namespace }}/x/", "tenant": "${client_attrs.t}"}})
    assert found["response_information"] == "mqtt/x/"
    assert found["tenant"] == "${client_attrs.t}"


def test_the_namespace_is_the_release_unless_it_is_given() -> None:
    """Releases of the same name in other namespaces of Kubernetes are other clusters, on the same Redis too."""
    assert _toml(None)["namespace"] == "mqtt.rookery"

    def of(name: str, namespace: str) -> str:
        [found] = of_kind(render(None, name=name, namespace=namespace), "ConfigMap")
        return str(tomllib.loads(found["data"]["rookery.toml"])["namespace"])

    assert of("b", "mqtt") == "mqtt.b-rookery"
    assert of("rookery", "2024") == "2024.rookery"
    long = {of(f"{'r' * 52}{end}", f"{'n' * 62}{other}") for end in "ab" for other in "cd"}
    assert len(long) == 4
    assert {len(each) for each in long} == {64}
    assert _toml({"config": {"namespace": "old"}})["namespace"] == "old"


def test_listeners_and_their_options() -> None:
    values = {
        "listeners": {
            "mqtt": {"options": {"proxy_protocol": True, "trusted_proxies": ["10.0.0.0/8"]}},
            "mqtts": {"enabled": True, "port": 9883, "options": {"tls_min": "1.3"}},
            "wss": {"enabled": True, "path": "/other", "options": {"origins": ["https://app.example.org"]}},
            "extra": [
                {"name": "plant", "scheme": "tls", "port": 8890, "options": {"mountpoint": "plant/${username}/"}},
                {"name": "web", "scheme": "ws", "port": 8090},
            ],
        },
        "tls": {"existingSecret": "certificate", "clientCertificates": "optional", "caSecret": "authorities"},
    }
    tls = {
        "certfile": "/etc/rookery/tls/tls.crt",
        "keyfile": "/etc/rookery/tls/tls.key",
        "client_certificates": "optional",
        "ca_certs": "/etc/rookery/client-ca/ca.crt",
    }
    assert _toml(values)["listen"] == [
        {"name": "mqtt", "url": "tcp://0.0.0.0:1883", "proxy_protocol": "on", "trusted_proxies": ["10.0.0.0/8"]},
        {"name": "mqtts", "url": "tls://0.0.0.0:9883", "tls_min": "1.3", **tls},
        {"name": "ws", "url": "ws://0.0.0.0:8083/mqtt"},
        {"name": "wss", "url": "wss://0.0.0.0:8084/other", "origins": ["https://app.example.org"], **tls},
        {"name": "plant", "url": "tls://0.0.0.0:8890", "mountpoint": "plant/${username}/", **tls},
        {"name": "web", "url": "ws://0.0.0.0:8090/mqtt"},
    ]
    ports = {port["name"]: port["port"] for port in one(render(values), "Service", "rookery")["spec"]["ports"]}
    assert ports == {"mqtt": 1883, "mqtts": 9883, "ws": 8083, "wss": 8084, "plant": 8890, "web": 8090, "http": 18083}


def test_options_of_listeners_may_be_truth_values(tmp_path: Path) -> None:
    values = {"listeners": {"mqtt": {"options": {"anonymous": True}}, "ws": {"options": {"anonymous": False}}}}
    assert [each.options.anonymous for each in _loaded(values, tmp_path)["listen"]] == ["true", "false"]


def test_addresses_of_ipv6(tmp_path: Path) -> None:
    found = _loaded({"listeners": {"address": "[::]"}}, tmp_path)
    assert [each.url for each in found["listen"]] == ["tcp://[::]:1883", "ws://[::]:8083/mqtt"]
    assert str(found["http"]) == "http://[::]:18083"


# -- who may connect


def test_users_in_the_store_are_the_default(tmp_path: Path) -> None:
    found = _loaded(None, tmp_path)
    assert [each.TYPE for each in found["authentication"]] == ["store"]
    assert found["authorization"] == ()
    assert found["allow_anonymous"] is False


def test_all_that_is_asked_in_order(tmp_path: Path) -> None:
    values = {
        "auth": {"users": f"ann:{_HASH}", "acl": "topic read #", "storeRules": True},
        "config": {"authentication": [{"type": "ldap", "url": "ldap://ldap.example.org"}], "no_match": "allow"},
    }
    found = _loaded(values, tmp_path)
    assert [each.TYPE for each in found["authentication"]] == ["password_file", "store", "ldap"]
    assert [each.TYPE for each in found["authorization"]] == ["acl_file", "store"]
    assert (tmp_path / "etc/rookery/auth/users").read_text() == f"ann:{_HASH}"
    assert (tmp_path / "etc/rookery/auth/acl").read_text() == "topic read #"


def test_users_of_a_secret_of_the_user(tmp_path: Path) -> None:
    values = {"auth": {"existingSecret": "mine", "usersKey": "passwd", "aclKey": "rules", "store": False}}
    objects = render(values)
    assert not [item for item in objects if item["metadata"]["name"] == "rookery-auth"]
    container_of(objects, "Deployment", tmp_path, lambda name, key: f"{name} {key}")
    assert (tmp_path / "etc/rookery/auth/users").read_text() == "mine passwd"
    assert (tmp_path / "etc/rookery/auth/acl").read_text() == "mine rules"
    assert _toml(values)["authentication"] == [{"type": "password_file", "path": "/etc/rookery/auth/users"}]


@pytest.mark.parametrize("text", ["users", "acl"])
def test_users_and_rules_have_one_place(text: str) -> None:
    assert f"auth.{text}" in refusal({"auth": {"existingSecret": "mine", text: "some"}})


def test_nobody_being_asked_has_to_be_meant() -> None:
    assert "allowAnonymous" in refusal({"auth": {"store": False}})
    found = _toml({"auth": {"store": False, "allowAnonymous": True}})
    assert found["allow_anonymous"] is True
    assert "authentication" not in found


# -- secrets


@pytest.mark.parametrize("helm", VERSIONS)
def test_secrets_are_in_no_config_map_and_reach_the_broker(helm: int, tmp_path: Path) -> None:
    jwt: dict[str, Any] = {
        "type": "jwt",
        "secret": "a b&c=d%e+f,g é/${x}" + "x" * 20,
        "algorithms": ["HS256", "HS512"],
        "leeway": 30,
        "require_expiry": False,
    }
    headers = ["Authorization: Bearer a,b", "X-Other: 1"]
    web = {"type": "http", "url": "https://user:pass@auth.example.org/?a=b", "headers": headers}
    values = {
        "auth": {"admin": {"secret": "admin's secret"}},
        "config": {"authentication": [{"type": "password_file", "path": "/plugins/users"}]},
        "secretConfig": {"authentication": [jwt, web], "response_information": "hidden/", "max_inflight": 7},
    }
    objects = render(values, helm)
    for item in objects:
        if item["kind"] != "Secret":
            assert not re.search(r"a b&c|Bearer|user:pass|admin's|hidden", str(item)), item["kind"]
    container = container_of(objects, "Deployment", tmp_path)
    made = load({}, container.process_environment(), container.configuration).settings
    assert [each.TYPE for each in made.authentication] == ["store", "password_file", "jwt", "http"]
    token, service = made.authentication[2:]
    assert isinstance(token, Jwt)
    assert (token.secret, token.algorithms, token.leeway_s) == (jwt["secret"], ("HS256", "HS512"), 30)
    assert token.require_expiry is False
    assert dict(service.pairs(False))["headers"] == "Authorization:Bearer a,b\nX-Other:1"
    assert dict(service.pairs(False))["url"] == web["url"]
    assert (made.response_information, made.max_inflight) == ("hidden/", 7)
    assert made.admin_secret == "admin's secret"


def test_secrets_have_no_templates(tmp_path: Path) -> None:
    """What looks like one may be part of a password; the settings beside it have theirs."""
    values = {
        "config": {"authentication": [{"type": "password_file", "path": "/plugins/{{ .Release.Name }}"}]},
        "secretConfig": {
            "authentication": [{"type": "jwt", "secret": "a{{b" + "x" * 32}],
            "response_information": "{{ .Release.Name }}/",
        },
    }
    container = container_of(render(values), "Deployment", tmp_path)
    made = load({}, container.process_environment(), container.configuration).settings
    _, file, token = made.authentication
    assert isinstance(token, Jwt)
    assert token.secret == "a{{b" + "x" * 32
    assert dict(file.pairs(False))["path"] == "/plugins/rookery"
    assert made.response_information == "{{ .Release.Name }}/"


@pytest.mark.parametrize("helm", VERSIONS)
@pytest.mark.parametrize(
    "config",
    [
        {"authentication": [{"type": "jwt", "secret": "in the ConfigMap"}]},
        {"authentication": [{"type": "http", "url": "https://user:pass@auth.example.org"}]},
        {"authentication": [{"type": "jwtt"}]},
        {"authentication": [{"type": "password_file"}]},
        {"authorization": [{"type": "acl_file", "path": "/x", "pth": "/y"}]},
        {"admin_secret": "in the ConfigMap"},
        {"store_password": "in the ConfigMap"},
        {"node_name": "one-for-all"},
        {"store": "memory"},
        {"drain_rate": 5},
        {"workers": 4},
        {"max_inflight": 0},
        {"max_inflight": 4096},
        {"max_inflight": "100"},
        {"session_expiry_v3": "7 fortnights"},
        {"log_format": "yaml"},
        {"namespace": "a b"},
    ],
)
def test_the_schema_refuses_wrong_settings_and_secrets(config: dict[str, Any], helm: int) -> None:
    [key] = config
    assert key in refusal({"config": config}, helm)


def test_a_setting_has_one_place() -> None:
    assert "max_inflight" in refusal({"config": {"max_inflight": 1}, "secretConfig": {"max_inflight": 2}})


def test_random_secrets_are_long_and_new(tmp_path: Path) -> None:
    def secrets(objects: list[Resource]) -> set[str]:
        environment = container_of(objects, "Deployment", tmp_path).environment
        return {environment["ROOKERY_ADMIN_SECRET"], environment["ROOKERY_STORE_PASSWORD"]}

    found = secrets(render()) | secrets(render({"replicaCount": 3}))
    assert len(found) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", text) for text in found)


def test_a_short_admin_secret_is_refused() -> None:
    assert "8 characters" in refusal({"auth": {"admin": {"secret": "short"}}})


def test_merged_values_of_two_sets(tmp_path: Path) -> None:
    values = merged(VALUE_SETS["cluster"], {"externalRedis": {"existingSecret": "", "password": "of-redis"}})
    found = _loaded(values, tmp_path)
    assert found["store"].startswith("redis")
    assert found["store_password"] == "of-redis"
