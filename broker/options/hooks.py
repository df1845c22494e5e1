"""Python hooks: what of other packages is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from broker.options import option
from broker.options.backends import Named
from broker.values import Choice, Duration, Integer, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook(Named):
    """An entry point."""

    TYPE: ClassVar[str] = "hook"
    HELP: ClassVar[str] = "A Python package's entry point in the group rookery.hooks, or MODULE:ATTRIBUTE."

    # fmt: off
    target: str = option(Text(), None, "Name of the entry point, or MODULE:ATTRIBUTE.")
    timeout_s: float = option(Duration(), "1s", "Time for one call.", at_least=0.01, at_most=60)
    on_error: str = option(Choice("deny", "ignore"), "deny",
        "What a call that fails or takes too long counts as, where something is decided.")
    queue: int = option(Integer(), "1000", "Deliveries and disconnects that wait to be told; further ones are dropped.",
        at_least=1, at_most=1_000_000)
    refresh_s: float = option(Duration(), "60s", "How long an answer of authorize counts.", at_least=0.1, at_most=86400)
    options: str = option(Text(), "", "Text that the hook is made with; never shown.", secret=True)
    # fmt: on

    @property
    def label(self) -> str:
        return self.name or self.target
