"""What operations there are, as commands see them: read from a file, so that a call needs nothing of the broker.

The file is made of the declarations in `broker.admin` by `make generate`; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from broker.admin.operations import Operation

FILE: Final = Path(__file__).with_name("operations.json")

NOTHING: Final = "nothing"
PAGE: Final = "page"
LIST: Final = "list"
VALUE: Final = "value"
EVENTS: Final = "events"


@dataclass(frozen=True, slots=True)
class Argument:
    """`kind` is the type of JSON schema (`string`, `integer`, `number`, `boolean`, `array`, `object`); `items` that of
    an array's items. `inside` is the object that it is a member of, "" where it is an argument itself."""

    name: str
    kind: str
    help: str = ""
    required: bool = False
    default: Any = None
    choices: list[str] = field(default_factory=list)
    items: str = ""
    inside: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Described:
    """One operation. `answer` is NOTHING, PAGE (`items` and `cursor`), LIST (`items` alone), VALUE or EVENTS; `fields`
    are the names and kinds of what an item, or the answer, has."""

    name: str
    scope: str
    method: str
    path: str
    summary: str
    description: str
    answer: str
    arguments: list[Argument]
    fields: dict[str, str]

    @property
    def subject(self) -> str:
        """`clients` of `clients.list`."""
        return self.name.partition(".")[0]

    @property
    def verb(self) -> str:
        """`set-level` of `logs.set_level`."""
        return self.name.partition(".")[2].replace("_", "-").replace(".", "-")


@cache
def described() -> Mapping[str, Described]:
    """All operations by name, in the order of their declaration."""
    found: dict[str, Described] = {}
    for table in json.loads(FILE.read_text("utf-8")):
        table["arguments"] = [Argument(**each) for each in table["arguments"]]
        found[table["name"]] = Described(**table)
    return found


# -- making the file


def written() -> str:
    """The content of the file, of the declarations as they are now."""
    import broker.admin.catalogue  # noqa: F401  # declares them
    from broker.admin.operations import OPERATIONS

    shown = [_without_defaults(asdict(describe(OPERATIONS[name]))) for name in sorted(OPERATIONS)]
    return json.dumps(shown, indent=1, ensure_ascii=False) + "\n"


def _without_defaults(table: dict[str, Any]) -> dict[str, Any]:
    table["arguments"] = [
        {key: value for key, value in each.items() if value or (value == 0 and value is not False)}
        for each in table["arguments"]
    ]
    return table


def describe(operation: Operation[Any]) -> Described:
    """One declaration."""
    import msgspec

    schemas = _Schemas(msgspec.json.schema(operation.arguments))
    arguments = schemas.arguments()
    results = _Schemas(msgspec.json.schema(operation.result))
    answer, fields = results.answer()
    if operation.events:
        answer = EVENTS
    elif operation.status == 204:
        answer = NOTHING
    return Described(
        operation.name,
        operation.scope,
        operation.method,
        operation.path,
        operation.summary,
        " ".join(operation.description.split()),
        answer,
        arguments,
        fields,
    )


class _Schemas:
    """A JSON schema with its definitions."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def arguments(self) -> list[Argument]:
        """Of the object; those of optional objects inside of it are told with it."""
        found: list[Argument] = []
        top = self._resolved(self._root)
        for name, raw in top.get("properties", {}).items():
            schema = self._resolved(raw)
            if schema.get("type") == "object" and schema.get("properties"):
                inner = schema["properties"].items()
                found += [self._argument(each, value, False, name) for each, value in inner]
            else:
                found.append(self._argument(name, raw, name in top.get("required", ()), ""))
        return found

    def _argument(self, name: str, raw: dict[str, Any], required: bool, inside: str) -> Argument:
        schema = self._resolved(raw)
        kind = _kind(schema)
        return Argument(
            name,
            kind,
            " ".join(str(raw.get("description") or schema.get("description", "")).split()),
            required,
            raw.get("default", schema.get("default")),
            [str(each) for each in schema.get("enum", ())],
            _kind(self._resolved(schema["items"])) if kind == "array" and "items" in schema else "",
            inside,
            "password" in name or "secret" in name,
        )

    def answer(self) -> tuple[str, dict[str, str]]:
        """The kind of answer, and the fields of an item or of the answer."""
        top = self._resolved(self._root)
        members = top.get("properties", {})
        items = self._resolved(members["items"]) if "items" in members else {}
        if items.get("type") == "array" and ("cursor" in members or members.keys() <= {"items", "missing_nodes"}):
            return PAGE if "cursor" in members else LIST, self._fields(self._resolved(items.get("items", {})))
        return VALUE, self._fields(top)

    def _fields(self, schema: dict[str, Any]) -> dict[str, str]:
        return {name: _kind(self._resolved(raw)) for name, raw in schema.get("properties", {}).items()}

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follows references; of something that may be null, what it is else."""
        while True:
            if "$ref" in schema:
                schema = self._root["$defs"][schema["$ref"].rpartition("/")[2]]
            elif "anyOf" in schema:
                kinds = [each for each in schema["anyOf"] if each.get("type") != "null"]
                if len(kinds) != 1:
                    return schema
                schema = {**{key: value for key, value in schema.items() if key != "anyOf"}, **kinds[0]}
            else:
                return schema


def _kind(schema: dict[str, Any]) -> str:
    """The type of values; that of a choice is not told."""
    return str(schema.get("type") or ("string" if "enum" in schema else "object"))
