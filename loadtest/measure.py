"""One run: a scenario against a running broker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from time import monotonic

from loadtest.engine import Engine
from loadtest.idle import held
from loadtest.processes import busy_s, cpu_s, resident_kb, tree
from loadtest.scenarios import Scenario
from loadtest.tally import Histogram
from loadtest.targets import Running

SETTLE_S = 0.3


@dataclass(frozen=True)
class Window:
    """How to measure: seconds of warm-up and of the measured window, protocol version, payload size."""

    warmup_s: float = 1.0
    seconds: float = 5.0
    version: int = 5
    payload_bytes: int = 64


def run(scenario: Scenario, running: Running, window: Window) -> dict[str, float | int | None]:
    """Return the figures of one run and its counts; LoadError if it cannot be made."""
    pids = tree(running.pids)
    empty_kb = resident_kb(pids)
    engine = Engine(running.address, window.version)
    try:
        with held(running.address, window.version, scenario.idle) as holders:
            engine.prepare(scenario, window.payload_bytes)
            engine.run_for(SETTLE_S)
            pids = tree(running.pids)
            engine.start()
            engine.run_for(window.warmup_s)
            mine = [os.getpid(), *holders]
            cpu, own, busy, began = cpu_s(pids), cpu_s(mine), busy_s(), monotonic()
            delivered, engine.latency = engine.delivered, Histogram()
            engine.run_for(window.seconds)
            took = monotonic() - began
            messages, latency = engine.delivered - delivered, engine.latency
            cpu, own, busy = cpu_s(pids) - cpu, cpu_s(mine) - own, busy_s() - busy
            connections = scenario.idle + scenario.publishers + scenario.subscribers
            used_kb = resident_kb(pids) - empty_kb
            tally = engine.drain()
            if not scenario.clean:
                engine.forget_sessions()
    finally:
        engine.close()
    known = bool(running.pids)
    return {
        "messages_per_s": messages / took if scenario.publishers else None,
        "cpu_us_per_message": cpu / messages * 1e6 if known and messages else None,
        "cpu_percent": cpu / took * 100 if known else None,
        "p50_ms": latency.percentile_ms(50),
        "p99_ms": latency.percentile_ms(99),
        "kb_per_connection": used_kb / connections if known and scenario.idle else None,
        "generator_cpu_percent": own / took * 100,
        "others_cpu_percent": max(busy - own - cpu, 0) / took * 100 if known else None,
        **tally.as_dict(),
    }
