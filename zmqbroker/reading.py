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
            try:
                if isinstance(what, Read):
                    chunk = self._logs[what.topic].read(what.partition, what.first, what.last)
                    self._post([(ev.READ, what, chunk.records.tobytes(), bytes(chunk.body))])
                elif isinstance(what, CutAsk):
                    cut = self._logs[what.topic].cut(
                        what.partition, what.first, what.end, what.max_rows, what.max_bytes
                    )
                    self._post([(ev.CUT, what, cut.last, cut.rows, cut.bytes)])
                elif callable(what):
                    what()
                else:
                    self._post([self._open(*what)])
            except BrokerError as e:
                _log.error("cannot read the log", extra={"what": str(what), "reason": str(e)})
            except Exception:
                _log.exception("the log reader failed on %s", what)

    def _open(self, name: str, config: TopicConfig) -> tuple:
        try:
            return self._open_topic(name, config)
        except (BrokerError, OSError) as e:
            _log.error("cannot open the topic", extra={"topic": name, "reason": str(e)})
            return (ev.OPEN_FAILED, name, str(e))
