"""A file as fixed byte blocks cut at line ends.

Block ``k`` of a file holds the lines that *begin* at offsets ``[k * size, (k + 1) * size)``. So any block can be found
without reading the ones before it, blocks share the file out among workers without overlap, and the same block
of the same file has the same rows whoever reads it and whenever: what a resumed run builds on (R8).

A line ends at ``\\n`` and nowhere else, quotes or not: a forgotten quote spoils its line and not the rest of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from producers.errors import LineTooLong

LINE_BYTES_MAX: Final = 16 << 20
"""A longer line is no CSV row: without a limit a binary file would be read into memory whole looking for its end."""

_PEEK_BYTES: Final = 64 << 10


class Block(NamedTuple):
    """Whole lines of a file."""

    number: int
    offset: int
    """Where ``data`` begins in the file, bytes (decompressed ones where the file is compressed)."""
    data: bytes | memoryview
    """Whole lines. A view is good until the next block is asked for."""


def block_count(size: int, block_bytes: int) -> int:
    """How many blocks a file of ``size`` bytes has."""
    return -(-size // block_bytes)


class FileBlocks:
    """Blocks of a plain file, at random. ``data_start``: where the first row begins, after the header.

    ``reuse``: every block is read into the same memory. Fresh memory for each costs as much as reading it.
    """

    def __init__(
        self, path: str, block_bytes: int, data_start: int, size: int | None = None, *, reuse: bool = False
    ) -> None:
        self.path = path
        self.block_bytes = block_bytes
        self._data_start = data_start
        self._buffer = bytearray() if reuse else None
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size if size is None else size

    def read(self, first: int, last: int) -> Iterator[Block]:
        """Blocks ``first`` to ``last - 1`` that hold a line, in order. Raises :class:`LineTooLong`, OSError."""
        start = self.cut(first)
        for number in range(first, last):
            end = self.cut(number + 1)
            if end > start:
                yield Block(number, start, self._pread(start, end - start))
            start = end

    def cut(self, number: int) -> int:
        """Offset of the first line of block ``number``: the first line end at or after the byte before it, plus one."""
        at = number * self.block_bytes - 1
        if at < self._data_start:
            return min(self._data_start, self.size)
        searched = at
        while searched < self.size:
            piece = os.pread(self._fd, min(_PEEK_BYTES, self.size - searched), searched)
            if not piece:
                break
            found = piece.find(b"\n")
            if found >= 0:
                return searched + found + 1
            searched += len(piece)
            if searched - at > LINE_BYTES_MAX:
                raise _too_long(self.path, at)
        return self.size

    def count_lines(self, start: int, end: int) -> int:
        """Line ends in the bytes ``[start, end)``: for line numbers, asked only where a row was rejected."""
        return count_lines(self._fd, start, end)

    def close(self) -> None:
        """Close the file; the object is of no use afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> FileBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pread(self, start: int, size: int) -> bytes | memoryview:
        if self._buffer is not None:
            return self._read_into(start, size)
        data = os.pread(self._fd, size, start)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def _read_into(self, start: int, size: int) -> memoryview:
        if len(self._buffer or b"") < size:
            # A new one rather than a longer one: views of the old one may still be held.
            self._buffer = bytearray(size + _PEEK_BYTES)
        assert self._buffer is not None
        view = memoryview(self._buffer)
        done = 0
        while done < size and (got := os.preadv(self._fd, [view[done:size]], start + done)):
            done += got
        return view[:done]


def count_lines(fd: int, start: int, end: int) -> int:
    """Line ends in the bytes ``[start, end)`` of an open file."""
    lines = 0
    while start < end and (piece := os.pread(fd, min(4 << 20, end - start), start)):
        lines += piece.count(b"\n")
        start += len(piece)
    return lines


def stream_blocks(
    read: Callable[[int], bytes], block_bytes: int, *, source: str, offset: int = 0, buffered: bytes = b""
) -> Iterator[Block]:
    """The same blocks from something that can only be read on (compressed files, standard input, an upload).

    ``read(n)`` gives at most n bytes, b"" at the end. ``offset``: where ``buffered`` begins in the stream; it must
    be the beginning of a line. A last line without line end counts as whole.
    """
    ended = False
    while not ended or buffered:
        number = offset // block_bytes
        boundary = (number + 1) * block_bytes - offset
        while len(buffered) < boundary and not ended:
            piece = read(min(boundary - len(buffered), 1 << 20))
            ended = not piece
            buffered += piece
        cut, searched = -1, max(boundary - 1, 0)
        while (cut := buffered.find(b"\n", searched)) < 0 and not ended:
            if len(buffered) - boundary > LINE_BYTES_MAX:
                raise LineTooLong(
                    f"{source}: no line end within {LINE_BYTES_MAX >> 20} MiB of byte {offset}: not a CSV"
                )
            searched = len(buffered)
            piece = read(_PEEK_BYTES)
            ended = not piece
            buffered += piece
        end = cut + 1 if cut >= 0 else len(buffered)
        if end:
            yield Block(number, offset, buffered[:end])
        buffered = buffered[end:]
        offset += end


def _too_long(source: str, offset: int) -> LineTooLong:
    return LineTooLong(f"{source}: no line end within {LINE_BYTES_MAX >> 20} MiB of byte {offset}: not a CSV")
