"""The writer thread: hand-overs of the core into the topics' logs, many to a commit (group commit).

While one commit waits for its fdatasync, the loop goes on and hands over more; all of that is the next commit. The
busier the broker, the larger the commits: the cost of a sync is shared by everything that arrived during the last one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from zmqbroker.core import events as ev
from zmqbroker.core.effects import Hand
from zmqbroker.core.topic import KIND_CONTROL
from zmqbroker.errors import DiskFull, LogStopped
from zmqbroker.storage.interface import KIND_DATA, Append, TopicLog

_log = logging.getLogger(__name__)

_DISK_FULL_RETRY_S = 0.5
_LAZY_SYNC_S = 0.05
"""Policy ``never``: how often what consumers wait for is synced all the same (R9)."""
_FREE_ENTRIES = (b'["a"', b'["c"')
"""Journal entries about ranges that are durable already: they may overtake data that waits for disk space (R11)."""


class LogWriter(threading.Thread):
    """Writes and syncs. ``post`` takes the resulting events; it must wake the loop."""

    def __init__(self, post: Callable[[list[tuple]], None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name="log-writer", daemon=True)
        self._post = post
        self._clock = clock
        self._hands: deque[Hand] = deque()
        self._wake = threading.Event()
        self._logs: dict[str, tuple[TopicLog, str, float]] = {}
        self._unsynced: dict[str, tuple[int, float]] = {}
        self._stopped: set[str] = set()
        self._full: set[str] = set()
        self._blocked: dict[str, tuple[list[Hand], float]] = {}
        """Topics whose disk is full: hands that wait in order, and when to try again."""
        self._calls: deque[Callable[[], None]] = deque()
        self._ending = False
        self.commits = 0
        self.commit_bytes = 0
        self.sync_seconds = 0.0
        self.on_sync: Callable[[float], None] = lambda seconds: None

    def add(self, topic: str, log: TopicLog, fsync: str, interval_s: float) -> None:
        """A topic's log is open and recovered: from now on this thread writes it."""
        self._logs[topic] = (log, fsync, interval_s if fsync == "interval" else _LAZY_SYNC_S)

    def remove(self, topic: str) -> None:
        """A topic is deleted; one of the same name may come after it."""
        self._logs.pop(topic, None)
        self._unsynced.pop(topic, None)
        self._blocked.pop(topic, None)
        self._stopped.discard(topic)
        self._full.discard(topic)

    def hand(self, hands: list[Hand]) -> None:
        self._hands.extend(hands)
        self._wake.set()

    def call(self, what: Callable[[], None]) -> None:
        """Run ``what`` in this thread, between commits: drops and closes must not meet a commit."""
        self._calls.append(what)
        self._wake.set()

    def end(self, timeout_s: float) -> None:
        """Write what was handed over, then stop."""
        self._ending = True
        self._wake.set()
        self.join(timeout_s)

    @property
    def backlog(self) -> int:
        return len(self._hands)

    def run(self) -> None:
        wait_s: float | None = 0.0
        while True:
            if not self._hands and not self._calls and not self._ending:
                self._wake.wait(wait_s)
            self._wake.clear()
            ending = self._ending and not self._hands
            wait_s = self.step()
            if ending:
                self.finish()
                return

    def step(self) -> float | None:
        """Do what can be done now; seconds until there is more to do unless woken (None: nothing).

        The whole of this thread's work, so that a simulation can be the thread.
        """
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                _log.exception("maintenance failed")
        by_topic: dict[str, list[Hand]] = {}
        while self._hands:
            hand = self._hands.popleft()
            by_topic.setdefault(hand.topic, []).append(hand)
        if self._blocked:
            self._join_blocked(by_topic)
        for topic, hands in by_topic.items():
            try:
                self._write(topic, hands)
            except LogStopped as e:
                self._stop_topic(topic, str(e))
            except Exception as e:
                _log.exception("the log of topic %s failed", topic)
                self._stop_topic(topic, f"{type(e).__name__}: {e}")
        self._sync_lazily()
        due = [retry_s - self._clock() for _, retry_s in self._blocked.values()]
        if (sync := self._sync_due_in()) is not None:
            due.append(sync)
        return max(0.001, min(due)) if due else None

    def finish(self) -> None:
        """The last step: sync what policies left unsynced. What waits for disk space stays unwritten, and unacked."""
        self._sync_lazily(force=True)
        for topic in list(self._blocked):
            self._stop_topic(topic, "the disk was full at the end")

    def _join_blocked(self, by_topic: dict[str, list[Hand]]) -> None:
        """Put what has come behind what waits for disk space, and retry where it is time to."""
        now = self._clock()
        for topic, (waiting, retry_s) in list(self._blocked.items()):
            arrived = by_topic.get(topic)
            if now >= retry_s:
                by_topic[topic] = waiting + arrived if arrived else waiting
                del self._blocked[topic]
            elif arrived:
                del by_topic[topic]
                waiting += arrived
                try:
                    self._write_free_entries(self._logs[topic][0], waiting)
                except LogStopped as e:
                    self._stop_topic(topic, str(e))

    def _stop_topic(self, topic: str, reason: str) -> None:
        if topic not in self._stopped:
            self._stopped.add(topic)
            self._blocked.pop(topic, None)
            _log.error("topic stopped", extra={"topic": topic, "reason": reason})
            self._post([(ev.LOG_STOPPED, topic, reason)])

    def _write(self, topic: str, hands: list[Hand]) -> None:
        if topic in self._stopped or topic not in self._logs:  # the latter: it was deleted meanwhile
            return
        log, fsync, _ = self._logs[topic]
        while hands:
            # A hand with a snapshot begins a new segment, so it begins a commit of its own.
            count = 1
            while count < len(hands) and hands[count].snapshot is None:
                count += 1
            try:
                self._commit(topic, log, fsync, hands[:count])
            except DiskFull as e:
                self._block(topic, log, hands, str(e))
                return
            hands = hands[count:]
        if topic in self._full:
            self._full.discard(topic)
            _log.warning("there is disk space again", extra={"topic": topic})
            stats = log.stats()
            self._post([(ev.DISK, topic, stats.bytes, stats.first_offsets, False, log.wants_roll)])

    def _block(self, topic: str, log: TopicLog, hands: list[Hand], reason: str) -> None:
        """No space: these hands wait, in order. What comes after them waits behind them; other topics go on."""
        if topic not in self._full:
            self._full.add(topic)
            _log.error("disk full: producers wait, acks go on", extra={"topic": topic, "reason": reason})
            stats = log.stats()
            self._post([(ev.DISK, topic, stats.bytes, stats.first_offsets, True, False)])
        # A snapshot only shortens recovery. Without it acks may overtake the data; the log will ask for another.
        hands = [hand._replace(snapshot=None) for hand in hands]
        self._blocked[topic] = (hands, self._clock() + _DISK_FULL_RETRY_S)
        self._write_free_entries(log, hands)

    def _commit(self, topic: str, log: TopicLog, fsync: str, hands: list[Hand]) -> None:
        appends = hands[0].appends if len(hands) == 1 else [a for h in hands for a in h.appends]
        done = log.commit(appends, sync=fsync == "commit", roll_snapshot=hands[0].snapshot)
        self.commits += 1
        self.commit_bytes += done.bytes_written
        bad: dict[int, list[int]] = {}
        if done.bad:
            start = 0
            for hand in hands:
                mine = [i - start for i in done.bad if start <= i < start + len(hand.appends)]
                if mine:
                    bad[hand.commit_id] = mine
                start += len(hand.appends)
        if _log.isEnabledFor(logging.DEBUG):
            _log_batches(topic, appends, done.bad)
        synced = fsync == "commit"
        if synced:
            self.sync_seconds += done.sync_seconds
            self.on_sync(done.sync_seconds)
        else:
            first = self._unsynced.get(topic, (0, self._clock()))[1]
            self._unsynced[topic] = (hands[-1].commit_id, first)
        out: list[tuple] = [(ev.COMMITTED, topic, hands[-1].commit_id, bad, synced)]
        if log.wants_roll or hands[0].snapshot is not None:
            stats = log.stats()
            out.append((ev.DISK, topic, stats.bytes, stats.first_offsets, False, log.wants_roll))
        self._post(out)

    @staticmethod
    def _write_free_entries(log: TopicLog, hands: list[Hand]) -> None:
        """Let acks and counts go ahead of the data that finds no space (R11).

        They are taken out of their hands in place: the core counts bad records by their index in the same lists.
        """
        free = [a for hand in hands for a in hand.appends if a[0] == KIND_CONTROL and a[9].startswith(_FREE_ENTRIES)]
        if not free:
            return
        try:
            log.commit(free, sync=True)
        except DiskFull:
            return
        for hand in hands:
            hand.appends[:] = [a for a in hand.appends if not (a[0] == KIND_CONTROL and a[9].startswith(_FREE_ENTRIES))]

    def _sync_due_in(self) -> float | None:
        if not self._unsynced:
            return None
        now = self._clock()
        return max(
            0.001, min(first + self._logs[t][2] - now for t, (_, first) in self._unsynced.items() if t in self._logs)
        )

    def _sync_lazily(self, force: bool = False) -> None:
        now = self._clock()
        for topic, (commit_id, first) in list(self._unsynced.items()):
            if topic not in self._logs or topic in self._stopped:
                del self._unsynced[topic]
                continue
            log, _, interval_s = self._logs[topic]
            if force or now - first >= interval_s:
                del self._unsynced[topic]
                try:
                    seconds = log.sync()
                except LogStopped as e:
                    self._stop_topic(topic, str(e))
                    continue
                self.sync_seconds += seconds
                self.on_sync(seconds)
                self._post([(ev.COMMITTED, topic, commit_id, {}, True)])

    def maintain(self, topic: str, floors: list[int] | None, older_than_ms: int, keep_bytes: int | None) -> None:
        """Drop what every group is done with (``floors`` None: nothing), and tell the core how the disk stands."""
        self.call(lambda: self._maintain(topic, floors, older_than_ms, keep_bytes))

    def _maintain(self, topic: str, floors: list[int] | None, older_than_ms: int, keep_bytes: int | None) -> None:
        if topic not in self._logs or topic in self._stopped:
            return
        log = self._logs[topic][0]
        if floors is not None:
            dropped = log.drop_before(floors, older_than_ms, keep_bytes)
            if dropped.segments:
                _log.info(
                    "segments dropped", extra={"topic": topic, "segments": dropped.segments, "bytes": dropped.bytes}
                )
                if topic in self._blocked:
                    self._blocked[topic] = (self._blocked[topic][0], 0.0)
        stats = log.stats()
        self._post([(ev.DISK, topic, stats.bytes, stats.first_offsets, topic in self._full, log.wants_roll)])


def _log_batches(topic: str, appends: Sequence[Append], bad: Sequence[int]) -> None:
    """A line a batch, in this thread and at level debug alone (R29)."""
    for i, (kind, partition, offset, session, seq, _, rows, *_) in enumerate(appends):
        if kind == KIND_DATA:
            fields = {"topic": topic, "partition": partition, "offset": offset, "session": session, "seq": seq}
            _log.debug("batch damaged" if i in bad else "batch taken", extra={**fields, "rows": rows})
