"""Sessions that wait for a message that is on its way, in case it is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from broker.session.session import Session

#: A message that was not told of for so long is looked for in the queue (GUARANTEES section 4, rule 11).
GAP_S = 1.0


class Gaps:
    """Looks at the sessions with a gap once a second, while there are any."""

    def __init__(self, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._start = start
        #: Where the gap of each session was at the last look.
        self._sessions: dict[Session, int] = {}

    def watch(self, session: Session) -> None:
        """Its newest message came before an older one."""
        if not self._sessions:
            self._start(self._look)
        self._sessions[session] = session.gap()

    async def _look(self) -> None:
        while self._sessions:
            await trio.sleep(GAP_S)
            for session, before in list(self._sessions.items()):
                gap = session.gap()
                if gap >= 0 and gap != before and not session.closed:
                    self._sessions[session] = gap
                    continue
                del self._sessions[session]
                if gap >= 0:
                    session.look()
