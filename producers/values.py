"""Numbers and times as text: what is one, for every path of the reader alike.

The vectorised path and the careful one must agree to the row, so the grammar is here and not in a library:
Python's ``float`` takes ``1_000``, others refuse ``+5``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

EMPTY_VALUES: Final = frozenset(
    ("", "NA", "N/A", "n/a", "null", "NULL", "None", "-", "[N/A]", "[Not Supported]", "[Unknown Error]")
)
"""Spellings of "no value": counted apart from what is meant as a number and is none."""

_NUMBER: Final = re.compile(
    r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf(?:inity)?|nan)", re.IGNORECASE | re.ASCII
)
# nvidia-smi without "nounits" writes the unit behind the number.
_UNIT_BEHIND: Final = re.compile(r"\s+(?:%|MiB|MHz|W|C)$")
_EPOCH: Final = re.compile(r"\d{9,19}(?:\.\d+)?", re.ASCII)


def parse_number(text: str) -> float | None:
    """The number ``text`` is, None if it is none. A unit as nvidia-smi writes it is passed over."""
    text = text.strip(" \t\r")
    if _NUMBER.fullmatch(text):
        return float(text)
    bare = _UNIT_BEHIND.sub("", text)
    return float(bare) if bare != text and _NUMBER.fullmatch(bare) else None


def parse_time_ns(text: str) -> int | None:
    """Nanoseconds since the epoch (UTC), None if ``text`` is no time.

    ISO 8601 (a time without a zone is UTC), ``2024/01/15 10:30:00.000`` of nvidia-smi, and unix time in seconds,
    milliseconds, microseconds or nanoseconds, told apart by their size.
    """
    text = text.strip(" \t\r")
    if _EPOCH.fullmatch(text):
        whole, _, fraction = text.partition(".")
        # 1e11 s is the year 5138: a larger number counts a smaller unit.
        digits = len(whole)
        per_unit = 10**9 if digits <= 11 else 10**6 if digits <= 14 else 10**3 if digits <= 17 else 1
        nanoseconds = int(whole) * per_unit
        if fraction:
            nanoseconds += int(int(fraction[:9].ljust(9, "0")) * per_unit // 10**9)
        return nanoseconds if nanoseconds < 2**63 else None
    if re.match(r"\d{4}/\d{2}/\d{2} ", text):
        text = text.replace("/", "-", 2)
    if "." in text:
        # datetime keeps microseconds and refuses other than 3 or 6 digits nowhere: pad or cut to 9 and add the rest.
        found = re.fullmatch(r"(.*?)\.(\d{1,9})\d*(.*)", text, re.ASCII | re.DOTALL)
        if found is None:
            return None
        text, fraction_ns = found[1] + found[3], int(found[2].ljust(9, "0"))
    else:
        fraction_ns = 0
    if len(text) < 10:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _SECOND
    except (ValueError, OverflowError):
        return None
    nanoseconds = seconds * 10**9 + fraction_ns
    return nanoseconds if -(2**63) <= nanoseconds < 2**63 else None


_SECOND: Final = datetime(1970, 1, 1, 0, 0, 1) - datetime(1970, 1, 1)
