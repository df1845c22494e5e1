"""The API of a real node under schemathesis, which makes requests from the OpenAPI document: no 5xx, every answer as
the document says, nothing accepted that it forbids. `make fuzz-api SECONDS=600 SEED=1` for long runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.kit.broker_process import BrokerProcess

#: One that no request without it can lock out.
SECRET = "5eed" * 16

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)

#: Draining ends what others test; a request waits for an answer that never comes.
LEFT_OUT = ("nodes.drain", "messages.request")


def command_of(node: BrokerProcess, seconds: int, examples: int, seed: int) -> list[str]:
    """What to run."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        "run",
        f"http://{node.http}/api/v1/openapi.json",
        f"--header=Authorization: Bearer rk_admin_{SECRET}",
        f"--checks={','.join(CHECKS)}",
        "--phases=coverage,fuzzing",
        f"--max-examples={examples}",
        f"--max-time={seconds}",
        f"--seed={seed}",
        "--exclude-by=/x-rookery-events == true",
        "--request-timeout=30",
        "--no-shrink",
        "--continue-on-failure",
        "--warnings=off",
        "--no-color",
        "--generation-database=none",
    ]
    return command + [f"--exclude-operation-id={name}" for name in LEFT_OUT]


def fuzz(directory: Path, seconds: int, examples: int, seed: int) -> tuple[int, str]:
    """Status (0: nothing was found) and what was said."""
    node = BrokerProcess(
        directory / "node", "memory", http="127.0.0.1:0", arguments=("--admin-secret", SECRET, "--http-rate", "0")
    )
    node.start()
    try:
        done = subprocess.run(
            command_of(node, seconds, examples, seed), cwd=directory, capture_output=True, text=True, check=False
        )
        log = node.log()
    finally:
        node.stop()
    bad = [line for line in log.splitlines() if "Traceback" in line or "http.failed" in line or "_failed" in line]
    return done.returncode or bool(bad), done.stdout + done.stderr + "\n".join(bad)


def main(arguments: Sequence[str] | None = None) -> int:
    """A long run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        status, told = fuzz(Path(directory), chosen.seconds, 100_000, chosen.seed)
    sys.stdout.write(told)
    return status


if __name__ == "__main__":
    sys.exit(main())
