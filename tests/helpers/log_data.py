"""Appends for a log under test, and what must come back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from crc32c import crc32c

from zmqbroker.storage.interface import (
    CONTROL_PARTITION,
    CRC_BY_LOG,
    KIND_CONTROL,
    KIND_DATA,
    KIND_GAP,
    Append,
    Entry,
    TopicLog,
)

SESSION = 0xFEDC_BA98_7654_3210


def data(partition: int, offset: int, payload: bytes, *, rows: int = 10, time_ms: int | None = None) -> Append:
    time_ms = 1_000_000 + offset if time_ms is None else time_ms
    return (KIND_DATA, partition, offset, SESSION, offset + 1, offset, rows, time_ms, crc32c(payload), payload)


def spoiled(partition: int, offset: int, payload: bytes) -> Append:
    """A DATA append whose payload changed on its way."""
    return (KIND_DATA, partition, offset, SESSION, offset + 1, offset, 10, 5, crc32c(payload) ^ 1, payload)


def control(payload: bytes) -> Append:
    return (KIND_CONTROL, CONTROL_PARTITION, 0, 0, 0, 0, 0, 0, CRC_BY_LOG, payload)


def gap(partition: int, first: int, last: int, reason: str = "dropped") -> Append:
    return (KIND_GAP, partition, first, 0, 0, last, 0, 0, CRC_BY_LOG, reason.encode())


def payload_for(partition: int, offset: int, size: int = 100) -> bytes:
    """Bytes that name their address, so that a mix-up shows."""
    unit = b"%d:%d;" % (partition, offset)
    return (unit * (size // len(unit) + 1))[:size]


def offsets_of(log: TopicLog, partition: int) -> list[int]:
    """Every offset that can be read, after a check that each carries its own payload and header."""
    chunk = log.read(partition, 0, 1 << 62)
    at = 0
    for record in chunk.records:
        length, offset = int(record["length"]), int(record["offset"])
        assert chunk.body[at : at + length] == payload_for(partition, offset, length)
        assert int(record["session"]) == SESSION
        assert int(record["seq"]) == offset + 1
        at += length
    assert at == len(chunk.body)
    return chunk.records["offset"].tolist()


def controls_of(entries: Iterable[Entry]) -> list[bytes]:
    return [entry[1] for entry in entries if entry[0] == "control"]


def offsets_in(entries: Iterable[Entry], partition: int) -> list[int]:
    parts = [entry[2]["offset"] for entry in entries if entry[0] == "data" and entry[1] == partition]
    return np.concatenate(parts).tolist() if parts else []
