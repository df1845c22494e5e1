"""`rookery import-mosquitto`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from broker.cli.settings import check_files
from broker.config import load
from broker.errors import ConfigError
from broker.migration.mosquitto import convert
from broker.migration.mosquitto_conf import read_lines


@click.command("import-mosquitto")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write here. [default: standard output]"
)
@click.option("-f", "--force", is_flag=True, help="Replace the output file if there is one.")
def import_mosquitto(file: Path, output: Path | None, force: bool) -> int:
    """Make a rookery.toml of FILE, a mosquitto.conf, and list what could not be carried over.

    Password and ACL files are used as they are. Exit status 3: written, but something was left behind.
    """
    imported = convert(read_lines(file))
    if output is None:
        print(imported.toml, end="")
    else:
        if output.exists() and not force:
            raise click.ClickException(f"{output} is there already; --force replaces it")
        output.write_text(imported.toml, "utf-8")
    for note in imported.notes:
        print(f"not carried over: {note}", file=sys.stderr)
    if output is not None:
        try:
            check_files(load({}, {}, output).settings)
        except ConfigError as error:
            print(f"to be mended: {error}", file=sys.stderr)
            return 3
        print(f"wrote {output}; `rookery serve --config {output}` starts with it", file=sys.stderr)
    return 3 if imported.notes else 0
