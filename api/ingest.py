"""What clients send as JSON, turned into batches: each item checked by itself, good ones packed, bad ones named.

An item is one sample: ``{"metric_name", "value", "timestamp"?, "gpu_id" | "uuid" | "hostname" + "gpu_index", …}``. The
same names as in the API's answers, so that what was read can be written back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from api.times import parse_time_ms
from producers.columns import Columns
from producers.identities import Identities
from telemetry.batch import ROWS_MAX, Device
from telemetry.catalogue import canonical

ITEMS_MAX: Final = 100_000
ERRORS_MAX: Final = 100
"""Errors that are spelled out; the rest are counted."""
TEXT_CHARS_MAX: Final = 1024

_DEVICE_FIELDS: Final = {
    "uuid": "uuid",
    "hostname": "hostname",
    "gpu_index": "gpu_index",
    "device": "device",
    "model_name": "model",
    "model": "model",
    "cluster": "cluster",
    "container": "container",
    "pod": "pod",
    "namespace": "namespace",
    "job": "job",
}


class ItemError(NamedTuple):
    """An item that gave no row."""

    index: int
    message: str


class Parsed(NamedTuple):
    """Items as rows; codes are those of ``identities``."""

    columns: Columns
    identities: Identities
    errors: list[ItemError]
    rejected: int


class BodyError(ValueError):
    """The body is no list of items at all; the message says where."""


def items_of(body: bytes, *, ndjson: bool) -> list[Any]:
    """The items of a body: a JSON array, one object, ``{"telemetry": [...]}``, or NDJSON with an item a line.

    A line of NDJSON that is no JSON becomes an item that fails by itself. Raises :class:`BodyError`.
    """
    if ndjson:
        items: list[Any] = []
        for line in body.split(b"\n"):
            if line.strip():
                try:
                    items.append(orjson.loads(line))
                except orjson.JSONDecodeError as error:
                    items.append(BodyError(f"the line is no JSON: {error}"))
    else:
        try:
            found = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BodyError(f"the body is no JSON: {error}") from None
        if isinstance(found, dict) and isinstance(found.get("telemetry"), list):
            found = found["telemetry"]
        items = found if isinstance(found, list) else [found]
    if not items:
        raise BodyError("the body holds no item")
    if len(items) > ITEMS_MAX:
        raise BodyError(f"{len(items)} items are more than {ITEMS_MAX}: send several requests, or upload a CSV")
    return items


def parse(items: Iterable[Any], *, clock: Callable[[], float] = time.time) -> Parsed:
    """Check every item; never raises for what an item holds."""
    identities = Identities()
    now_ms = int(clock() * 1000)
    devices: list[int] = []
    metrics: list[int] = []
    values: list[float] = []
    times: list[int] = []
    errors: list[ItemError] = []
    rejected = 0
    for index, item in enumerate(items):
        try:
            device, metric, value, ts_ns = _row(item, now_ms)
        except ValueError as error:
            rejected += 1
            if len(errors) < ERRORS_MAX:
                errors.append(ItemError(index, str(error)))
            continue
        devices.append(identities.device(device))
        metrics.append(identities.metric(metric))
        values.append(value)
        times.append(ts_ns)
    columns = Columns(
        np.array(devices, dtype=np.int32),
        np.array(metrics, dtype=np.int32),
        np.array(values, dtype=np.float64),
        np.array(times, dtype=np.int64),
    )
    return Parsed(columns, identities, errors, rejected)


def _row(item: Any, now_ms: int) -> tuple[Device, str, float, int]:
    if isinstance(item, BodyError):
        raise item
    if not isinstance(item, dict):
        raise ValueError("is no object")
    name = item.get("metric_name")
    if not isinstance(name, str) or not 0 < len(name) <= TEXT_CHARS_MAX:
        raise ValueError("metric_name: a name is needed")
    value = item.get("value")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("value: a number is needed")
    metric, factor = canonical(name, unit_hint=_text(item, "unit") or None)
    scaled = float(value) * factor
    if not math.isfinite(scaled):
        raise ValueError("value: is not finite")
    given = item.get("timestamp")
    if given is None:
        ts_ms = now_ms
    elif isinstance(given, (str, int, float)) and not isinstance(given, bool):
        try:
            ts_ms = parse_time_ms(str(given), now_ms=now_ms, up=False)
        except ValueError as error:
            raise ValueError(f"timestamp: {error}") from None
    else:
        raise ValueError("timestamp: RFC 3339 text or unix seconds are needed")
    return _device(item), metric, scaled, ts_ms * 1_000_000


def _device(item: dict[str, Any]) -> Device:
    fields = {target: _text(item, name) for name, target in _DEVICE_FIELDS.items() if item.get(name) is not None}
    gpu_id = _text(item, "gpu_id") or _text(item, "id")
    if gpu_id and not fields.get("uuid"):
        host, colon, index = gpu_id.rpartition(":")
        # An id as the API tells it: a uuid, hostname:index, or an index alone.
        if colon and index.isdigit():
            fields.setdefault("hostname", host)
            fields.setdefault("gpu_index", index)
        elif gpu_id.isdigit():
            fields.setdefault("gpu_index", gpu_id)
        else:
            fields["uuid"] = gpu_id
    labels = item.get("labels") or {}
    if not isinstance(labels, dict) or len(labels) > 64:
        raise ValueError("labels: an object with at most 64 texts is needed")
    pairs = tuple(sorted((_checked(key, "labels"), _text(labels, key)) for key in labels))
    device = Device(**fields, labels=pairs)
    if not device.gpu_id:
        raise ValueError("gpu_id: a GPU id, a uuid, or hostname and gpu_index are needed")
    return device


def _text(item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name}: a text is needed")
    return _checked(value, name)


def _checked(value: str, name: str) -> str:
    if len(value) > TEXT_CHARS_MAX or "\0" in value:
        raise ValueError(f"{name}: at most {TEXT_CHARS_MAX} characters, without NUL")
    return value


def parts(columns: Columns) -> Iterator[Columns]:
    """The rows in batches of at most ROWS_MAX."""
    for start in range(0, columns.rows, ROWS_MAX):
        yield columns.part(start, min(columns.rows, start + ROWS_MAX))


def error_documents(errors: Sequence[ItemError]) -> list[dict[str, Any]]:
    """Errors as the API tells them."""
    return [{"index": error.index, "message": error.message} for error in errors]
