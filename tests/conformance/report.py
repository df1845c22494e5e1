"""`python -m tests.conformance.report`: how many statements are tested, per version."""

from __future__ import annotations

import sys

from tests.conformance.statements import V5, V311, VERSION_NAMES, claims, load


def untested(version: int) -> list[str]:
    """Return the statements that bind a server and have neither a test nor a reason for having none."""
    claimed = claims()
    return [
        s.id
        for s in load(version).values()
        if s.binds_server and s.not_applicable is None and (version, s.id) not in claimed
    ]


def lines(version: int) -> list[str]:
    """Return the report of one version."""
    statements = load(version)
    claimed = claims()
    tested = [s for s in statements.values() if (version, s.id) in claimed]
    tests = {name for s in tested for name in claimed[version, s.id]}
    excused = [s for s in statements.values() if s.not_applicable is not None and (version, s.id) not in claimed]
    client_only = [s for s in statements.values() if s.binds == "client" and (version, s.id) not in claimed]
    missing = untested(version)
    out = [
        f"{VERSION_NAMES[version]}: {len(statements)} statements",
        f"  tested           {len(tested):4d}   (by {len(tests)} tests)",
        f"  not applicable   {len(excused):4d}",
        f"  clients only     {len(client_only):4d}",
        f"  untested         {len(missing):4d}",
    ]
    out += [f"    not applicable {s.id}: {s.not_applicable}" for s in excused]
    out += [f"    untested {id_}: {statements[id_].text}" for id_ in missing]
    return out


def main() -> int:
    """Print the report; exit status 1 while a statement is untested."""
    for version in (V5, V311):
        sys.stdout.write("\n".join(lines(version)) + "\n")
    return 1 if untested(V5) or untested(V311) else 0


if __name__ == "__main__":
    sys.exit(main())
