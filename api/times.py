"""Times as people and scripts write them, and as the store keeps them (milliseconds since the epoch, UTC).

Three ways in: RFC 3339 (``2025-07-18T20:42:34.5Z``, an offset, or none which means UTC), unix seconds
(``1752871354`` or ``1752871354.25``; 12 digits or more are milliseconds), and relative to the present (``now``,
``now-1h``, ``now-1d12h``). One way out: RFC 3339 in UTC with milliseconds.

Bounds are inclusive and exact: a start between two milliseconds moves up to the next, an end moves down.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import marshmallow as ma
import numpy as np

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MS_MAX: Final = 4_102_444_800_000
"""2100-01-01: later times are mistakes (seconds taken for milliseconds), and DateTime64(3) goes that far everywhere."""

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_RELATIVE: Final = re.compile(r"now(?:\s*([+-])\s*((?:\d{1,9}(?:ms|[smhdw]))+))?$")
_TERM: Final = re.compile(r"(\d+)(ms|[smhdw])")
_DURATION: Final = re.compile(r"(?:\d{1,9}(?:ms|[smhdw]))+$")
_RFC3339: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?)?\s*(Z|z|[+-]\d{2}:?\d{2})?$"
)


TIME_PATTERN: Final = (
    r"^(now([+-]([0-9]{1,9}(ms|[smhdw]))+)?|[0-9]{1,10}(\.[0-9]{1,9})?|[0-9]{12,13}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|z|[+-][0-9]{2}:?[0-9]{2})?)?)$"
)
DURATION_PATTERN: Final = r"^(([0-9]{1,9}(ms|[smhdw]))+|[0-9]{1,8}(\.[0-9]{1,3})?)$"
"""What the OpenAPI document says of both."""


def parse_duration_ms(text: str) -> int:
    """``90s``, ``1h30m``, ``250ms`` or plain seconds, in milliseconds. Raises ``ValueError``."""
    if _DURATION.fullmatch(text):
        return sum(int(n) * _UNITS[unit] for n, unit in _TERM.findall(text))
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no duration: say 30s, 5m, 1h, 1d or plain seconds") from None
    if not 0 <= seconds < 1e9:
        raise ValueError(f"{text!r} is no duration within 0 and 1e9 seconds")
    return round(seconds * 1000)


def parse_time_ms(text: str, *, now_ms: int, up: bool) -> int:
    """Milliseconds since the epoch. ``up`` rounds finer times to the next millisecond, else they are cut.

    Raises ``ValueError`` with a message that shows the forms understood.
    """
    text = text.strip()
    relative = _RELATIVE.fullmatch(text)
    if relative:
        sign, span = relative.groups()
        found = now_ms + (parse_duration_ms(span) * (1 if sign == "+" else -1) if span else 0)
    else:
        found = _rfc3339_ms(text, up)
        if found is None:
            found = _unix_ms(text, up)
    if found is None:
        raise ValueError(f"{text!r} is no time: say 2025-07-18T20:42:34Z, unix seconds, or now-1h")
    if not 0 <= found <= TIME_MS_MAX:
        raise ValueError(f"{text!r} is not between 1970 and 2100")
    return found


def _rfc3339_ms(text: str, up: bool) -> int | None:
    # A "+" that was not escaped in a query string arrives as a blank.
    match = _RFC3339.fullmatch(re.sub(r" (\d{2}:\d{2})$", r"+\1", text) if text.count(":") >= 3 else text)
    if not match:
        return None
    day, minutes, seconds, fraction, offset = match.groups()
    zone = "+00:00" if offset in (None, "Z", "z") else offset
    try:
        whole = datetime.fromisoformat(f"{day}T{minutes or '00:00'}:{seconds or '00'}{zone}")
    except ValueError:
        return None
    nanoseconds = int((fraction or "0").ljust(9, "0"))
    ms = (whole - EPOCH) // timedelta(milliseconds=1) + nanoseconds // 1_000_000
    return ms + 1 if up and nanoseconds % 1_000_000 else ms


def _unix_ms(text: str, up: bool) -> int | None:
    if not re.fullmatch(r"\d{1,16}(\.\d{1,9})?", text):
        return None
    try:
        ms = Decimal(text) if len(text.partition(".")[0]) >= 12 else Decimal(text) * 1000
    except InvalidOperation:
        return None
    whole = int(ms)
    return whole + 1 if up and ms != whole else whole


def format_ms(ms: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return f"{(EPOCH + timedelta(milliseconds=int(ms))).isoformat(timespec='milliseconds')[:-6]}Z"


def format_many(ms: np.ndarray) -> list[str]:
    """The same for an int64 array."""
    return [f"{text}Z" for text in np.datetime_as_string(ms.astype("datetime64[ms]"), unit="ms").tolist()]


class Time(ma.fields.Field):
    """A query parameter that is a time; deserialises to milliseconds since the epoch."""

    def __init__(self, *, up: bool = False, clock: Callable[[], float] = time.time, **kwargs: Any) -> None:
        metadata = kwargs.setdefault("metadata", {})
        metadata.setdefault("type", "string")
        metadata["pattern"] = TIME_PATTERN
        metadata["description"] = (
            f"{metadata.get('description', 'Time')}: RFC 3339, unix seconds, or relative such as `now-1h`"
        )
        super().__init__(**kwargs)
        self._up = up
        self._clock = clock

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        try:
            return parse_time_ms(str(value), now_ms=int(self._clock() * 1000), up=self._up)
        except ValueError as error:
            raise ma.ValidationError(str(error)) from None


class Duration(ma.fields.Field):
    """A query parameter that is a span of time; deserialises to milliseconds."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = kwargs.setdefault("metadata", {})
        metadata.setdefault("type", "string")
        metadata["pattern"] = DURATION_PATTERN
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        try:
            found = parse_duration_ms(str(value))
        except ValueError as error:
            raise ma.ValidationError(str(error)) from None
        if found < 1:
            raise ma.ValidationError("must be longer than 0")
        return found
