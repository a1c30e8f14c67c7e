"""The log alone: CPU a record of a commit, reading back, what zero-filling ahead saves, recovery of 2 GB.

Commits are timed by the CPU of their own thread, since the broker's loop waits for the same interpreter; the disk's
part is the sync, which is given apart.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from crc32c import crc32c

from loadtest.bench.frame import Figure, Settings, compare
from zmqbroker.storage.interface import KIND_DATA, Append
from zmqbroker.storage.log import DiskLog

SHAPES = (("100B", 100, 500), ("20kB", 20_000, 50))
SYNCS = 400
LOG_BYTES = 2 << 30


def run(settings: Settings) -> Iterator[Figure]:
    for name, size, count in SHAPES:
        runs = [
            _commits(settings.directory / "log", size, count, settings.scaled(400, 5)) for _ in range(settings.runs)
        ]
        checks = [_crc_us(size) for _ in range(settings.runs)]
        commit_us, read_us, syncs = zip(*runs, strict=True)
        yield compare("log", f"commit_cpu_us_{name}", "us/record", commit_us, "CRC32C of the payload alone", checks)
        yield compare("log", f"read_cpu_us_{name}", "us/record", read_us)
        yield compare("log", f"commit_sync_ms_{name}", "ms", syncs)
    filled, sparse = zip(*(_sync_ms(settings.directory / "sync") for _ in range(settings.runs)), strict=True)
    yield compare("log", "sync_20kB_zero_filled_ms", "ms", filled, "a file that grows", sparse)
    seconds, size = _recovery(settings.directory / "log", settings.scaled(LOG_BYTES, 8 << 20))
    yield compare("log", "recovery_s", "s", seconds)
    yield compare("log", "recovery_log_bytes", "bytes", [size])


def _appends(payload: bytes, crc: int, first: int, count: int) -> list[Append]:
    return [
        (KIND_DATA, 0, o, 1 << 63, o, first, 1000, 1_700_000_000_000, crc, payload) for o in range(first, first + count)
    ]


def _commits(directory: Path, size: int, count: int, commits: int) -> tuple[float, float, float]:
    """Thread CPU us a record of committing, of reading back, and the median sync in ms."""
    log = DiskLog(directory, 4)
    try:
        log.recover()
        payload = os.urandom(size)
        crc = crc32c(payload)
        cpu, syncs, offset = 0.0, [], 0
        for _ in range(commits):
            appends = _appends(payload, crc, offset, count)
            offset += count
            start = time.thread_time()
            done = log.commit(appends, roll_snapshot=b"state" if log.wants_roll else None)
            cpu += time.thread_time() - start
            syncs.append(done.sync_seconds)
        step = max(1, (4 << 20) // size)
        start = time.thread_time()
        records = sum(len(log.read(0, at, at + step - 1).records) for at in range(0, offset, step))
        read = time.thread_time() - start
        assert records == offset
        return 1e6 * cpu / offset, 1e6 * read / offset, 1e3 * statistics.median(syncs)
    finally:
        log.release()
        shutil.rmtree(directory)


def _crc_us(size: int) -> float:
    payloads = [os.urandom(size) for _ in range(500)]
    start = time.thread_time()
    for _ in range(10):
        list(map(crc32c, payloads))
    return 1e6 * (time.thread_time() - start) / 5000


def _sync_ms(path: Path) -> tuple[float, float]:
    """Median fdatasync after 20 kB: into zeros that are there, and at the end of a file that grows."""
    block = os.urandom(20_000)
    medians = []
    for zeros in (SYNCS * len(block), 0):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(fd, bytes(zeros))
        os.fsync(fd)
        durations = []
        for i in range(SYNCS):
            os.pwrite(fd, block, i * len(block))
            start = time.perf_counter()
            os.fdatasync(fd)
            durations.append(time.perf_counter() - start)
        os.close(fd)
        path.unlink()
        medians.append(1e3 * statistics.median(durations))
    return medians[0], medians[1]


def _recovery(directory: Path, size: int) -> tuple[list[float], int]:
    """Seconds until a log that was killed serves again, the journal replayed."""
    payload = os.urandom(20_000)
    crc = crc32c(payload)
    log = DiskLog(directory, 4)
    try:
        log.recover()
        offset = 0
        while log.stats().bytes < size:
            appends = _appends(payload, crc, offset, 200)
            offset += len(appends)
            log.commit(appends, sync=False, roll_snapshot=b"state" if log.wants_roll else None)
        log.sync()
        held = log.stats().bytes
        log.release()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            log = DiskLog(directory, 4)
            found = log.recover()
            records = sum(len(entry[2]) for entry in found.entries if entry[0] == "data")
            seconds.append(time.perf_counter() - start)
            assert records <= offset == found.next_offsets[0]
            assert int(np.max(log.read(0, offset - 1, offset).records["offset"])) == offset - 1
            log.release()
        return seconds, held
    finally:
        shutil.rmtree(directory)
