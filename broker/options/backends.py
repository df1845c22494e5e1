"""Options that all backends share which are asked over the network."""

from __future__ import annotations

from dataclasses import dataclass

from broker.options import Options, option
from broker.values import Duration, Integer, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Options):
    """Something that other options refer to by name."""

    name: str = option(Text(), "", "Name in logs, metrics and listeners; by default the type.")

    @property
    def label(self) -> str:
        return self.name or self.TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote(Named):
    """Something that is asked over the network, by at most `pool` at a time."""

    timeout_s: float = option(Duration(), "5s", "Time for one answer, connecting included.", at_least=0.05, at_most=60)
    pool: int = option(Integer(), "8", "Questions at a time; further ones wait.", at_least=1, at_most=256)
