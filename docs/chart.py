"""The generated files of the Helm chart: what its values.yaml says, as a JSON schema and as a table.

Comments in values.yaml carry both: `## Section`; `# -- description` above a key; `# @schema {...}` below that, with
what the default does not tell. A map with keys has only these, an empty one is free; `x-settings` stands for the
schema of settings of the broker, made of their declarations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from broker.config import SETTINGS, Setting
from broker.options import Blocks, Networks, Option, Options, Words
from broker.options.listener import ListenerOptions
from broker.options.web import HeaderLines
from broker.values import Assignments, Choice, Duration, Flag, Integer, Kind, Lifetime, Name, Size, Url, WholeSeconds

CHART = Path(__file__).parents[1] / "helm" / "rookery"

#: What templates of the chart set, from values of its own.
OF_THE_CHART = frozenset(
    {
        *("config", "node_name", "data_dir", "workers", "ready_file", "listen", "http", "allow_anonymous"),
        *("admin_secret", "admin_secret_file", "max_connections"),
        *("store", "store_username", "store_password", "store_password_file"),
        *("sentinel_username", "sentinel_password", "sentinel_password_file"),
        *("drain_delay", "drain_timeout", "drain_rate", "server_reference"),
    }
)

Schema = dict[str, Any]


# -- values.yaml


@dataclass(slots=True)
class Value:
    """A key that is described."""

    path: tuple[str, ...]
    section: str
    text: str
    default: Any
    schema: Schema = field(default_factory=dict)


_KEY = re.compile(r"( *)([A-Za-z][A-Za-z0-9]*):(?: |$)")


def described(text: str) -> list[Value]:
    """All described keys, in order. ValueError for a key that neither is, nor stands below or above one that is."""
    values = yaml.safe_load(text)
    found: list[Value] = []
    stack: list[tuple[int, str]] = []
    section, words, schema = "", [], {}
    for line in text.splitlines():
        comment = line.strip()
        if line.startswith("## "):
            section = line[3:].strip()
        elif comment.startswith("# -- "):
            words = [comment[5:]]
        elif comment.startswith("# @schema "):
            schema = json.loads(comment[10:])
        elif comment.startswith("#") and words:
            words.append(comment[1:].strip())
        elif matched := _KEY.match(line):
            indent = len(matched[1])
            while stack and stack[-1][0] >= indent:
                stack.pop()
            stack.append((indent, matched[2]))
            if words:
                path = tuple(key for _, key in stack)
                found.append(Value(path, section, " ".join(words), _at(values, path), schema))
            words, schema = [], {}
        else:
            words, schema = [], {}
    paths = {value.path for value in found}
    for path in _leaves(values):
        if not any(path[: len(each)] == each for each in paths):
            raise ValueError(f"values.yaml: {'.'.join(path)} has no description")
    return found


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


# -- the schema


def values_schema() -> str:
    """values.schema.json."""
    schema: Schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"listener": _listener()},
        **_strict(),
    }
    for value in described((CHART / "values.yaml").read_text("utf-8")):
        at = schema
        for key in value.path[:-1]:
            if key not in at["properties"]:
                at["properties"][key] = _strict()
                if key not in _MAY_BE_NULL:
                    at.setdefault("required", []).append(key)  # `null` takes it away, and templates look into it
            at = at["properties"][key]
        at["properties"][value.path[-1]] = {"description": value.text, **_of_value(value)}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


#: Sections that users switch off as a whole.
_MAY_BE_NULL = ("autoscaling", "keda")


def _strict() -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": {}}


#: Maps whose values Kubernetes takes as text only; `--set-string` or quotes make a number one.
_OF_TEXTS = re.compile(r"(labels|annotations|nodeSelector)$", re.IGNORECASE)


def _of_value(value: Value) -> Schema:
    given = dict(value.schema)
    if settings := given.pop("x-settings", None):
        return _SETTINGS[settings]()
    if isinstance(value.default, dict) and value.default and "additionalProperties" not in given:
        raise ValueError(f"values.yaml: {'.'.join(value.path)}: is it open (additionalProperties)?")
    if value.default == {} and _OF_TEXTS.search(value.path[-1]) and not given:
        given = {"additionalProperties": {"type": "string"}}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    if "enum" in given:
        return given
    if value.default is None:
        if "type" not in given:
            raise ValueError(f"values.yaml: {'.'.join(value.path)}: its @schema has to tell the type")
        return given
    return {"type": kinds[type(value.default)], **given}


# -- settings of the broker


def _config(secrets: bool = False) -> Schema:
    """Settings by their names; only with `secrets` those that are secret, and such options."""
    properties = {
        setting.name: {"description": setting.help, **_of_setting(setting, secrets)}
        for setting in SETTINGS
        if setting.name not in OF_THE_CHART and (secrets or not setting.secret)
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _of_setting(setting: Setting, secrets: bool) -> Schema:
    if isinstance(setting.kind, Blocks):
        return {"type": "array", "items": _block(setting.kind, secrets)}
    return _of_kind(setting.kind, setting.at_least, setting.at_most, secrets)


def _block(kind: Blocks, secrets: bool) -> Schema:
    return {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": list(kind.types)}},
        "allOf": [
            {"if": {"properties": {"type": {"const": name}}}, "then": _options(of, secrets, {"type": {"const": name}})}
            for name, of in kind.types.items()
        ],
    }


def _options(of: type[Options], secrets: bool, more: Schema, without: tuple[str, ...] = ()) -> Schema:
    every = [each for each in of.declared() if each.name not in without and (secrets or not each.secret)]
    needed = [each.name for each in every if each.default is None]
    schema: Schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **more,
            **{each.name: {"description": each.help, **_of_option(each, secrets)} for each in every},
        },
    }
    return {**schema, "required": needed} if needed else schema


def _of_option(option: Option, secrets: bool) -> Schema:
    return _of_kind(option.kind, option.at_least, option.at_most, secrets)


def _of_kind(kind: Kind, at_least: float | None, at_most: float | None, secrets: bool) -> Schema:
    bounds = {"minimum": at_least, "maximum": at_most}
    limits = {name: bound for name, bound in bounds.items() if bound is not None}
    match kind:
        case Flag():
            return {"type": "boolean"}
        case Integer():
            return {"type": "integer", **limits}
        case Size():
            return _or_text({"type": "integer", **limits}, r"^[0-9.]+ *([KMGkmg][Ii]?)?[Bb]?$")
        case Lifetime():
            return _or_text({"type": "integer", **limits}, r"^([0-9.]+ *(s|m|min|h|d|w)?|never)$")
        case WholeSeconds():
            return _or_text({"type": "integer", **limits}, r"^[0-9.]+ *(s|m|min|h|d|w)?$")
        case Duration():
            return _or_text({"type": "number", **limits}, r"^[0-9.]+ *(ms|s|m|min|h|d|w)?$")
        case Choice() if set(kind.words) == {"on", "off"}:  # YAML's own words for true and false
            return {"enum": ["on", "off", True, False]}
        case Choice() if {"true", "false"} <= set(kind.words):
            return {"enum": [*kind.words, True, False]}
        case Choice():
            return {"enum": list(kind.words)}
        case Words() | Networks() | Assignments() | HeaderLines():
            return {"type": "array", "items": {"type": "string"}}
        case Name():
            return {"type": "string", "pattern": r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63}|.*\{\{.*)$"}
        case Url() if not secrets:
            return {"type": "string", "not": {"pattern": "//[^/]*@"}}
    return {"type": "string"}


def _or_text(schema: Schema, pattern: str) -> Schema:
    """Numbers with units are text."""
    return {"anyOf": [schema, {"type": "string", "pattern": pattern}]}


#: What `tls` of the chart sets.
_OF_TLS = ("certfile", "keyfile", "ca_certs", "client_certificates", "name")


def _listener() -> Schema:
    return _options(ListenerOptions, False, {}, _OF_TLS)


def _extra_listeners() -> Schema:
    port = {"type": "integer", "minimum": 1, "maximum": 65535}
    one = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "scheme", "port"],
        "properties": {
            "name": {
                "type": "string",
                "allOf": [{"pattern": "^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$"}, {"pattern": "[a-z]"}],
                "not": {"pattern": "--"},
            },
            "scheme": {"enum": ["tcp", "tls", "ws", "wss"]},
            "port": port,
            "path": {"type": "string", "pattern": "^/"},
            "service": {"type": "boolean"},
            "options": {"$ref": "#/definitions/listener"},
        },
    }
    return {"type": "array", "items": one}


_SETTINGS = {
    "config": _config,
    "secretConfig": lambda: _config(secrets=True),
    "listener": lambda: {"$ref": "#/definitions/listener"},
    "extraListeners": _extra_listeners,
}


# -- the table

_HEAD = """# rookery

