"""HTTP content codings, both ways, and ClickHouse's own block framing (``compress=1``, ``decompress=1``)."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final, Protocol

import clickhouse_cityhash.cityhash as cityhash
import lz4.block
import lz4.frame
import zstandard

BLOCK_BYTES: Final = 1 << 20
"""Size of an uncompressed block in ClickHouse's framing, as the server cuts them."""

_HEADER: Final = struct.Struct("<BII")
_CHECKSUM: Final = struct.Struct("<QQ")
_NONE, _LZ4, _ZSTD = 0x02, 0x82, 0x90


class CodingError(Exception):
    """The bytes are not what their coding says, or grow beyond the limit."""


class Compressor(Protocol):
    """Compresses a stream; what ``compress`` holds back comes with ``flush``."""

    def compress(self, data: bytes) -> bytes: ...

    def flush(self) -> bytes: ...


class _Lz4:
    def __init__(self) -> None:
        self._context = lz4.frame.LZ4FrameCompressor(auto_flush=True)
        self._head = self._context.begin()

    def compress(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + self._context.compress(data)

    def flush(self) -> bytes:
        head, self._head = self._head, b""
        return head + self._context.flush()


class Framing:
    """ClickHouse's blocks: CityHash128 checksum, method, sizes, LZ4 data."""

    def __init__(self) -> None:
        self._held = bytearray()

    def compress(self, data: bytes) -> bytes:
        self._held += data
        out = []
        while len(self._held) >= BLOCK_BYTES:
            out.append(frame(bytes(self._held[:BLOCK_BYTES])))
            del self._held[:BLOCK_BYTES]
        return b"".join(out)

    def flush(self) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return frame(held) if held else b""


def frame(data: bytes) -> bytes:
    """One block of ClickHouse's framing."""
    packed = lz4.block.compress(data, store_size=False)
    block = _HEADER.pack(_LZ4, len(packed) + _HEADER.size, len(data)) + packed
    return _CHECKSUM.pack(*_hash_halves(block)) + block


def _hash_halves(block: bytes) -> tuple[int, int]:
    value = cityhash.CityHash128(block)
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def unframe(data: bytes, bytes_max: int, checksums: bool = True) -> bytes:
    """Undo ClickHouse's framing. Raises :class:`CodingError`."""
    out: list[bytes] = []
    total = at = 0
    view = memoryview(data)
    while at < len(view):
        if at + 16 + _HEADER.size > len(view):
            raise CodingError("a compressed block is cut short")
        sums = _CHECKSUM.unpack_from(view, at)
        method, packed_bytes, raw_bytes = _HEADER.unpack_from(view, at + 16)
        end = at + 16 + packed_bytes
        total += raw_bytes
        if packed_bytes < _HEADER.size or end > len(view) or total > bytes_max:
            raise CodingError("a compressed block lies about its size")
        block = bytes(view[at + 16 : end])
        if checksums and _hash_halves(block) != sums:
            raise CodingError("the checksum of a compressed block does not match")
        body = block[_HEADER.size :]
        try:
            if method == _LZ4:
                out.append(lz4.block.decompress(body, uncompressed_size=raw_bytes))
            elif method == _ZSTD:
                out.append(zstandard.ZstdDecompressor().decompress(body, max_output_size=raw_bytes))
            elif method == _NONE:
                out.append(body)
            else:
                raise CodingError(f"unknown compression method {method:#x} in a block")
        except (lz4.block.LZ4BlockError, zstandard.ZstdError) as e:
            raise CodingError(f"a compressed block cannot be read: {e}") from None
        if len(out[-1]) != raw_bytes:
            raise CodingError("a compressed block has another size than it says")
        at = end
    return b"".join(out)


def _gzip() -> Compressor:
    return zlib.compressobj(3, zlib.DEFLATED, 31)


_COMPRESSORS: Final[dict[str, Callable[[], Compressor]]] = {
    # Fast ones first: it is the order in which they are chosen.
    "lz4": _Lz4,
    "zstd": lambda: zstandard.ZstdCompressor(level=1).compressobj(),
    "gzip": _gzip,
    "deflate": lambda: zlib.compressobj(3),
    "bz2": bz2.BZ2Compressor,
    "xz": lzma.LZMACompressor,
}
try:
    import brotli

    class _Brotli:
        def __init__(self) -> None:
            self._context = brotli.Compressor(quality=1)

        def compress(self, data: bytes) -> bytes:
            return self._context.process(data)

        def flush(self) -> bytes:
            return self._context.finish()

    _COMPRESSORS["br"] = _Brotli
except ImportError:  # optional: clients that have it not never ask for it
    brotli = None


def choose(accept_encoding: str) -> str:
    """The coding to answer in: the fastest that the client takes, "" for none."""
    offered = set()
    for part in accept_encoding.split(","):
        name, _, parameters = part.strip().partition(";")
        if parameters.replace(" ", "") not in ("q=0", "q=0.0"):
            offered.add(name.strip().lower())
    return next((name for name in _COMPRESSORS if name in offered), "")


def compressor(coding: str) -> Compressor:
    """A fresh compressor of a coding that :func:`choose` gave."""
    return _COMPRESSORS[coding]()


def decompress(data: bytes, coding: str, bytes_max: int) -> bytes:
    """Undo an HTTP content coding; at most ``bytes_max`` come out. Raises :class:`CodingError`."""
    try:
        if coding in ("", "identity"):
            return data
        if coding == "lz4":
            return _bounded(lz4.frame.LZ4FrameDecompressor(), data, bytes_max)
        if coding == "zstd":
            return _unzstd(data, bytes_max)
        if coding in ("gzip", "x-gzip"):
            return _inflate(data, 31, bytes_max)
        if coding == "deflate":
            return _inflate(data, 15, bytes_max)
        if coding == "bz2":
            return _bounded(bz2.BZ2Decompressor(), data, bytes_max)
        if coding == "xz":
            return _bounded(lzma.LZMADecompressor(), data, bytes_max)
        if coding == "br" and brotli is not None:
            return _checked(brotli.decompress(data), bytes_max)
    except CodingError:
        raise
    except Exception as e:
        raise CodingError(f"the body is no valid {coding}: {e}") from None
    raise CodingError(f"unknown Content-Encoding {coding!r}; known: {', '.join(_COMPRESSORS)}")


def _checked(out: bytes, bytes_max: int) -> bytes:
    if len(out) > bytes_max:
        raise CodingError(f"the body grows beyond {bytes_max} bytes; send less at once")
    return out


def _bounded(context: object, data: bytes, bytes_max: int) -> bytes:
    out = context.decompress(data, bytes_max + 1)  # type: ignore[attr-defined]
    if not context.eof and len(out) <= bytes_max:  # type: ignore[attr-defined]
        raise CodingError("the compressed body is cut short")
    return _checked(out, bytes_max)


def _unzstd(data: bytes, bytes_max: int) -> bytes:
    """Several frames and frames without a size are allowed, so bit by bit: one frame header could claim anything."""
    out: list[bytes] = []
    total = 0
    view = memoryview(data)
    at = 0
    context = zstandard.ZstdDecompressor().decompressobj()
    while at < len(view):
        if context.eof:
            context = zstandard.ZstdDecompressor().decompressobj()
        chunk = view[at : at + BLOCK_BYTES]
        out.append(context.decompress(chunk))
        at += len(chunk) - len(context.unused_data)
        total += len(out[-1])
        if total > bytes_max:
            raise CodingError(f"the body grows beyond {bytes_max} bytes; send less at once")
    if not context.eof:
        raise CodingError("the compressed body is cut short")
    return b"".join(out)


def _inflate(data: bytes, window: int, bytes_max: int) -> bytes:
    context = zlib.decompressobj(window)
    out = context.decompress(data, bytes_max + 1)
    if not context.eof and len(out) <= bytes_max:
        raise CodingError("the compressed body is cut short")
    return _checked(out, bytes_max)
