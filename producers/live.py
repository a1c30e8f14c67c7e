"""What the commands with a live source share: the loop, its options made into objects, health and status."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, Protocol

from producers.batcher import Batcher
from producers.columns import Columns
from producers.identities import Identities
from producers.publisher import load_producer
from producers.sender import TURN_S, LiveSender
from producers.spool import Spool
from producers.status import StreamerStatus
from producers.supervising import UNACKED_EXIT_CODE, state_dir
from telemetry import tracing
from telemetry.health import Check
from telemetry.options import UsageError
from telemetry.service import Service
from zmqbroker.client.options import keys_from
from zmqbroker.errors import DirectoryLocked, NewerFormat


class LiveSource(Protocol):
    """What measures."""

    def collect(self, wait_s: float) -> list[Columns]:
        """Rows measured since the last call, each with its time; waits at most ``wait_s`` for them."""

    def close(self) -> None:
        """Stop measuring."""

    @property
    def up(self) -> int:
        """How many of its targets answer."""


def run_live(
    args: argparse.Namespace,
    service: Service,
    source: LiveSource,
    identities: Identities,
    *,
    name: str,
    targets: list[str],
    details: Callable[[], dict[str, Any]] = dict,
) -> int:
    """Measure and send until stopped or ``--duration`` is over; the exit code."""
    sender = LiveSender(
        producer_maker(args, name),
        Batcher(identities, args.compression),
        batch_rows=args.batch_rows,
        linger_s=args.linger,
        log=service.log,
        spool=open_spool(args),
        catch_up_share=args.catchup_share,
    )
    totals = sender.totals
    totals.targets = len(targets)
    status = StreamerStatus(service, name, lambda: totals, targets, started=time.time_ns())
    service.route("/api/v1/status", lambda: status.status() | details())
    service.check("targets", lambda: _targets(source.up, len(targets)))
    # Listening comes after the checks: nobody finds it ready before.
    with service:
        tracing.start(service.name)
        try:
            left = _measure(args, service, source, sender)
        finally:
            tracing.stop()
    if left:
        service.log.error("ended with batches that nobody has acknowledged", extra={"unacked_batches": left})
        return UNACKED_EXIT_CODE
    service.log.info("ended", extra={"rows": totals.rows_acked, "spooled_rows": totals.spooled_rows})
    return 0


def _measure(args: argparse.Namespace, service: Service, source: LiveSource, sender: LiveSender) -> int:
    ends = time.monotonic() + args.duration if args.duration else None
    try:
        while not service.stopping.is_set() and (ends is None or time.monotonic() < ends):
            for columns in source.collect(TURN_S):
                sender.add(columns)
            sender.totals.targets_up = source.up
            sender.pump()
    finally:
        source.close()
        left = sender.close(service.drain_seconds_left() * 0.8)
    return left


def producer_maker(args: argparse.Namespace, name: str) -> Callable[[int | None, int], Any]:
    """What makes producers by the options of a command."""
    producer = load_producer(args.producer)
    keys = keys_from(args)

    def make(session: int | None, first_seq: int) -> Any:
        return producer(
            args.connect, args.topic, session=session, first_seq=first_seq, name=f"streamer-{name}", keys=keys
        )

    return make


def open_spool(args: argparse.Namespace) -> Spool | None:
    """The spool of this state folder; None where ``--spool 0`` asks for none."""
    if not args.spool:
        return None
    directory = state_dir(args) / "spool"
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        return Spool(directory, args.spool)
    except (DirectoryLocked, NewerFormat) as e:
        raise UsageError(f"--state-dir: {e}") from None
    except OSError as e:
        raise UsageError(f"--state-dir: {directory} cannot be used: {e.strerror or e}") from None


def _targets(up: int, count: int) -> Check:
    if up == count:
        return Check("healthy")
    return Check("degraded", f"{count - up} of {count} do not answer")
