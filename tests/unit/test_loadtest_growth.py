"""How cost grows: the axes, how clients are spread, and what is told of a run."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from broker.codec.encode import encode
from broker.codec.packets import V5, Connack, Suback
from loadtest import growth
from loadtest.client import LoadError
from loadtest.growth import axes, holding, page, plots, redis_counts, spread, table
from loadtest.result import Result
from loadtest.summary import rows
from tests.kit.load_results import report, result

[NODES] = [axis for axis in axes(100) if axis.name == "nodes"]


def _point(series: str, x: int, rate: float, **each: float) -> Result:
    settings: dict[str, object] = {"axis": "nodes", "series": series, "x": x, "each": each}
    return result(f"nodes/{series}/{x}", rate=rate, cpu=1e6 / rate, settings=settings)


def test_axes_reach_as_far_as_they_are_let() -> None:
    assert max(point.x for axis in axes(10**6) for point in axis.points) == 262_144
    assert all(point.x <= 100 for axis in axes(100) for point in axis.points)
    assert {axis.name: sorted({point.x for point in axis.points}) for axis in axes(1000)}["subscribers"] == [
        1,
        10,
        100,
        1000,
    ]


def test_what_is_on_its_way_is_bounded() -> None:
    for axis in axes(10**6):
        for point in axis.points:
            scenario = point.scenario
            if axis.name == "payload":
                assert scenario.cap >= 2
                assert scenario.cap * scenario.publishers * scenario.size <= growth.IN_FLIGHT_BYTES


@pytest.mark.parametrize("count", [1, 2, 3])
def test_pairs_are_spread_over_all_pairs_of_nodes(count: int) -> None:
    nodes = [("h", number) for number in range(count)]
    publish, subscribe = spread(nodes)
    met = Counter((publish[i % len(publish)], subscribe[i % len(subscribe)]) for i in range(count * count * 5))
    assert set(met.values()) == {5}
    assert len(met) == count * count


def test_a_table_tells_of_the_parts() -> None:
    found = rows([_point("QoS 0", 1, 1000.0, redis=0.5), _point("QoS 0", 2, 2000.0, redis=0.25, other=2.0)])
    head, lines = table(NODES, found)
    assert head == ["load", "nodes", "messages/s", "CPU us/message", "redis/message", "other/message", "faults"]
    assert lines == [
        ["QoS 0", "1", "1,000", "1,000.00", "0.5", "-", "none"],
        ["QoS 0", "2", "2,000", "500.00", "0.25", "2", "none"],
    ]


def test_plots_have_a_line_for_each_load() -> None:
    found = rows([_point("QoS 0", 1, 1000.0), _point("QoS 1", 1, 500.0), _point("QoS 0", 2, 1500.0)])
    made = plots(NODES, found)
    assert sorted(made) == ["growth-nodes-cpu.svg", "growth-nodes-rate.svg"]
    assert [list(each.points) for each in made["growth-nodes-rate.svg"].series] == [[(1, 1000), (2, 1500)], [(1, 500)]]


def test_recorded_runs_are_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = report(_point("QoS 0", 1, 1000.0), _point("QoS 0", 2, 1500.0))
    made.write(tmp_path / "g.json")
    assert (
        growth.main(["--from", str(tmp_path / "g.json"), "--svg", str(tmp_path), "--html", str(tmp_path / "g.html")])
        == 0
    )
    assert "**Nodes on one Redis" in capsys.readouterr().out
    assert "Nodes on one Redis" in page([NODES], made)
    drawing = (tmp_path / "growth-nodes-cpu.svg").read_text("utf-8")
    assert ElementTree.fromstring(drawing).get("role") == "img"


def _answering(*answers: bytes) -> tuple[socket.socket, threading.Thread]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server.accept()[0] as client:
            for answer in answers:
                client.recv(1 << 20)
                client.sendall(answer)
            client.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return server, thread


def test_filters_are_held_until_the_end() -> None:
    server, thread = _answering(encode(Connack(False, 0), V5), encode(Suback(1, (0, 0, 0)), V5))
    with server, holding(server.getsockname(), 3, 1, wildcards=True):
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()


def test_a_holder_that_is_refused_says_so() -> None:
    server, thread = _answering(b"\xe0\x01\x87")
    with server, pytest.raises(LoadError, match="0xe0"), holding(server.getsockname(), 1, 1, wildcards=False):
        pass
    thread.join(10)


def test_counts_of_a_redis() -> None:
    told = b"total_commands_processed:7\r\ntotal_net_input_bytes:10\r\ntotal_net_output_bytes:5\r\n"
    server, thread = _answering(b"$%d\r\n%s\r\n" % (len(told), told))
    with server:
        assert redis_counts(server.getsockname()) == {"Redis commands": 7, "Redis bytes": 15}
    thread.join(10)
