"""Commands made of what is declared: one for each operation of the API."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from broker.cli.api_client import EXIT_INCOMPLETE, Api, api_parameters, path_of, take_api
from broker.cli.completing import completion_of
from broker.cli.manifest import EVENTS, LIST, NOTHING, PAGE, Argument, Described, described
from broker.cli.tables import Table, card, plain, use_colour
from broker.cli.views import LINES, event_line, shown_fields, shown_rows, value_table

#: Items that a table has without --limit and --all.
TABLE_ITEMS: Final = 100

#: What a node gives at a time.
PAGE_ITEMS: Final = 500

#: Arguments that commands look after themselves.
_PAGING: Final = ("cursor", "limit")

_RESERVED: Final = {"url", "key", "key-file", "ca-file", "timeout", "json", "jsonl", "all", "help"}

#: How long an operation may take beyond --timeout, by the argument that says so.
_WAITS: Final = ("timeout_s", "wait_s")


# -- parameters


def parameters_of(operation: Described) -> list[click.Parameter]:
    """What a command for the operation takes, without the options that say where the API is."""
    in_path = path_names(operation)
    by_name = {argument.name: argument for argument in operation.arguments if not argument.inside}
    found: list[click.Parameter] = [_positional(by_name[name]) for name in in_path if name in by_name]
    for argument in operation.arguments:
        if argument.name in in_path and not argument.inside:
            continue
        if operation.answer == PAGE and argument.name in _PAGING:
            continue
        found.append(_option(argument))
    return found


def path_names(operation: Described) -> list[str]:
    """The arguments that are parts of the path."""
    return [name.partition(":")[0] for name in re.findall(r"{([^}]+)}", operation.path)]


def parameter_name(argument: Argument) -> str:
    """The name by which a command gets an argument."""
    return f"a_{argument.inside}_{argument.name}" if argument.inside else f"a_{argument.name}"


def option_name(argument: Argument) -> str:
    """How an argument is spelled on the command line."""
    name = argument.name.replace("_", "-")
    return f"--with-{name}" if name in _RESERVED else f"--{name}"


def _positional(argument: Argument) -> click.Argument:
    return click.Argument(
        [parameter_name(argument)],
        metavar=argument.name.upper(),
        shell_complete=completion_of(argument.name),
    )


def _option(argument: Argument) -> click.Option:
    name, spelled = parameter_name(argument), option_name(argument)
    text = argument.help
    if argument.default not in (None, "", [], {}, False):
        text = f"{text} [default: {json.dumps(argument.default, ensure_ascii=False)}]".lstrip().replace('"', "")
    # A default of None counts as one: what is required has none at all.
    common: dict[str, Any] = {"help": text, "required": True} if argument.required else {"help": text, "default": None}
    if argument.kind == "boolean":
        return click.Option([f"{spelled}/--no-{spelled[2:]}", name], **common)
    if argument.kind == "array" and argument.items in ("string", "integer", "number"):
        return click.Option(
            [spelled, name],
            multiple=True,
            type=_TYPES[argument.items],
            **{**common, "help": f"{text} Repeatable.".lstrip()},
        )
    if argument.kind in ("array", "object"):
        return click.Option([spelled, name], type=JSON, metavar="JSON|@FILE", **common)
    kind = click.Choice(argument.choices) if argument.choices else _TYPES.get(argument.kind, click.STRING)
    if argument.secret:
        common["help"] = f"{text} `-`: it is asked for, or read from standard input.".lstrip()
    return click.Option([spelled, name], type=kind, shell_complete=completion_of(argument.name), **common)


class _Json(click.ParamType[Any]):
    """JSON on the command line, in a file (`@FILE`) or from standard input (`@-`)."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            if value.startswith("@"):
                value = sys.stdin.read() if value == "@-" else Path(value[1:]).read_text("utf-8")
            return json.loads(value)
        except (OSError, ValueError, RecursionError) as error:
            self.fail(f"{value!r:.60}: {error}", param, ctx)


JSON: Final = _Json()
_TYPES: Final[dict[str, click.ParamType[Any]]] = {
    "string": click.STRING,
    "integer": click.INT,
    "number": click.FLOAT,
}


