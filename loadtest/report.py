"""The tables of a load test, and `python -m loadtest report`: table and page again from a report file."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from loadtest import html
from loadtest.arguments import output
from loadtest.result import Report, Result
from loadtest.summary import FIGURES, Row, brokers, by_scenario, notes, ratio, rows

Style = Literal["text", "markdown", "rich"]


def cell(value: float | None, digits: int) -> str:
    """Return a number for reading, `-` for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def cells(results: Iterable[Result]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of medians; with several brokers, with ratios to the first of a scenario."""
    all_rows = rows(results)
    shown = [figure for figure in FIGURES if any(row.shown(figure) is not None for row in all_rows)]
    compared = len(brokers(all_rows)) > 1
    head = ["scenario", *(["broker"] if compared else []), *(figure.label for figure in shown)]
    head += ["rate ratio", "CPU ratio"] if compared else []
    head.append("faults")
    lines = []
    for of_scenario in by_scenario(all_rows).values():
        first = of_scenario[0]
        for row in of_scenario:
            line = [row.title, *([row.broker] if compared else [])]
            line += [cell(row.shown(figure), figure.digits) for figure in shown]
            if compared:
                line += [cell(each, 2) for each in ratios(row, first)]
            lines.append([*line, row.remarks])
    return head, lines


def ratios(row: Row, first: Row) -> tuple[float | None, float | None]:
    """Return how many times the rate and the cost of `first` those of `row` are; no rate where it is given."""
    rate = None if row.paced else ratio(row.median(row.rate), first.median(row.rate))
    return rate, ratio(row.median(row.cost), first.median(row.cost))


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], style: Style = "text") -> str:
    """Return a table in columns: names to the left, numbers to the right."""
    lines = [[plain(text) for text in line] for line in lines]
    if style == "rich":
        return _rich(head, lines)
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines] if style == "markdown" else lines
    table = [list(head), *(list(line) for line in escaped)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    left = [_is_text([line[i] for line in table[1:]]) for i in range(len(head))]
    texts = []
    for line in table:
        padded = [
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(line, widths, left, strict=True)
        ]
        texts.append(f"| {' | '.join(padded)} |" if style == "markdown" else "  ".join(padded).rstrip())
    if style == "markdown":
        rule = [
            "-" * (width + 2) if to_left else "-" * (width + 1) + ":"
            for width, to_left in zip(widths, left, strict=True)
        ]
        texts.insert(1, f"|{'|'.join(rule)}|")
    else:
        texts.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(texts)


def _is_text(column: Sequence[str]) -> bool:
    return not all(text[:1].isdigit() or text[:1] in "-+" for text in column)


def _rich(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not fits(head, lines, console.width):
        return blocks(head, lines, console.width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(head):
        to_left = _is_text([line[index] for line in lines])
        least = longest_word([name, *(line[index] for line in lines)])
        table.add_column(name, justify="left" if to_left else "right", overflow="fold", min_width=least)
    for line in lines:
        styles = ["red" if faulty(name, text) else "" for name, text in zip(head, line, strict=True)]
        table.add_row(*(Text(text, style) for text, style in zip(line, styles, strict=True)))
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")


def longest_word(texts: Iterable[str]) -> int:
    """Return how wide a column of these texts has to be, so that no word is broken."""
    return max((len(word) for text in texts for word in text.split()), default=1)


def fits(head: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> bool:
    """Return whether a table that folds between words has room; a column has two spaces around it."""
    return sum(longest_word(column) + 2 for column in zip(head, *lines, strict=True)) <= width


def narrow(head: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> str:
    """Return a table in columns if it has room in so many, else as blocks."""
    made = aligned(head, lines)
    return made if all(len(line) <= width for line in made.splitlines()) else blocks(head, lines, width)


def blocks(head: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> str:
    """Return each line of a table as a block of lines, for those who have no room for columns."""
    label = max(len(name) for name in head)
    parts = []
    for line in lines:
        told = textwrap.wrap(line[0], width, break_long_words=False) or [""]
        for name, text in zip(head[1:], line[1:], strict=True):
            first, rest = f"  {name:<{label}}  ", " " * (label + 4)
            told += textwrap.wrap(
                text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False
            ) or [first.rstrip()]
        parts.append("\n".join(told))
    return "\n\n".join(parts)


def faulty(name: str, text: str) -> bool:
    """Return whether a cell tells of faults."""
    return name == "faults" and not text.startswith("none")


def plain(text: str) -> str:
    """Return a text as a terminal may get it, whoever wrote it: in one line, nothing in it that the terminal obeys."""
    return "".join("?" if unicodedata.category(sign)[0] == "C" else sign for sign in " ".join(text.split()))


def best_style() -> Style:
    """Return `rich` where it is installed and somebody looks, else `text`."""
    return "rich" if sys.stdout.isatty() and find_spec("rich") is not None else "text"


def table(results: Iterable[Result], style: Style | None = None) -> str:
    """Return the table of medians, by default as suits standard output."""
    return suiting(*cells(results)) if style is None else aligned(*cells(results), style)


def suiting(head: Sequence[str], lines: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
    """Return a table as suits standard output, or as Markdown."""
    style = "markdown" if markdown else best_style()
    if style == "text" and sys.stdout.isatty():
        return narrow(head, lines, shutil.get_terminal_size().columns)
    return aligned(head, lines, style)


def status(results: Iterable[Result]) -> int:
    """Return the exit status of all: 130 if interrupted, 3 for loss, repetition or reordering, 2 for other trouble."""
    every = list(results)
    return 130 if any(result.interrupted for result in every) else max((result.status for result in every), default=0)


def about(report: Report) -> str:
    """Return a line about the machine and the time."""
    told = []
    for name, value in report.machine.items():
        told.append({"processors": f"{value} processors", "system": str(value)}.get(name, f"{name} {value}"))
    return plain(f"{', '.join(told)}; {report.started}")


def write_html(path: Path, report: Report) -> None:
    """Write the page of a report."""
    path.write_text(html.page(report, *cells(report.results)), "utf-8", "replace")


def show(
    report: Report, *, markdown: bool = False, html_path: Path | None = None, json_path: Path | None = None
) -> int:
    """Print a report as a table, then write its files; returns the exit status, 2 at least if one cannot be written."""
    print(about(report) + "\n")
    print(table(report.results, "markdown" if markdown else None))
    if told := notes(rows(report.results)):
        print("\n" + "\n".join(told))
    written = write(json_path, report.write) & write(html_path, lambda path: write_html(path, report))
    return status(report.results) if written else max(2, status(report.results))


def write(path: Path | None, by: Callable[[Path], object]) -> bool:
    """Write a file that was asked for; says so and returns False if that is not possible."""
    try:
        if path is not None:
            by(path)
    except OSError as error:
        print(f"rookery-loadtest: {path}: {error.strerror or error}", file=sys.stderr)
        return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Print a recorded report; returns its exit status, 1 if there is none."""
    parser = argparse.ArgumentParser(prog="python -m loadtest report", description="Show a recorded report again.")
    parser.add_argument("file", type=Path, metavar="FILE.json", help="what --json wrote")
    parser.add_argument("--html", type=output, metavar="FILE", help="write the page there")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args(arguments)
    try:
        report = Report.read(options.file)
    except (OSError, ValueError) as error:
        print(f"loadtest: {options.file}: {error}", file=sys.stderr)
        return 1
    return show(report, markdown=options.markdown, html_path=options.html)
