"""Where the arguments of an operation stand in a request: in the path, in the query string or in the body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import NODEFAULT
from msgspec.structs import FieldInfo, fields

from broker.admin.api import BAD_REQUEST, AdminError
from broker.admin.operations import Operation

#: Of a query string.
_PAIRS_MAX: Final = 100


class Shape:
    """Of one operation. `query` and `body` are structs of the arguments that stand there, None for none."""

    __slots__ = ("_lists", "_names", "body", "operation", "query")

    def __init__(self, operation: Operation[Any]) -> None:
        self.operation = operation
        self._names = set(operation.path_names)
        known = fields(operation.arguments)
        missing = self._names - {field.encode_name for field in known}
        assert not missing, f"{operation.name} has no arguments {missing}, which its path names"
        others = [field for field in known if field.encode_name not in self._names]
        in_query = operation.method in ("GET", "DELETE")
        title = "".join(part.capitalize() for part in operation.name.replace("_", ".").split("."))
        struct = _struct(f"{title}Arguments", others, in_query, operation.arguments.__doc__) if others else None
        self.query = struct if in_query else None
        self.body = None if in_query else struct
        self._lists = {field.encode_name for field in others if in_query and _is_list(field.type)}

    def read(self, path: Mapping[str, str], query: bytes, body: bytes) -> dict[str, Any]:
        """The arguments, as JSON has them. Raises AdminError (400)."""
        arguments: dict[str, Any] = {name: _unquoted(text) for name, text in path.items()}
        given = self._read_query(query)
        if self.query is not None:
            _checked(given, self.query, strict=False)
        elif given:
            raise _invalid(f"no arguments are expected in the query string, not {next(iter(given))!r:.80}")
        arguments.update(given)
        if self.body is not None:
            arguments.update(self._read_body(body))
        elif body.strip() not in (b"", b"{}", b"null"):
            raise _invalid("no body is expected")
        return arguments

    def _read_query(self, query: bytes) -> dict[str, Any]:
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_PAIRS_MAX)
        except (UnicodeDecodeError, ValueError):
            raise _invalid("the query string cannot be read") from None
        found: dict[str, Any] = {}
        for name, text in pairs:
            if name in self._lists:
                found.setdefault(name, []).append(text)
            elif name in found:
                raise _invalid(f"{name!r:.80} is given twice")
            else:
                found[name] = text
        return found

    def _read_body(self, body: bytes) -> dict[str, Any]:
        assert self.body is not None
        try:
            given = msgspec.json.decode(body or b"{}")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise _invalid(f"the body is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise _invalid("the body is not a JSON object")
        _checked(given, self.body, strict=True)
        return given


def _struct(name: str, known: Iterable[FieldInfo], in_query: bool, doc: str | None) -> type[msgspec.Struct]:
    declared: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in known:
        # Text cannot be null: `null` in a query string is the text.
        kind = _not_none(field.type) if in_query else field.type
        default: Any = NODEFAULT
        if field.default is not NODEFAULT:
            default = field.default
        elif field.default_factory is not NODEFAULT:
            default = msgspec.field(default_factory=field.default_factory)
        declared.append((field.encode_name, kind) if default is NODEFAULT else (field.encode_name, kind, default))
    return msgspec.defstruct(name, declared, kw_only=True, forbid_unknown_fields=True, namespace={"__doc__": doc or ""})


def _not_none(declared: Any) -> Any:
    if get_origin(declared) is Annotated:
        return Annotated[(_not_none(declared.__origin__), *declared.__metadata__)]
    options = [each for each in get_args(declared) if each is not NoneType]
    if get_origin(declared) not in (Union, UnionType) or len(options) == len(get_args(declared)):
        return declared
    return Union[tuple(options)]  # noqa: UP007


def _checked(given: dict[str, Any], struct: type[msgspec.Struct], *, strict: bool) -> None:
    try:
        msgspec.convert(given, struct, strict=strict)
    except (msgspec.ValidationError, UnicodeError, RecursionError, OverflowError) as error:
        raise _invalid(str(error)) from None


def _is_list(declared: Any) -> bool:
    told = msgspec.inspect.type_info(declared)
    options = told.types if isinstance(told, msgspec.inspect.UnionType) else (told,)
    return any(isinstance(each, msgspec.inspect.CollectionType) for each in options)


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _invalid("the path is not UTF-8") from None


def _invalid(detail: str) -> AdminError:
    return AdminError(BAD_REQUEST, "invalid arguments", detail[:2000])
