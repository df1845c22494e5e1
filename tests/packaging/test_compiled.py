"""The compiled core passes the tests of the interpreted one; `make test-compiled` runs all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.compiled import installed, run, world
from tests.packaging.conftest import Packages

#: Those that look closest, and each way into the core once.
_TESTS = (
    *("tests/unit/test_codec_primitives.py", "tests/unit/test_codec_publish.py", "tests/unit/test_codec_reasons.py"),
    *("tests/unit/test_codec_vectors.py", "tests/unit/test_machine.py", "tests/unit/test_negotiation.py"),
    *("tests/unit/test_session.py", "tests/unit/test_topics_indexes.py", "tests/unit/test_topics_names.py"),
    *("tests/unit/test_cli.py", "tests/property/test_inbound_wire.py", "tests/property/test_session_wire.py"),
    *("tests/node/test_trace.py", "tests/node/test_connection.py", "tests/conformance/test_qos.py"),
)


@pytest.mark.timeout(600)
def test_the_compiled_core_passes_the_tests_of_the_core(packages: Packages, tmp_path: Path) -> None:
    run(installed(packages.compiled, tmp_path / "venv"), world(packages.sdist, tmp_path / "world"), _TESTS)
