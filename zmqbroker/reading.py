"""The reader thread: everything slow over files that do not change any more (R29).

Ranges that left the tail cache, where a range ends on disk, topics to be opened. The loop asks and goes on; the
answers come back as events.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from zmqbroker.core import events as ev
from zmqbroker.core.config import TopicConfig
from zmqbroker.core.effects import CutAsk, Read
from zmqbroker.errors import BrokerError
from zmqbroker.storage.interface import TopicLog

_log = logging.getLogger(__name__)


class LogReader(threading.Thread):
    """Answers reads, cuts and opens in turn. ``post`` takes the resulting events; it must wake the loop."""

    def __init__(
        self,
        post: Callable[[list[tuple]], None],
        logs: dict[str, TopicLog],
        open_topic: Callable[[str, TopicConfig], tuple],
    ) -> None:
        super().__init__(name="log-reader", daemon=True)
        self._post = post
        self._logs = logs
        self._open_topic = open_topic
        self._asked: queue.SimpleQueue[Read | CutAsk | tuple[str, TopicConfig] | Callable[[], None] | None] = (
            queue.SimpleQueue()
        )

    def ask(self, what: Read | CutAsk | tuple[str, TopicConfig] | Callable[[], None]) -> None:
        self._asked.put(what)

    def end(self, timeout_s: float) -> None:
        self._asked.put(None)
        self.join(timeout_s)

    def run(self) -> None:
        while (what := self._asked.get()) is not None:
            if callable(what):
                try:
                    what()
                except Exception:
                    _log.exception("the log reader failed on %s", what)
            else:
                self._post(self.answer(what))

    def answer(self, what: Read | CutAsk | tuple[str, TopicConfig]) -> list[tuple]:
        """The events that answer a question; always at least one, so that nothing waits for ever."""
        try:
            if isinstance(what, Read):
                chunk = self._logs[what.topic].read(what.partition, what.first, what.last)
                return [(ev.READ, what, chunk.records.tobytes(), bytes(chunk.body), chunk.gaps)]
            if isinstance(what, CutAsk):
                cut = self._logs[what.topic].cut(what.partition, what.first, what.end, what.max_rows, what.max_bytes)
                return [(ev.CUT, what, cut.last, cut.rows, cut.bytes)]
            return [self._open_topic(*what)]
        except Exception as e:
            if isinstance(e, BrokerError | OSError):
                _log.error("the log reader failed", extra={"what": str(what), "reason": str(e)})
            else:
                _log.exception("the log reader failed on %s", what)
            if isinstance(what, Read | CutAsk):
                return [(ev.FAILED, what)]
            return [(ev.OPEN_FAILED, what[0], str(e))]
