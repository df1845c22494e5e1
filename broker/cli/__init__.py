"""The command `rookery`."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Iterator, Sequence

import click

from broker import __version__
from broker.cli.ctl import ctl
from broker.cli.migrate import import_mosquitto
from broker.cli.passwords import passwd
from broker.cli.probe import probe
from broker.cli.settings import SettingsCommand, check_files, load_options
from broker.cli.store import store_group
from broker.codec import compiled
from broker.config import DEFAULT
from broker.errors import BrokerError, ConfigError
from broker.values import hide_password

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. What goes wrong is one line on standard error."""
    try:
        # Without standalone_mode click returns what the command returned, or the status of --help.
        status = cli.main(None if arguments is None else list(arguments), prog_name="rookery", standalone_mode=False)
    except click.Abort:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except click.UsageError as error:
        hint = f"; see `{error.ctx.command_path} --help`" if error.ctx is not None else ""
        return _fail(error.format_message().rstrip(".") + hint, EXIT_CONFIGURATION)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has left; keep the interpreter from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except (BrokerError, OSError) as error:
        return _fail(str(error), _status(error))
    except BaseExceptionGroup as group:
        # trio wraps what ended the node. Anything unforeseen among it is a defect and keeps its traceback.
        causes = list(_leaves(group))
        if not all(isinstance(cause, (BrokerError, OSError, KeyboardInterrupt)) for cause in causes):
            raise
        return _fail(str(causes[0]) or "interrupted", _status(causes[0]))
    return status if isinstance(status, int) else 0


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_CONFIGURATION if isinstance(error, ConfigError) else EXIT_FAILED


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _fail(message: str, status: int) -> int:
    print(f"rookery: {hide_password(' '.join(message.split()))}", file=sys.stderr)
    return status


class CommandsInOrder(click.Group):
    """Lists commands in the order of their definition: what a new user needs first stands first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=CommandsInOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rookery", message="%(prog)s %(version)s")
def cli() -> None:
    """An MQTT 3.1, 3.1.1 and 5.0 broker on trio and Redis.

    `rookery serve` starts a node on tcp://127.0.0.1:1883 with an embedded store.
    """


_SOURCES = """Every option is also a variable (--max-packet-size is ROOKERY_MAX_PACKET_SIZE) and a key of the TOML file
(max_packet_size). The command line beats the environment, the environment beats the file."""


@cli.command(cls=SettingsCommand, epilog=_SOURCES)
def serve(**options: object) -> int:
    """Start a node and serve until SIGTERM."""
    loaded = load_options(options)
    gc.disable()  # nothing of what is imported becomes garbage, and looking for it takes a seventh of the time
    from broker.log import configure  # here: the other commands start without trio and the rest
    from broker.node import run

    gc.enable()
    configure(loaded.settings.log_level, loaded.settings.log_format)
    return run(loaded.settings, lambda: load_options(options).settings)


@cli.command("check-config", cls=SettingsCommand, epilog=_SOURCES)
def check_config(**options: object) -> None:
    """Check the settings as `serve` would, without starting."""
    loaded = load_options(options)
    check_files(loaded.settings)
    given = sum(origin != DEFAULT for origin in loaded.origins.values())
    print(f"configuration is valid: {given} settings given, {len(loaded.origins) - given} at their defaults")


@cli.command("config", cls=SettingsCommand, epilog=_SOURCES)
def show_config(**options: object) -> None:
    """Print the effective settings and where each comes from; secrets are masked."""
    rows = [(setting.name, text, origin) for setting, text, origin in load_options(options).shown()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, text, origin in rows:
        print(f"{name:<{widths[0]}} = {text:<{widths[1]}}  # {origin}")


cli.add_command(passwd)


cli.add_command(ctl)
cli.add_command(store_group)
cli.add_command(probe)
cli.add_command(import_mosquitto)


@cli.command()
def version() -> None:
    """Print the version, and whether the core of this installation is compiled."""
    print(f"rookery {__version__}")
    print(f"core: {'compiled' if compiled() else 'interpreted'}, Python {platform.python_version()}")
