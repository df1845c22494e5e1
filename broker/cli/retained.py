"""`rookery ctl retained delete-matching`: portion by portion, until nothing is left."""

from __future__ import annotations

from typing import Any

import click

from broker.cli.api_client import take_api
from broker.cli.manifest import described
from broker.cli.operate import OperationCommand, arguments_of, ask


def delete_matching_command() -> click.Command:
    """The operation, as often as it takes."""
    operation = described()["retained.delete_matching"]
    command = OperationCommand(operation)
    command.params = [each for each in command.params if each.name not in ("a_cursor", "a_limit", "as_json")]

    def delete(**given: Any) -> None:
        api = take_api(given)
        arguments = arguments_of(operation, given)
        deleted = 0
        while True:
            told = ask(api, operation.name, arguments)
            deleted += int(told["deleted"])
            if not told.get("cursor"):
                break
            arguments["cursor"] = told["cursor"]
        print(deleted)

    command.callback = delete
    return command
