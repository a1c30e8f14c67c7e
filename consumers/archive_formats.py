"""How an archive lies on disk: Parquet by day and host, or JSON lines a GPU. What no checkpoint counts is taken back.

Both are given whole commits: :meth:`write` puts the rows where they do not count yet and notes in the checkpoint
what will; :meth:`finish` runs after the checkpoint is durable; :meth:`recover` runs at the start.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from consumers.checkpoint import Checkpoint, sync_directory
from consumers.insert import day_name
from consumers.validate import MS_A_DAY

_STAGING = "_staging"


class Format(Protocol):
    """``root``: the archive's directory."""

    root: Path

    def recover(self, checkpoint: Checkpoint) -> None: ...

    def write(self, table: pa.Table, checkpoint: Checkpoint) -> None: ...

    def finish(self, checkpoint: Checkpoint) -> None: ...


class ParquetByDayAndHost:
    """``day=2026-01-31/host=NAME/00000042.parquet``: one file a day and host and commit, never changed afterwards."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def recover(self, checkpoint: Checkpoint) -> None:
        """Move what counts and was not moved; remove what does not count."""
        self.finish(checkpoint)
        shutil.rmtree(self.root / _STAGING, ignore_errors=True)

    def write(self, table: pa.Table, checkpoint: Checkpoint) -> None:
        staging = self.root / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        checkpoint.pending = []
        for day, host, part in _by_day_and_host(table):
            name = f"day={day_name(day)}/host={_safe(host)}/{checkpoint.commits:08d}.parquet"
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                pq.write_table(part, out, compression="zstd")
                out.flush()
                os.fsync(out.fileno())
            checkpoint.pending.append(name)

    def finish(self, checkpoint: Checkpoint) -> None:
        touched: set[Path] = set()
        for name in checkpoint.pending:
            source, target = self.root / _STAGING / name, self.root / name
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
                touched.update((target.parent, target.parent.parent))
        for directory in {*touched, self.root}:
            sync_directory(directory)


def _by_day_and_host(table: pa.Table) -> Iterator[tuple[int, str, pa.Table]]:
    """Parts of the table, rows in their order."""
    combined = table.unify_dictionaries().combine_chunks()
    host = combined.column("hostname").chunk(0)
    day = combined.column("timestamp").cast(pa.int64()).to_numpy() // MS_A_DAY
    codes = host.indices.to_numpy().astype(np.int64)
    names = host.dictionary.to_pylist()
    order = np.lexsort((codes, day))
    key = (day[order] << 32) | codes[order]
    starts = np.concatenate(([0], np.flatnonzero(key[1:] != key[:-1]) + 1, [len(key)]))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
        index = order[start:end]
        yield int(day[index[0]]), names[int(codes[index[0]])], combined.take(pa.array(index))


class JsonLinesAGpu:
    """``GPU-5fd4f087.jsonl``: one growing file a GPU, one object a row. The checkpoint knows how many bytes count."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def recover(self, checkpoint: Checkpoint) -> None:
        for path in self.root.glob("*.jsonl"):
            length = checkpoint.lengths.get(path.name, 0)
            if not length:
                path.unlink()
            elif path.stat().st_size > length:
                os.truncate(path, length)

    def write(self, table: pa.Table, checkpoint: Checkpoint) -> None:
        lines: dict[str, list[str]] = {}
        for batch in table.to_batches():
            names = batch.schema.names
            columns = [batch.column(name).to_pylist() for name in names[1:]]
            times = batch.column("timestamp").cast(pa.int64()).to_pylist()
            for ts_ms, *values in zip(times, *columns):
                row = {"timestamp": _rfc3339(ts_ms)} | {k: v for k, v in zip(names[1:], values) if v != ""}
                lines.setdefault(row["gpu_id"], []).append(json.dumps(row, ensure_ascii=False))
        for gpu_id, rows in lines.items():
            path = self.root / f"{_safe(gpu_id)}.jsonl"
            with path.open("ab") as out:
                out.write(("\n".join(rows) + "\n").encode())
                out.flush()
                os.fsync(out.fileno())
                checkpoint.lengths[path.name] = out.tell()
        sync_directory(self.root)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Nothing to do: the lengths in the checkpoint are the commit."""


FORMATS: dict[str, type[ParquetByDayAndHost] | type[JsonLinesAGpu]] = {
    "parquet": ParquetByDayAndHost,
    "jsonl": JsonLinesAGpu,
}


def _rfc3339(ts_ms: int) -> str:
    return datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _safe(name: str) -> str:
    """A file name for any text: percent-encoded, cut where it is too long for a file system."""
    quoted = quote(name, safe=" :,=@+") or "unknown"
    return quoted if len(quoted) <= 200 else f"{quoted[:180]}~{xxhash.xxh64_hexdigest(name.encode())}"
