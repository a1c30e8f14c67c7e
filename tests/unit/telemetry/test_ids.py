"""Ids that are unique."""

from __future__ import annotations

import re

from telemetry.ids import unique_id


def test_ids_are_32_hex_digits_and_none_comes_twice() -> None:
    ids = [unique_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
