"""A coverage-guided campaign against codec, topic names, connection machine and session.

    python -m tests.fuzz.run --inputs 10000000

Needs atheris (extra `fuzz`). Ends at the first finding, whose input it leaves below tests/fuzz/cases/TARGET.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from broker.codec.primitives import remaining_length
from tests.kit.packet_data import wire

CASES = Path(__file__).with_name("cases")
VECTORS = Path(__file__).parents[1] / "unit" / "data" / "codec_packets.json"
MAX_LENGTH = 512

#: How the inputs are divided: the codec is what strangers reach first.
SHARES = {"codec": 45, "machine": 23, "session": 20, "splits": 2, "names": 10}


def seeds() -> Iterator[bytes]:
    """The packets of the codec's tests, for each version."""
    for vector in json.loads(VECTORS.read_text()):
        body = wire(vector["body"])
        packet = wire(vector["first"]) + remaining_length(len(body)) + body
        for version in vector["versions"]:
            yield bytes((version - 3 | 0x80,)) + packet
            yield bytes((version - 3,)) + packet * 2
    yield b"$share/g/a/+/#"
    yield b"$delayed/5/a/b"


def main(arguments: Sequence[str]) -> int:
    """Run all targets; the exit status is 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000_000, help="inputs of all targets (default: 10,000,000)")
    parser.add_argument("--target", choices=sorted(SHARES), help="only this one, with all the inputs")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    shares = {given.target: 100} if given.target else SHARES
    began = time.monotonic()
    total = 0
    for name, share in shares.items():
        runs = given.inputs * share // 100
        folder = CASES / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(seeds()):
                Path(corpus, f"{number:04}").write_bytes(seed)
            done = subprocess.run(
                [sys.executable, "-m", "tests.fuzz.child", name, corpus, f"-runs={runs}", f"-max_len={MAX_LENGTH}",
                 f"-seed={given.seed}", f"-artifact_prefix={folder}/", "-print_final_stats=1", "-verbosity=0"],
                check=False, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        executed = [line.rpartition(" ")[2] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        count = int(executed[0]) if executed else 0
        total += count
        _say(f"{name}: {count:,} inputs, {time.monotonic() - began:.0f} s")
        if done.returncode:
            _say(done.stderr[-6000:])
            return 1
    _say(f"{total:,} inputs, nothing found")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
