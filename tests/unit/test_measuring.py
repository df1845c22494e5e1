"""What a node measures of itself: overload, ends of certificates, the catalogue."""

from __future__ import annotations

import datetime
import re
import subprocess
from pathlib import Path

import pytest

from broker.measuring.overload import CALM_LOOKS, CALM_S, LATE_LOOKS, LATE_S, Overload, memory_limit_bytes
from broker.measuring.process import process_samples
from broker.metrics_catalogue import CATALOGUE, COUNTER, FAMILIES, GAUGE, HISTOGRAM, MAX, MIN, Family
from broker.transport.expiry import expiry_of, expiry_of_der


def _overload() -> Overload:
    return Overload(lambda: 0, 800)


def test_a_loop_that_is_late_again_and_again_is_overloaded_until_it_is_calm() -> None:
    overload = _overload()
    for _ in range(LATE_LOOKS - 1):
        overload.note(LATE_S, 0)
    overload.note(0.0, 0)  # not in a row
    for _ in range(LATE_LOOKS - 1):
        overload.note(LATE_S, 0)
        assert overload.why == ""
    overload.note(2.0, 0)
    assert overload.why == "the event loop is late, by up to 2.0 s"
    assert overload.lag_s == 2.0
    for _ in range(CALM_LOOKS - 1):
        overload.note(0.0, 0)
    overload.note(CALM_S, 0)
    for _ in range(CALM_LOOKS - 1):
        overload.note(0.0, 0)
        assert overload.why
    overload.note(0.0, 0)
    assert overload.why == ""


def test_output_that_piles_up_is_overload_until_it_is_half_of_that() -> None:
    overload = _overload()
    overload.note(0.0, 200)
    assert overload.why == ""
    overload.note(0.0, 201)
    assert "wait for receivers" in overload.why
    overload.note(0.0, 101)
    assert overload.why
    overload.note(0.0, 100)
    assert overload.why == ""


def test_the_lag_is_that_of_the_last_looks() -> None:
    overload = _overload()
    overload.note(0.7, 0)
    for _ in range(29):
        overload.note(0.1, 0)
    assert overload.lag_s == 0.7
    overload.note(0.1, 0)
    assert overload.lag_s == 0.1


def test_there_is_a_limit_of_memory() -> None:
    assert memory_limit_bytes() > 1 << 20


def test_a_process_tells_of_itself() -> None:
    samples = process_samples()
    assert samples.keys() == {family.name for family in CATALOGUE if family.group == "Process"}
    resident, limit = samples["process_resident_memory_bytes"][""], samples["process_max_fds"][""]
    assert isinstance(resident, int) and resident > 1 << 20
    assert limit != 0


@pytest.mark.parametrize("days", [1, 400, 20_000])  # the year 2050 is written in another way
def test_the_end_of_a_certificate(tmp_path: Path, days: int) -> None:
    path = tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=x", "-days", str(days), "-keyout", str(tmp_path / "key.pem"), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    told = subprocess.run(
        ["openssl", "x509", "-in", str(path), "-noout", "-enddate"], check=True, capture_output=True, text=True
    ).stdout
    end = datetime.datetime.strptime(told.partition("=")[2].strip(), "%b %d %H:%M:%S %Y GMT")
    assert expiry_of(path) == end.replace(tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x03\x02\x01\x01", b"\x30\x82", b"\x30\x02\x30\x00", bytes(40)])
def test_what_is_no_certificate_has_no_end(data: bytes) -> None:
    with pytest.raises(ValueError, match="certificate"):
        expiry_of_der(data)


def test_a_file_without_a_certificate(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ValueError, match="no certificate"):
        expiry_of(path)


@pytest.mark.parametrize("family", CATALOGUE, ids=lambda family: family.name)
def test_names_follow_the_conventions(family: Family) -> None:
    assert re.fullmatch(r"(mqtt|process|python)_[a-z_]+", family.name)
    assert FAMILIES[family.name] is family, "declared twice"
    assert (family.kind == COUNTER) == family.name.endswith("_total")
    assert family.kind in (COUNTER, GAUGE, HISTOGRAM)
    assert bool(family.bounds) == (family.kind == HISTOGRAM)
    assert not re.search(r"_(ms|kb|mb|percent|count|sum|bucket)$", family.name)
    assert family.text.endswith(".")
    assert not {"client", "client_id", "user", "topic", "ip", "le", "job", "instance"} & set(family.labels)
    if family.cluster:
        assert family.over in (MAX, MIN)
