"""Settings as options of commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from broker.config import SETTINGS, Loaded, Setting, Settings, load


class SettingsCommand(click.Command):
    """A command with one option per setting; its help shows them in the groups of the declaration."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(option_of(setting) for setting in SETTINGS)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        group_of = {setting.attribute: setting.group for setting in SETTINGS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(group_of.get(parameter.name or "", "Other"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records, col_max=34)


def option_of(setting: Setting) -> click.Option:
    """The option of a setting; None if it is not given."""
    shown = setting.default or "none"
    text = setting.help if setting.secret else f"{setting.help} [default: {shown}]"
    if setting.is_flag:
        spelling = f"{setting.option}/--no-{setting.option.removeprefix('--')}"
        return click.Option([spelling, setting.attribute], default=None, help=text)
    return click.Option(
        [setting.option, setting.attribute],
        default=None,
        multiple=setting.repeatable,
        metavar=setting.kind.metavar,
        help=text,
    )


def load_options(options: Mapping[str, object]) -> Loaded:
    """The settings of a command line, the environment and the file. Raises ConfigError."""
    # click gives () for a repeatable option that was not used.
    return load({name: value for name, value in options.items() if value != ()}, os.environ)


def check_files(settings: Settings) -> None:
    """What `serve` reads before it starts; ConfigError for what is wrong with it."""
    from broker.access import Access  # here: the other commands start without trio and the rest
    from broker.transport.certificates import load_certificates

    Access(settings, None)
    load_certificates(settings.listen)
