"""What the API knows of the pipeline's parts: asked for every two seconds by one thread, read by everybody else.

Health checks and ``/api/v1/stats`` read the last findings, so that a store or broker that hangs never makes a probe
hang with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from api.times import format_ms
from clickhouse.errors import StoreError
from telemetry.health import Check

log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 2.0
STALE_SECONDS: Final = 15.0
"""A finding older than this means that the part hangs."""
LAG_DEGRADED_SECONDS: Final = 60.0
EVENTS_KEPT: Final = 1000


@dataclass(frozen=True)
class Finding:
    """What was seen of one part."""

    at: float = 0.0
    """``time.monotonic()`` of the look; 0 = never."""
    value: dict[str, Any] | None = None
    """What it said; None if it was away."""
    error: str = ""


@dataclass
class Monitor:
    """Looks at store and broker. ``store_stats`` may raise StoreError, and both may block for seconds."""

    store_stats: Callable[[], dict[str, Any]]
    broker_stats: Callable[[], dict[str, Any] | None]
    topic: str
    group: str
    clock: Callable[[], float] = time.monotonic
    store: Finding = Finding()
    broker: Finding = Finding()
    store_before: Finding = Finding()
    broker_before: Finding = Finding()
    """The looks before: rates are what changed between two."""
    events: deque[tuple[int, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    """(time in ms, event) of parts that went away or came back, oldest first."""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Look now and then every two seconds, one thread a part so that neither delays the other."""
        for name, look in (("store", self.look_at_store), ("broker", self.look_at_broker)):
            thread = threading.Thread(target=self._run, args=(look,), name=f"monitor-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(1.0)

    def _run(self, look: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                look()
            except Exception:
                log.exception("a look at a part of the pipeline failed")
            self._stopping.wait(INTERVAL_SECONDS)

    def look_at_store(self) -> None:
        """Ask the store once."""
        before = self.store
        try:
            self.store = Finding(self.clock(), self.store_stats())
        except StoreError as error:
            self.store = Finding(self.clock(), None, str(error))
        self.store_before = before
        self._tell_change(before, self.store, "store")

    def look_at_broker(self) -> None:
        """Ask the broker once."""
        before = self.broker
        found = self.broker_stats()
        self.broker = Finding(self.clock(), found, "" if found is not None else "the broker's /stats does not answer")
        self.broker_before = before
        self._tell_change(before, self.broker, "broker")

    def topic_stats(self) -> dict[str, Any]:
        """The broker's numbers of the API's topic; empty if unknown."""
        topics = (self.broker.value or {}).get("topics", {})
        return topics.get(self.topic, {}) if isinstance(topics, dict) else {}

    def group_stats(self) -> dict[str, Any]:
        """The broker's numbers of the collectors' group; empty if unknown."""
        groups = self.topic_stats().get("groups", {})
        return groups.get(self.group, {}) if isinstance(groups, dict) else {}

    def numbers(self) -> dict[str, float]:
        """The pipeline's own numbers, for alert rules; nothing while the broker is away."""
        if self.broker.value is None:
            return {}
        topic, group = self.topic_stats(), self.group_stats()
        return {"dead": float(topic.get("dead") or 0), "lag_seconds": float(group.get("oldest_age_seconds") or 0)}

    def check_store(self) -> Check:
        """Without the store nothing can be read: unhealthy and unready."""
        if not self.store.at:
            return Check("degraded", "the store was not asked yet", ready=False)
        if self.clock() - self.store.at > STALE_SECONDS:
            return Check("unhealthy", "the store does not answer in time", ready=False)
        if self.store.value is None:
            return Check("unhealthy", self.store.error, ready=False)
        return Check()

    def check_broker(self) -> Check:
        """Without the broker nothing new arrives, but everything can be read: degraded and ready."""
        if self.broker.value is None or self.clock() - self.broker.at > STALE_SECONDS:
            return Check("degraded", self.broker.error or "the broker was not asked yet")
        return Check()

    def check_collectors(self) -> Check:
        """Collectors are judged by what they leave waiting at the broker."""
        if self.broker.value is None:
            return Check("degraded", "unknown while the broker is away")
        if not self.topic_stats():
            return Check("healthy", "nothing was sent yet")
        group = self.group_stats()
        members, lag = group.get("members", 0), float(group.get("oldest_age_seconds") or 0)
        if not members:
            return Check("degraded", "no collector is connected to the broker")
        if lag > LAG_DEGRADED_SECONDS:
            return Check("degraded", f"rows wait for {lag:.0f} s at the broker: collectors or store are too slow")
        return Check()

    def _tell_change(self, before: Finding, after: Finding, part: str) -> None:
        if after.value is not None and before.value is None:
            log.info("a part of the pipeline answers", extra={"part": part})
            if before.at:
                self._remember(part, "info", f"the {part} answers again", "")
        elif after.value is None and (before.value is not None or not before.at):
            log.warning("a part of the pipeline is away", extra={"part": part, "reason": after.error})
            self._remember(
                part, "critical", f"the {part} is away: {after.error}", f"start the {part}; its log says why it ended"
            )

    def _remember(self, part: str, severity: str, message: str, action: str) -> None:
        now_ms = int(time.time() * 1000)
        event = {
            "timestamp": format_ms(now_ms),
            "kind": "pipeline",
            "severity": severity,
            "gpu_id": "",
            "hostname": "",
            "code": None,
            "message": message,
            "action": action,
        }
        self.events.append((now_ms, event))
