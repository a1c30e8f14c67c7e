"""What a source file is: where its rows begin, what its columns mean, how it is cut into lanes.

A lane is a run of blocks that one session publishes in order: the unit that is handed to a worker, moved to another
one when that worker dies, and resumed. A plain file has many lanes; what can only be read on (gzip, zstd, standard
input) has one.
"""

from __future__ import annotations

import errno
import glob
import gzip
import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal

from producers.blocks import block_count
from producers.errors import SourceError, SourceMissing
from producers.mapping import Mapping, detect, from_file
from producers.values import parse_time_ns

SAMPLE_BYTES: Final = 64 << 10
BLOCK_BYTES_MIN: Final = 1 << 20
BLOCK_BYTES_MAX: Final = 16 << 20
PIECE_BYTES: Final = 2 << 20
STDIN: Final = "-"

Compression = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was opened once and understood; plain data, so that it travels to worker processes."""

    path: str
    """As named, "-" for standard input."""
    compression: Compression
    size: int
    """Bytes, as stored; 0 for standard input."""
    identity: tuple[int, int, int, int]
    """(device, inode, size, modified ns): a file that differs in any of them is another one."""
    data_start: int
    """Where the first row begins, in decompressed bytes."""
    first_line: int
    """Line number of the first row, from 1."""
    mapping: Mapping
    row_bytes: float
    """Mean bytes a row of the first 64 KiB."""
    rows_a_line: int
    head: bytes
    """Stored bytes that were read from a pipe to understand it, and cannot be read again."""
    sample_bytes: int
    """How many bytes of it told what its columns mean."""
    map_file: Path | None
    """What --map says of its columns."""
    origin_ns: int
    """The time that ``shift`` moves to the beginning of the pass: the file's last time, or its first where only
    that is known. 0: the file has no times."""

    @property
    def name(self) -> str:
        """For people."""
        return shown(self.path)

    @property
    def seekable(self) -> bool:
        return self.compression == "none" and not self.once

    @property
    def once(self) -> bool:
        """Whether it can be read only once: a pipe, standard input."""
        return self.size == 0


def expand(names: Sequence[str]) -> list[str]:
    """File names with globs resolved, each once, in order. Raises :class:`SourceMissing` for a glob without a match."""
    found: dict[str, None] = {}
    for name in names:
        if name != STDIN and glob.has_magic(name) and not os.path.exists(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise SourceMissing(f"{name}: no file matches")
            found.update(dict.fromkeys(matches))
        else:
            found[name] = None
    return list(found)


def descriptor_path(number: int) -> str:
    """A path by which worker processes too can open this process's descriptor (0: standard input), or its file.

    Raises :class:`SourceMissing` where it cannot be opened again (a socket, a closed one).
    """
    path = f"/proc/{os.getpid()}/fd/{number}"
    try:
        target = os.path.realpath(path)
        if os.path.isfile(target):
            return target
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as e:
        raise SourceMissing(f"-: standard input cannot be read: {e.strerror or e}") from None
    return path


def shown(path: str) -> str:
    """A path for people: a descriptor has none that tells them anything."""
    return "standard input" if path.startswith("/proc/") else path


def open_stream(path: str, head: bytes = b"") -> BinaryIO:
    """The decompressed bytes of a file or pipe, to be read on. Raises :class:`SourceError`.

    ``head``: stored bytes that were read from a pipe before, and come first.
    """
    try:
        raw: BinaryIO = open(path, "rb", buffering=0)  # type: ignore[assignment]  # noqa: SIM115
        raw = io.BufferedReader(_Prefixed(head, raw), 1 << 17)  # type: ignore[arg-type]
        magic = raw.peek(4)[:4]
    except OSError as e:
        raise _missing(path, e) from None
    if magic[:2] == b"\x1f\x8b":
        return _Joined(gzip.GzipFile(fileobj=raw), shown(path))  # type: ignore[return-value]
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return _Joined(reader, shown(path))  # type: ignore[return-value]
    return raw


def open_source(
    path: str,
    *,
    map_file: Path | None = None,
    exporter_version: str | None = None,
    stream: BinaryIO | None = None,
    sample_bytes: int = SAMPLE_BYTES,
) -> tuple[Source, bytes]:
    """Open, read the header and some rows, understand them. ``sample_bytes``: of so many bytes at most.

    Returns the source and, for what cannot be read twice (a pipe, or ``stream``), the bytes that were read
    beyond the header. Raises :class:`SourceError`: one line that names the file and, for a bad header, its line.
    """
    if path == STDIN or path.startswith("/dev/fd/"):
        path = descriptor_path(int(path.rpartition("/")[2]) if path != STDIN else 0)
    if stream is None:
        _check_file(path)
    once = stream is not None or not os.path.isfile(path)
    head_stored = _read_pipe(path, SAMPLE_BYTES) if once and stream is None else b""
    reader = stream or (_of_bytes(head_stored) if once else open_stream(path))
    try:
        head = _read_some(reader, sample_bytes)
        compression = _compression_of(reader)
        status = None if once else os.stat(path)
    finally:
        if not once:
            reader.close()
    header, data_start, first_line = _header(shown(path), head)
    complete = len(head) < SAMPLE_BYTES
    lines = head[data_start:].splitlines()
    if not complete and len(lines) > 1:
        lines.pop()
    samples = [line.decode("utf-8", "replace") for line in lines[:200] if line.strip()]
    if map_file is not None:
        mapping = from_file(map_file, header, samples, source=shown(path))
    else:
        mapping = detect(header, samples, source=shown(path), exporter_version=exporter_version)
    sampled = sum(len(line) + 1 for line in lines)
    tail = b""
    if status is not None and compression == "none" and not complete:
        with open(path, "rb") as f:
            f.seek(max(data_start, status.st_size - SAMPLE_BYTES))
            tail = f.read()
    source = Source(
        path=path,
        compression=compression,
        size=0 if status is None else status.st_size,
        identity=(0, 0, 0, 0) if status is None else (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns),
        data_start=data_start,
        first_line=first_line,
        mapping=mapping,
        row_bytes=sampled / len(lines) if lines else 100.0,
        rows_a_line=max(1, len(mapping.metrics)),
        head=head_stored,
        sample_bytes=len(head),
        map_file=map_file,
        origin_ns=_origin(mapping, lines, tail, complete),
    )
    return source, head[data_start:] if once else b""


def block_bytes_for(source: Source, batch_rows: int, sharers: int) -> int:
    """Bytes a block so that one makes about a batch, and each of ``sharers`` workers gets some of a small file."""
    wanted = batch_rows * source.row_bytes / source.rows_a_line
    size = int(min(max(wanted, BLOCK_BYTES_MIN), BLOCK_BYTES_MAX))
    if source.seekable and sharers > 1:
        size = min(size, max(1, -(-source.size // sharers)))
    return -(-size // PIECE_BYTES) * PIECE_BYTES if size > PIECE_BYTES else size


def pieces_of(block_bytes: int) -> int:
    """Into how many equal pieces a block is cut for parsing: what fits the processor's cache is parsed faster."""
    return block_bytes // PIECE_BYTES if block_bytes > PIECE_BYTES and block_bytes % PIECE_BYTES == 0 else 1


