"""Completion for shells: the script, and names that a running node knows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from broker.cli.api_client import Api, take_api

#: A shell waits for it.
PATIENCE_S: Final = 1.0
NAMES_MAX: Final = 50

#: Shells put names on the command line as they are, and clients choose theirs: nothing that a shell would act upon.
_HARMLESS: Final = re.compile(r"[A-Za-z0-9_./:@+%,=][A-Za-z0-9_./:@+%,=-]*", re.ASCII)

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

#: Argument -> operation that lists, the argument by which it lists what begins so, and the field with the name.
_SOURCES: Final = {
    "client_id": ("clients.list", "prefix", "client_id"),
    "node": ("nodes.list", "", "node"),
    "username": ("users.list", "", "username"),
}


def completion_of(argument: str) -> Completion | None:
    """How values of an argument are completed; None if nobody knows."""
    source = _SOURCES.get(argument)
    if source is None:
        return None

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            api = take_api(dict(ctx.params))
            return [CompletionItem(name) for name in _names(api, *source, incomplete)]
        except (click.ClickException, ValueError, TypeError, AttributeError, KeyError):
            return []  # a shell shows no error between the words of a command

    return complete


def _names(api: Api, operation: str, prefix: str, field: str, incomplete: str) -> list[str]:
    from broker.cli.manifest import described
    from broker.cli.operate import ask

    hasty = Api(api.url, api.key, api.ca_file, PATIENCE_S)
    known = described().get(operation)
    if known is None:
        return []
    arguments: dict[str, Any] = {}
    accepted = {argument.name for argument in known.arguments}
    if incomplete and prefix in accepted:
        arguments[prefix] = incomplete
    if "limit" in accepted:
        arguments["limit"] = NAMES_MAX
    found = [str(item[field]) for item in ask(hasty, operation, arguments)["items"]]
    return [name for name in found if name.startswith(incomplete) and _HARMLESS.fullmatch(name)][:NAMES_MAX]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes `rookery` in a shell.

    bash: source <(rookery ctl completion bash), in ~/.bashrc. zsh: the same, in ~/.zshrc after compinit. fish: rookery
    ctl completion fish > ~/.config/fish/completions/rookery.fish. Client ids, nodes and users are completed from the
    node of ROOKERY_API_URL.
    """
    from broker.cli.manual import completion_script

    print(completion_script(shell), end="")
