"""One ingress pool of byte credit, shared by deficit round robin (R6).

Credit is absolute: a session may have sent ``granted_bytes`` in all since its WELCOME. What is granted and not yet
freed (acked, refused or given up) counts against the pool, so that memory and unsynced data stay bounded whatever
the number of producers.

Credit that was given cannot be taken back, so what lies *ahead* (granted, not yet used) is bounded apart, to half the
pool: else a thousand idle producers could hold all of it while one that has work gets none. Within that half every
session keeps a small floor ahead of what it sent, so that an agent that publishes once a second need not ask first; a
fair share of it, but little at the beginning, because the first to connect cannot know how many will follow.

What a session wants beyond (``wanted_bytes``, told in each PUBLISH and HEARTBEAT) it gets in turn. A turn is granted
whole or not at all: shared out in pieces, a hundred producers could each hold a part of a batch, and none could send.
Producers ask ahead for no more than a batch, a quantum or what they were lately served in 50 ms, so a turn is short
where many wait for theirs, and it is used at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from zmqbroker.core.session import Session

FIRST_GRANT_BYTES: Final = 4096


class CreditPool:
    """Grants credit to sessions; ``outstanding_bytes`` never passes ``pool_bytes``."""

    def __init__(self, pool_bytes: int, floor_bytes_max: int, floor_bytes_min: int = 1024) -> None:
        self.pool_bytes = pool_bytes
        self.floor_bytes_max = floor_bytes_max
        self.floor_bytes_min = floor_bytes_min
        self.outstanding_bytes = 0
        self.ahead_bytes = 0
        """Granted and not used yet, all sessions together: a part of what is outstanding."""
        self.sessions = 0
        self.starved = False
        """Somebody who is hungry could not be served, because the pool was given away."""
        self._hungry: deque[Session] = deque()
        self.changed: dict[int, Session] = {}
        """Sessions whose credit grew since the caller last cleared this; the ACK or a HEARTBEAT tells them."""

    @property
    def floor_bytes(self) -> int:
        """What each session may send ahead of asking: half the pool shared out, within bounds."""
        share = self.pool_bytes // (2 * max(1, self.sessions))
        return max(self.floor_bytes_min, min(self.floor_bytes_max, share))

    def join(self, session: Session, may_have: bool) -> None:
        """A new generation begins: credit counts from nothing, and begins with a little if it may have any."""
        session.granted_bytes = session.received_bytes = session.freed_bytes = session.received_mark = 0
        self.sessions += 1
        if may_have:
            self._grant_ahead(session, min(FIRST_GRANT_BYTES, self.floor_bytes))

    def leave(self, session: Session) -> None:
        """The conversation is over: what it held returns to the pool."""
        self.outstanding_bytes -= session.granted_bytes - session.freed_bytes
        self.ahead_bytes -= session.granted_bytes - session.received_bytes
        session.granted_bytes = session.received_bytes = session.freed_bytes = session.wanted_bytes = 0
        self.sessions -= 1
        self.changed.pop(session.id, None)

    def use(self, session: Session, size_bytes: int) -> bool:
        """The session sent ``size_bytes``; False, and nothing is counted, where that is above its credit."""
        if session.received_bytes + size_bytes > session.granted_bytes:
            return False
        session.received_bytes += size_bytes
        self.ahead_bytes -= size_bytes
        return True

    def want(self, session: Session, wanted_bytes: int) -> None:
        """The producer says how much it would have sent in all, had it the credit."""
        session.wanted_bytes = wanted_bytes
        if wanted_bytes > session.granted_bytes and not session.hungry:
            session.hungry = True
            self._hungry.append(session)

    def free(self, session: Session, size_bytes: int) -> None:
        """``size_bytes`` of what the session sent are durable or were refused."""
        size_bytes = min(size_bytes, session.received_bytes - session.freed_bytes)
        session.freed_bytes += size_bytes
        self.outstanding_bytes -= size_bytes

    def share_out(self, may_have: Callable[[Session], bool]) -> None:
        """Serve the hungry in turn while the pool lasts; who ``may_have`` nothing now (its topic is full) waits."""
        hungry = self._hungry
        passed_over = 0
        self.starved = False
        while hungry and passed_over < len(hungry):
            session = hungry[0]
            missing = session.wanted_bytes - session.granted_bytes
            if session.conn is None or missing <= 0:
                hungry.popleft()
                session.hungry = False
                continue
            if not may_have(session):
                hungry.rotate(-1)
                passed_over += 1
                continue
            turn = min(missing, self.pool_bytes // 2)
            if self.outstanding_bytes + turn > self.pool_bytes:
                self.starved = True
                break
            passed_over = 0
            hungry.popleft()
            self._grant(session, turn)
            session.hungry = missing > turn
            if session.hungry:
                hungry.append(session)

    def top_up(self, session: Session) -> None:
        """Keep the floor ahead of what the session has sent (call after it was acked)."""
        ahead = session.granted_bytes - session.received_bytes
        floor = self.floor_bytes
        if ahead < floor // 2:
            self._grant_ahead(session, floor - ahead)

    def _grant_ahead(self, session: Session, size_bytes: int) -> None:
        room = min(self.pool_bytes // 2 - self.ahead_bytes, self.pool_bytes - self.outstanding_bytes)
        if size_bytes <= room:
            self._grant(session, size_bytes)

    def _grant(self, session: Session, size_bytes: int) -> None:
        session.granted_bytes += size_bytes
        self.outstanding_bytes += size_bytes
        self.ahead_bytes += size_bytes
        self.changed[session.id] = session