def arguments_of(operation: Described, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the operation out of what click found; those that were not given are left out."""
    found: dict[str, Any] = {}
    for argument in operation.arguments:
        value = given.get(parameter_name(argument))
        if value is None or value == ():
            continue
        if argument.secret and value == "-":
            value = _asked(argument.name)
        value = list(value) if isinstance(value, tuple) else value
        if argument.inside:
            found.setdefault(argument.inside, {})[argument.name] = value
        else:
            found[argument.name] = value
    return found


def _asked(name: str) -> str:
    if sys.stdin.isatty():
        return str(
            click.prompt(name.replace("_", " ").capitalize(), hide_input=True, confirmation_prompt=True, err=True)
        )
    return sys.stdin.readline().rstrip("\r\n")


# -- asking


def request_of(operation: Described, arguments: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]], Any]:
    """Path, query and body of a call."""
    in_path = path_names(operation)
    path = path_of(operation.path, {name: str(arguments[name]) for name in in_path})
    rest = {name: value for name, value in arguments.items() if name not in in_path}
    if operation.method not in ("GET", "DELETE"):
        return path, [], rest if rest or operation.arguments else None
    query = []
    for name, value in rest.items():
        for each in value if isinstance(value, list) else [value]:
            query.append((name, each if isinstance(each, str) else json.dumps(each)))
    return path, query, None


def ask(api: Api, name: str, arguments: Mapping[str, Any]) -> Any:
    """Carry out an operation that answers once; what it says (None for nothing). Raises ApiFailure."""
    raw = _raw(api, described()[name], arguments)
    return json.loads(raw) if raw else None


def _raw(api: Api, operation: Described, arguments: Mapping[str, Any]) -> bytes:
    path, query, body = request_of(operation, arguments)
    wait_s = max((float(arguments[name]) for name in _WAITS if name in arguments), default=0.0)
    return api.call(operation.method, path, query, body, wait_s)


def pages(api: Api, name: str, arguments: Mapping[str, Any], limit: int | None) -> Iterator[Mapping[str, Any]]:
    """Answers of an operation that lists, with at most `limit` items together. Raises ApiFailure."""
    operation = described()[name]
    left = limit
    sized = any(argument.name == "limit" for argument in operation.arguments)
    more: dict[str, Any] = {}
    while True:
        if sized:
            more["limit"] = PAGE_ITEMS if left is None else min(left, PAGE_ITEMS)
        page = ask(api, name, {**arguments, **more})
        if left is not None:
            page["items"] = page["items"][:left]
            left -= len(page["items"])
        yield page
        if not page.get("cursor") or left == 0:
            return
        more["cursor"] = page["cursor"]


# -- telling


class Result:
    """Prints what an operation says, and knows the exit status."""

    def __init__(self, operation: Described, as_json: bool, as_lines: bool) -> None:
        self.operation = operation
        self.plain = as_json or as_lines
        self._lines = as_lines
        self._colour = use_colour()
        self._table: Table | None = None
        self._missing: dict[str, None] = {}
        self._count = 0

    def items(self, found: Iterator[Mapping[str, Any]], limit: int | None) -> int:
        """Answers with items, as they come."""
        cursor = None
        if self.plain and not self._lines:
            print("[", end="")
        for page in found:
            cursor = page.get("cursor")
            self._missing.update(dict.fromkeys(page.get("missing_nodes", ())))
            self._portion(page["items"])
        if self.plain and not self._lines:
            print("\n]" if self._count else "]")
        if cursor and limit is not None:
            print(f"# the first {self._count}; more with --limit N or --all", file=sys.stderr)
        return self._complete()

    def _complete(self) -> int:
        if self._missing:
            print(f"# not complete: no answer from {', '.join(map(plain, self._missing))}", file=sys.stderr)
            return EXIT_INCOMPLETE
        return 0

    def _portion(self, items: list[Any]) -> None:
        if self._lines:
            for item in items:
                print(_json(item))
        elif self.plain:
            for item in items:
                print(",\n" if self._count else "\n", _json(item), sep="", end="")
                self._count += 1
            return
        elif self.operation.name in LINES:
            for item in items:
                self.event(item)
        elif items or not self._count:
            rows = shown_rows(items, self.operation.subject)
            if self._table is None:
                self._table = Table(shown_fields(self.operation, rows), self._colour)
            print(*self._table.lines(rows), sep="\n")
        self._count += len(items)

    def value(self, raw: bytes) -> int:
        """One answer."""
        value = json.loads(raw)
        if self.plain:
            print(raw.decode("utf-8", "replace").rstrip("\n"))
        elif isinstance(value, list):
            self._portion(value)
        elif isinstance(value, dict):
            view = value_table(self.operation.name, value)
            lines = Table(view[0], self._colour).lines(view[1]) if view else card(value, self._colour)
            print(*lines, sep="\n")
        else:
            print(plain(str(value)))
        if isinstance(value, dict) and self.operation.method == "GET":
            self._missing.update(dict.fromkeys(value.get("missing_nodes") or ()))
        return self._complete()

    def event(self, value: Any) -> None:
        """One of many, at once."""
        print(_json(value) if self.plain else event_line(self.operation.name, value, self._colour), flush=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def follow(api: Api, name: str, arguments: Mapping[str, Any], result: Result, wanted: int | None = None) -> int:
    """Print events until the stream ends, `wanted` came or somebody presses Ctrl-C. Raises ApiFailure."""
    path, query, _ = request_of(described()[name], arguments)
    stream = api.events(path, query)
    try:
        for count, value in enumerate(stream, start=1):
            result.event(value)
            if count == wanted:
                break
    except KeyboardInterrupt:
        return 0
    finally:
        stream.close()  # type: ignore[attr-defined]
    return 0


# -- commands


def output_parameters(operation: Described) -> list[click.Parameter]:
    """The options about what is printed."""
    if operation.answer == NOTHING:
        return []
    if operation.answer == EVENTS:
        return [
            click.Option(["--json", "as_json"], is_flag=True, help="One JSON value per line, as the API tells it."),
            click.Option(["--count"], type=click.IntRange(1), help="End after so many."),
        ]
    found: list[click.Parameter] = [
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="Print JSON: one array of all items." if operation.answer == PAGE else "Print the API's JSON.",
        )
    ]
    if operation.answer in (PAGE, LIST):
        found.append(click.Option(["--jsonl", "as_lines"], is_flag=True, help="Print one JSON object per line."))
    if operation.answer == PAGE:
        found += [
            click.Option(
                ["--limit"],
                type=click.IntRange(1),
                help=f"At most so many items. [default: {TABLE_ITEMS}; with --json and --jsonl: all]",
            ),
            click.Option(["--all", "everything"], is_flag=True, help="All items."),
        ]
    return found


class OperationCommand(click.Command):
    """The command of one operation."""

    def __init__(self, operation: Described, name: str | None = None) -> None:
        self.operation = operation
        help_text = operation.summary + "." + (f"\n\n{operation.description}" if operation.description else "")
        super().__init__(
            name or operation.verb,
            params=[*parameters_of(operation), *output_parameters(operation), *api_parameters()],
            help=f"{help_text}\n\nNeeds the scope {operation.scope}.",
            short_help=operation.summary + ".",
            callback=self._run,
        )

    def _run(self, **given: Any) -> int:
        api = take_api(given)
        return run(self.operation, api, arguments_of(self.operation, given), given)


def run(operation: Described, api: Api, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> int:
    """Carry out an operation and print what it says, as the options of `output_parameters` in `given` want it."""
    result = Result(operation, bool(given.get("as_json")), bool(given.get("as_lines")))
    if operation.answer == EVENTS:
        return follow(api, operation.name, arguments, result, given.get("count"))
    if operation.answer == PAGE:
        limit = given.get("limit")
        if limit is None and not given.get("everything") and not result.plain:
            limit = TABLE_ITEMS
        return result.items(pages(api, operation.name, arguments, limit), limit)
    raw = _raw(api, operation, arguments)
    if operation.answer == LIST:
        return result.items(iter([json.loads(raw)]), None)
    return result.value(raw) if raw else 0


class Subject(click.Group):
    """The operations of a subject; commands are made when they are needed.

    Without a command, `rookery ctl SUBJECT` does the first of `list` and `show` that needs no arguments."""

    def __init__(
        self, subject: str, help_text: str, extra: Mapping[str, Callable[[], click.Command]] | None = None
    ) -> None:
        super().__init__(subject.replace("_", "-"), help=help_text, no_args_is_help=True)
        self._subject = subject
        #: Commands written by hand, by name; None as result of no such.
        self._extra = dict(extra or {})

    def _operations(self) -> dict[str, Described]:
        return {each.verb: each for each in described().values() if each.subject == self._subject}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self._operations(), *self._extra})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._extra:
            return self._extra[cmd_name]()
        operation = self._operations().get(cmd_name)
        return OperationCommand(operation) if operation is not None else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        usual = "" if ctx.resilient_parsing else self.usual  # a shell wants to know what could be said
        if usual and (not args or (args[0].startswith("-") and args[0] not in ("-h", "--help"))):
            args = [usual, *args]
        return super().parse_args(ctx, args)

    @property
    def usual(self) -> str:
        """What is done where no command is given; "" for nothing."""
        operations = self._operations()
        for verb in ("list", "show"):
            operation = operations.get(verb)
            if operation is not None and not any(argument.required for argument in operation.arguments):
                return verb
        return ""
