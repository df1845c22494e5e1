"""Faults for as long as one likes: `python -m tests.fault.campaign --seconds 600 --seed 1`.

Rounds of about a minute, each on a cluster of its own with a seed of its own: faults follow each other at random under
a load that uses everything, then all is checked. Ends with status 1 at the first violation and says where the history
is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.fault import faults
from tests.fault.world import recovered, verdict, world
from tests.history.run import summary
from tests.history.workload import Mix

ROUND_S = 60.0


async def round_of(folder: Path, seed: int, seconds: float) -> tuple[str, list[str]]:
    """One round; returns what was done, and what was wrong."""
    proxied = seed % 2 == 0
    choices = (*faults.DIRECT, *faults.PROXIED) if proxied else faults.DIRECT
    mix = Mix(patience_s=2.0 if seed % 4 < 2 else 20.0)
    async with world(folder, seed=seed, mix=mix, proxied=proxied) as made:
        until = time.monotonic() + seconds
        await trio.sleep(1.0)
        while time.monotonic() < until:
            await made.run.random.choice(choices)(made)
            await trio.sleep(made.run.random.uniform(0.2, 4.0))
        timeline, problems = await verdict(made, 60.0)
        problems += recovered(made, timeline)
        if problems:
            made.run.history.save(folder / "history.jsonl")
    return f"{', '.join(made.what)}: {summary(timeline)}", problems


def main() -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    seed = options.seed
    while (left := until - time.monotonic()) > 5:
        folder = Path(tempfile.mkdtemp(prefix=f"rookery-fault-{seed}-"))
        done, problems = trio.run(round_of, folder, seed, min(ROUND_S, left))
        sys.stdout.write(f"seed {seed} {'FAILED' if problems else 'passed'}: {done}\n")
        if problems:
            sys.stdout.write(f"history and logs: {folder}\n" + "\n".join(problems[:50]) + "\n")
            return 1
        sys.stdout.flush()
        shutil.rmtree(folder)
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