<!-- Generated from values.yaml by `make generate`. -->

A clustered MQTT 3.1, 3.1.1 and 5.0 broker. Its nodes keep nothing themselves: they are a Deployment, and what clients
rely on lives in Redis or Valkey. [docs/kubernetes.md](../../docs/kubernetes.md) tells how to run it.

```sh
helm install rookery helm/rookery --namespace mqtt --create-namespace --wait
helm test rookery --namespace mqtt
```

Works with Helm 3 and Helm 4, and Kubernetes 1.27 or newer. By default a small Valkey is installed with it
(`redis.enabled`), for trying out; `externalRedis` names your own. A misspelt value is refused, misspelt settings in
`config` included.
"""


def values_table() -> str:
    """README.md of the chart."""
    parts = [_HEAD]
    section = ""
    for value in described((CHART / "values.yaml").read_text("utf-8")):
        if value.section != section:
            section = value.section
            parts.append(f"\n## {section}\n\n| value | default | |\n|---|---|---|\n")
        default = json.dumps(value.default, ensure_ascii=False).replace("|", "\\|")
        text = value.text.replace("|", "\\|")
        parts.append(f"| `{'.'.join(value.path)}` | `{default}` | {text} |\n")
    return "".join(parts)


FILES = {
    "../helm/rookery/values.schema.json": values_schema,
    "../helm/rookery/README.md": values_table,
}
