"""What views reach for: the parts that ``create_app`` was given, and the limits of a query."""

from __future__ import annotations

from typing import Any

from flask import current_app

from api.directory import Directory
from api.latest import Latest
from api.settings import Settings
from clickhouse.queries.samples import Filter


def settings() -> Settings:
    found: Settings = current_app.extensions["settings"]
    return found


def store() -> Any:
    return current_app.extensions["store"]


def directory() -> Directory:
    found: Directory = current_app.extensions["directory"]
    return found


def latest() -> Latest:
    found: Latest = current_app.extensions["latest"]
    return found


def query_limits(wanted: Filter | None = None, *, seconds: float | None = None) -> dict[str, Any]:
    """Settings that go with a query: how long it may run and how many rows it may read before it is refused.

    What is asked of one GPU is read by one thread: a second one costs more than it saves.
    """
    configured = settings()
    limits = {
        "max_execution_time": max(1, round(seconds or configured.query_seconds_max)),
        "max_rows_to_read": configured.scan_rows_max,
        "read_overflow_mode": "throw",
    }
    if wanted is not None and len(wanted.gpus) == 1:
        limits["max_threads"] = 1
    return limits