def share(blocks: int, index: int, count: int) -> tuple[int, int]:
    """Blocks [first, last) of part ``index`` of ``count``: parts follow each other without gap or overlap."""
    return blocks * index // count, blocks * (index + 1) // count


def lanes_of(source: Source, block_bytes: int, lanes: int, shard: tuple[int, int]) -> list[tuple[int, int]]:
    """The runs of blocks [first, last) that shard (i, n) cuts its part of a file into; (0, 0) is a whole stream.

    A source that can only be read on belongs to shard 0 alone.
    """
    index, count = shard
    if not source.seekable:
        return [(0, 0)] if index == 0 else []
    first, last = share(block_count(source.size, block_bytes), index, count)
    cuts = [share(last - first, lane, lanes) for lane in range(lanes)]
    return [(first + start, first + end) for start, end in cuts if end > start]


class _Joined(io.RawIOBase):
    """A decompressor whose errors name the file."""

    def __init__(self, inner: BinaryIO, path: str) -> None:
        super().__init__()
        self.compression: Compression = "gzip" if isinstance(inner, gzip.GzipFile) else "zstd"
        self._inner = inner
        self._path = path

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return self._inner.read(size)
        except Exception as e:
            raise SourceError(f"{self._path}: the {self.compression} data is damaged: {e}") from None

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def _compression_of(reader: BinaryIO) -> Compression:
    return reader.compression if isinstance(reader, _Joined) else "none"


