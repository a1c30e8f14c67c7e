"""What passes between the supervisor and its workers: plain data, pickled through a pipe."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from producers.fleet import FleetSpec
from producers.following import Following
from producers.pacing import TimestampPolicy
from producers.source import Source


class Position(NamedTuple):
    """The next batch of a lane that is not yet known to be durable."""

    pass_number: int = 0
    block: int = 0
    part: int = 0
    seq: int = 1


@dataclass(frozen=True, slots=True)
class LaneTask:
    """A run of blocks to publish in one session, from ``start`` on.

    The same task from the same position always makes the same batches, whichever process runs it: a batch that was
    sent before its worker died is sent again under its old (session, seq), and the broker knows it.
    """

    lane: int
    source: Source
    block_bytes: int
    batch_rows: int
    first: int
    last: int
    """Blocks [first, last); both 0 for a stream, which is read to its end."""
    session: int
    start: Position
    passes: int
    """How often the lane is played; 0: until stopped."""
    interval_s: float
    """A pass begins every so often; 0: at once."""
    began_ns: int
    """When the run began; passes are counted from here."""
    timestamps: TimestampPolicy
    fixed_now: bool
    """Rows of policy ``now`` all get the time at which their pass began: what a resumed run needs, where a batch made
    again must be the same batch."""
    following: Following | None = None
    """The file grows: at its end wait for more. Then ``Position.block`` is the offset of the next line."""

    @property
    def title(self) -> str:
        return self.source.name

    def again(self, report: Report | None) -> LaneTask | None:
        """The same task for another worker after this one's died: from the last durable position, in its session.

        None where the source cannot be read again.
        """
        if self.source.once:
            return None
        return self if report is None else replace(self, start=report.position, following=report.following)


@dataclass(frozen=True, slots=True)
class FleetTask:
    """A part of a simulated fleet to publish, tick after tick."""

    lane: int
    spec: FleetSpec
    batch_rows: int
    session: int
    began_ns: int
    ticks: int = 0
    """0: until stopped."""
    fast: bool = False
    """Ticks follow each other at once and rows carry simulated time from ``began_ns`` on; else ticks come in real
    time and rows carry the present one."""
    start: Position = field(default_factory=Position)

    @property
    def title(self) -> str:
        return "simulated fleet"

    def again(self, report: Report | None) -> FleetTask:
        """A new session: what the fleet does next is not what it did, and must not pass for it."""
        return replace(self, session=secrets.randbits(64), start=Position(report.position.pass_number if report else 0))


Task = LaneTask | FleetTask


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What all workers of a run share."""

    url: str
    topic: str
    rate: float
    """Rows a second, 0: no limit."""
    compression: str
    rejects: Path | None
    strict: bool
    drain_timeout_s: float
    ends_ns: int
    """Reading stops at this time of the wall clock; 0: never."""
    producer: str = "zmqbroker.client:Producer"
    """Where the producer class is; tests name their own."""
    log_level: str = "info"
    log_format: str = "auto"
    keys: object = None


@dataclass(slots=True)
class Report:
    """How far a worker is with its lane; numbers count from the lane's start in this worker."""

    lane: int
    position: Position
    lines: int = 0
    rows_read: int = 0
    rows_published: int = 0
    rows_acked: int = 0
    batches_published: int = 0
    batches_acked: int = 0
    bytes_read: int = 0
    passes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    pending_bytes: int = 0
    credit_wait_s: float = 0.0
    reconnects: int = 0
    possible_duplicates: int = 0
    connected: bool = False
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    following: Following | None = None
    """Of a followed file: what its next reader must know; told before anything that relies on it is published."""
    ended: bool = False
    """The worker is finished with the lane, one way or the other."""
    done: bool = False
    """The lane was read to its end and all of it is durable."""
    unacked: int = 0
    """Batches that were given up at the end of the drain."""


class Failure(NamedTuple):
    """A worker cannot go on and another one could not either: a bad source, a bad row under ``--strict``."""

    message: str
