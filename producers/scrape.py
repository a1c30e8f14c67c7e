"""Scraping dcgm-exporters: each address on a period, spread over it, from a few threads."""

from __future__ import annotations

import hashlib
import logging
import queue
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import urllib3

from producers.columns import Columns
from producers.exposition import ExpositionReader
from producers.identities import Identities

THREADS_MAX: Final = 16
BODY_BYTES_MAX: Final = 64 << 20
"""A larger answer is no exporter's: 10,000 series of a big node are about 4 MB."""


@dataclass(slots=True)
class Target:
    """One exporter."""

    url: str
    reader: ExpositionReader
    due: float
    """Clock time of the next scrape."""
    up: bool | None = None
    reason: str = ""
    scrapes: int = 0
    failures: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    busy: bool = False


class ScrapeSource:
    """A live source: :meth:`collect` gives the rows of the scrapes that have come back.

    Each target has its place in the period by its address, so that a thousand exporters are not asked in one instant;
    ``jitter`` (a share of the period) moves every scrape a little around it.
    """

    def __init__(
        self,
        urls: Iterable[str],
        identities: Identities,
        *,
        interval_s: float,
        timeout_s: float,
        log: logging.Logger,
        jitter: float = 0.05,
        exporter_version: str | None = None,
        stale_after_s: float = 300.0,
        labels: Iterable[tuple[str, str]] = (),
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
        rng: random.Random | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._jitter_s = jitter * interval_s
        self._clock = clock
        self._clock_ns = clock_ns
        self._log = log
        self._random = rng or random.Random()
        self._identities = identities
        self._answers: queue.SimpleQueue[tuple[Target, int, float, str | None, str]] = queue.SimpleQueue()
        start = clock()
        self.targets = []
        for url in urls:
            host = urlsplit(url).hostname or ""
            reader = ExpositionReader(
                identities,
                host=host,
                exporter_version=exporter_version,
                stale_after_s=stale_after_s,
                labels=labels,
            )
            self.targets.append(Target(url, reader, start + self._place(url)))
        timeout = urllib3.Timeout(connect=min(timeout_s, 5.0), read=timeout_s)
        threads = min(THREADS_MAX, len(self.targets))
        self._http = urllib3.PoolManager(
            num_pools=max(10, len(self.targets)), maxsize=1, timeout=timeout, retries=False
        )
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="scrape")

    @property
    def up(self) -> int:
        """Targets whose last scrape succeeded."""
        return sum(target.up is True for target in self.targets)

    def collect(self, wait_s: float) -> list[Columns]:
        """Begin what is due, wait at most ``wait_s`` for answers, and give their rows."""
        now = self._clock()
        for target in self.targets:
            if target.due <= now and not target.busy:
                target.busy = True
                # From its place, not from now: a slow scrape does not shift the ones after it.
                missed = max(0, int((now - target.due) / self._interval_s))
                target.due += (missed + 1) * self._interval_s
                self._pool.submit(self._fetch, target)
        due = min((target.due for target in self.targets if not target.busy), default=now + wait_s)
        found = []
        block = min(wait_s, max(0.0, due - now))
        while True:
            try:
                answer = self._answers.get(timeout=block) if block > 0 else self._answers.get_nowait()
            except queue.Empty:
                return found
            block = 0.0
            columns = self._answered(*answer)
            if columns is not None:
                found.append(columns)

    def close(self) -> None:
        """Let the threads end; a scrape under way is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._http.clear()

    def _place(self, url: str) -> float:
        digest = hashlib.blake2b(url.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") / 2**32 * self._interval_s if len(url) else 0.0

    def _fetch(self, target: Target) -> None:
        if self._jitter_s:
            time.sleep(self._random.random() * self._jitter_s)
        started = self._clock()
        try:
            answer = self._http.request(
                "GET",
                target.url,
                headers={"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "gzip"},
                preload_content=False,
            )
            time_ns = self._clock_ns()
            body = answer.read(BODY_BYTES_MAX + 1, decode_content=True)
            answer.drain_conn()
            answer.release_conn()
            if answer.status != 200:
                self._answers.put((target, time_ns, started, None, f"HTTP {answer.status}"))
            elif len(body) > BODY_BYTES_MAX:
                self._answers.put((target, time_ns, started, None, f"an answer above {BODY_BYTES_MAX >> 20} MiB"))
            else:
                self._answers.put((target, time_ns, started, body.decode("utf-8", "replace"), ""))
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            self._answers.put((target, 0, started, None, " ".join(str(e).split())))

    def _answered(self, target: Target, time_ns: int, started: float, text: str | None, reason: str) -> Columns | None:
        target.busy = False
        target.scrapes += 1
        target.seconds = self._clock() - started
        if text is None:
            target.failures += 1
            if target.up is not False:
                self._log.warning("an exporter does not answer", extra={"url": target.url, "reason": reason})
            target.up, target.reason = False, reason
            return None
        if target.up is False:
            self._log.info("an exporter answers again", extra={"url": target.url})
        target.up, target.reason = True, ""
        if self._identities.full():
            self._identities.forget()
        scrape = target.reader.read(text, time_ns)
        for why, count in scrape.skipped.items():
            target.skipped[why] = target.skipped.get(why, 0) + count
        return scrape.columns