class _Prefixed(io.RawIOBase):
    """Bytes that were read before, then what is left of a raw file."""

    def __init__(self, head: bytes, raw: io.RawIOBase) -> None:
        super().__init__()
        self._head = head
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._head:
            size = min(len(buffer), len(self._head))
            buffer[:size] = self._head[:size]
            self._head = self._head[size:]
            return size
        return self._raw.readinto(buffer) or 0

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def _read_pipe(path: str, size: int) -> bytes:
    """The first bytes of a pipe: ``size`` of them, or all until it ends."""
    with open(path, "rb", buffering=0) as raw:
        return _read_some(raw, size)  # type: ignore[arg-type]


def _of_bytes(head: bytes) -> BinaryIO:
    """The decompressed beginning of what begins so; a compressed stream that is cut short gives what it can."""
    if head[:2] == b"\x1f\x8b":
        found = _Joined(io.BytesIO(zlib.decompressobj(47).decompress(head)), STDIN)  # type: ignore[arg-type]
        found.compression = "gzip"
        return found  # type: ignore[return-value]
    if head[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        found = _Joined(io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(head)), STDIN)
        return found  # type: ignore[return-value]
    return io.BytesIO(head)


def _read_some(reader: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0:
        piece = reader.read(size)
        if not piece:
            break
        parts.append(piece)
        size -= len(piece)
    return b"".join(parts)


def _check_file(path: str) -> None:
    try:
        if os.path.isdir(path):
            raise SourceMissing(f"{path}: is a directory; name its files, as in {os.path.join(path, '*.csv')}")
        with open(path, "rb"):
            pass
    except OSError as e:
        raise _missing(path, e) from None


def _missing(path: str, error: OSError) -> SourceMissing:
    reason = {errno.ENOENT: "no such file", errno.EACCES: "may not be read by this user"}.get(error.errno or 0)
    return SourceMissing(f"{path}: {reason or error.strerror or error}")


def _header(path: str, head: bytes) -> tuple[str, int, int]:
    """(header line, offset of the first row, its line number); lines that begin with # before it are notes."""
    at, number = 0, 1
    if head.startswith(b"\xef\xbb\xbf"):
        at = 3
    while True:
        end = head.find(b"\n", at)
        line = head[at : end if end >= 0 else len(head)]
        after = end + 1 if end >= 0 else len(head)
        if line.startswith(b"#") or (not line.strip() and end >= 0):
            at, number = after, number + 1
            continue
        if not line.strip():
            raise SourceError(f"{path}: line {number}: the file is empty, a header with column names is needed")
        if end < 0 and len(head) >= SAMPLE_BYTES:
            raise SourceError(f"{path}: line {number}: no header within {SAMPLE_BYTES >> 10} KiB: not a CSV")
        try:
            return line.decode("utf-8").rstrip("\r"), after, number + 1
        except UnicodeDecodeError:
            raise SourceError(f"{path}: line {number}: the header is no UTF-8 text: not a CSV") from None


def _origin(mapping: Mapping, lines: list[bytes], tail: bytes, complete: bool) -> int:
    from producers.mapping import split_line

    if mapping.timestamp is None:
        return 0

    def times(some: Sequence[bytes]) -> list[int]:
        found = []
        for line in some:
            cells = split_line(line.decode("utf-8", "replace"), mapping.delimiter)
            time = parse_time_ns(cells[mapping.timestamp or 0]) if len(cells) > (mapping.timestamp or 0) else None
            if time is not None:
                found.append(time)
        return found

    first = times(lines)
    if complete:
        return max(first, default=0)
    last = times(tail.splitlines()[1:])
    return max(first + last, default=0) if last else min(first, default=0)
