"""Health: what a process says about itself, and the answers made of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

Status = Literal["healthy", "degraded", "unhealthy"]

SEVERITY: Final[dict[str, int]] = {"healthy": 0, "degraded": 1, "unhealthy": 2}


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    ``status`` is about quality of work, ``ready`` about whether to send work here, ``alive`` about whether only a
    restart can help. A dependency that is away makes a process unready, never dead: restarting it would not help.
    """

    status: Status = "healthy"
    reason: str = ""
    ready: bool = True
    alive: bool = True


HEALTHY: Final = Check()


class Health:
    """The checks of one process. A check reads fields and returns; it does no I/O and takes no contended lock."""

    def __init__(self, service: str, version: str, clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self._version = version
        self._clock = clock
        self._started = clock()
        self._checks: dict[str, Callable[[], Check]] = {}

    def add(self, name: str, check: Callable[[], Check]) -> None:
        """Ask ``check`` whenever health is asked for; a second one of that name replaces the first."""
        self._checks[name] = check

    def results(self) -> dict[str, Check]:
        """Every check's present outcome; one that raises is unhealthy and unready."""
        results = {}
        for name, check in list(self._checks.items()):
            try:
                results[name] = check()
            except Exception as error:
                results[name] = Check("unhealthy", f"the check itself failed: {error!r}", ready=False)
        return results

    @property
    def uptime_seconds(self) -> float:
        return max(0.0, self._clock() - self._started)

    def report(self) -> dict[str, Any]:
        """The body of ``/health``: the overall status is the worst of the checks'."""
        results = self.results()
        worst = max((result.status for result in results.values()), key=SEVERITY.__getitem__, default="healthy")
        return {
            "status": worst,
            "service": self._service,
            "version": self._version,
            "timestamp": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "uptime_seconds": round(self.uptime_seconds, 3),
            "checks": {name: {"status": r.status, "reason": r.reason} for name, r in results.items()},
        }

    def unready(self) -> dict[str, str]:
        """Reasons, by check, why no work should be sent here; empty when ready."""
        return {name: r.reason or r.status for name, r in self.results().items() if not (r.ready and r.alive)}

    def dead(self) -> dict[str, str]:
        """Reasons, by check, why only a restart can help; empty when alive."""
        return {name: r.reason or r.status for name, r in self.results().items() if not r.alive}
