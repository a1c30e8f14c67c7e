"""Places in a topic as people write them: earliest, latest, an offset, a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from telemetry.values import duration_seconds
from zmqbroker.admin.protocol import AdminError
from zmqbroker.storage.interface import TopicLog

OFFSETS_BELOW: Final = 1_000_000_000
"""A bare number below is an offset, from here on unix seconds (2001 and later)."""
_MILLISECONDS_FROM: Final = 100_000_000_000
_NOW: Final = re.compile(r"now(?:-(.+))?")


def positions(log: TopicLog, when: str, now_s: Callable[[], float]) -> list[int]:
    """An offset for each partition. Raises :class:`AdminError`."""
    stats = log.stats()
    if when == "earliest":
        return list(stats.first_offsets)
    if when == "latest":
        return list(stats.synced_offsets)
    offset = as_offset(when)
    if offset is not None:
        return [
            min(max(offset, first), end) for first, end in zip(stats.first_offsets, stats.synced_offsets, strict=True)
        ]
    time_ms = as_time_ms(when, now_s)
    return [log.find_time(partition, time_ms) for partition in range(len(stats.next_offsets))]


def as_offset(when: str) -> int | None:
    """The offset that ``when`` names, or None for anything else."""
    text = when.removeprefix("offset:")
    if not text.isdecimal():
        return None
    number = int(text)
    return number if number < OFFSETS_BELOW or text != when else None


def as_time_ms(when: str, now_s: Callable[[], float]) -> int:
    """Unix ms of ``now-1h``, RFC 3339 (UTC unless it says otherwise) or unix seconds. Raises :class:`AdminError`."""
    text = when.removeprefix("time:")
    relative = _NOW.fullmatch(text)
    try:
        if relative:
            return int((now_s() - (duration_seconds(relative[1]) if relative[1] else 0.0)) * 1000)
        number = float(text)
        if math.isfinite(number) and number >= 0:
            return int(number if number >= _MILLISECONDS_FROM else number * 1000)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return int(moment.timestamp() * 1000)
        except (ValueError, OverflowError):
            pass
    raise AdminError(
        "bad_argument",
        f"{when!r} is no place in a topic",
        "say earliest, latest, an offset, 2026-01-31T12:00:00Z, unix seconds or now-1h",
    )
