"""`python -m loadtest bench`: a short run of what matters, beside mosquitto, and how it stands to the record.

Changes are of ratios to mosquitto in the same run. Figures that fell by more than a tenth, and by more than the runs
differ among each other, are marked; only with `--strict` they make the exit status 4. Runs that failed always count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from loadtest import compare, record, report
from loadtest.arguments import output
from loadtest.record import PATH, Record
from loadtest.result import Report, now
from loadtest.targets import BROKERS

SET = ("fanin", "p2p0", "p2p1", "p2p2", "fanout", "persistent", "shared", "connect", "latency")

FELL = 4  # the exit status


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest bench", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=SET, metavar="SCENARIO", help=f"[{' '.join(SET)}]")
    parser.add_argument("--figures", type=Path, default=PATH, metavar="FILE", help="the record [%(default)s]")
    parser.add_argument("--record", action="store_true", help="write the record instead of comparing with it")
    parser.add_argument("--strict", action="store_true", help="exit status 4 if a figure fell")
    compare.common(parser, 2.0, 0.5, 3)
    options = parser.parse_args(arguments)
    try:
        options.cases = compare.cases(options.scenarios, compare.window(options))
        options.old = Record.read(options.figures) if options.figures.exists() else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.strict and not options.record and options.old is None:
        parser.error(f"{options.figures}: there is no record, so that --strict has nothing to compare with")
    if options.record:
        try:
            output(str(options.figures))
        except argparse.ArgumentTypeError as error:
            parser.error(str(error))
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure, print and return the exit status."""
    options = _arguments(arguments)
    brokers = compare.present((BROKERS[record.BASE], BROKERS[record.OURS]), compare.stderr)
    compare.allow_files()
    started = now()
    results = compare.run(options.cases, brokers, options.repeat, compare.measure, compare.stderr)
    made = Report(results, started=started)
    made.machine.update(compare.versions(brokers))
    status = report.show(made, markdown=options.markdown, html_path=options.html, json_path=options.json)
    new, old = record.record(made), options.old
    if options.record:
        if status == 0 and not report.write(options.figures, record.together(new, old).write):
            return 2
        print(f"\n{options.figures} is {'written' if status == 0 else 'left as it was: not all runs were clean'}")
        return status
    changes = record.changes(new, old)
    print()
    print(report.suiting(*record.table(changes), markdown=options.markdown))
    whole = status != 130
    print("\n" + "\n".join(report.plain(text) for text in record.remarks(changes, new, old, whole=whole)))
    return status or (FELL if options.strict and any(change.verdict == "WORSE" for change in changes) else 0)
