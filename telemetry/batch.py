"""The batch: what travels from a streamer to a collector.

A batch is four column arrays of one length (rows) and two small dictionaries. It is self-contained: any
collector decodes any batch alone, whatever came before it.

    header      fixed, 160 bytes, own CRC32C; sizes of everything that follows, so that nothing is
                allocated before it was checked
    dictionary  devices, then metric names; compressed apart from the columns, because it repeats from batch
                to batch: the sender caches its bytes, the receiver caches what they decode to, by digest
    columns     timestamp int64 (ns, UTC) | value float64 | device code uint16 | metric code uint16

No Python object is made for a row on either side: columns are written by ``tobytes`` and read back as
``np.frombuffer`` views. A corrupt or hostile batch raises :class:`BatchError`: never another exception, an
over-read, or an allocation above the limits below.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import lz4.block
import numpy as np
import xxhash
import zstandard
from crc32c import crc32c

MAGIC: Final = b"GTB1"
VERSION: Final = 1

ROWS_MAX: Final = 65_536
"""Rows a batch may hold: every device code then fits uint16, and any batch fits one delivery."""

CODES_MAX: Final = 65_536
"""Entries a dictionary may hold of each kind: what a uint16 code can reach. More would only cost memory: 32 MB of empty
devices are 1.5 million objects at the receiver."""

DICTIONARY_BYTES_MAX: Final = 32 << 20
COLUMN_BYTES_A_ROW: Final = 8 + 8 + 2 + 2

COMPRESSION_NONE: Final = 0
COMPRESSION_LZ4: Final = 1
COMPRESSION_ZSTD: Final = 2
COMPRESSIONS: Final = {"none": COMPRESSION_NONE, "lz4": COMPRESSION_LZ4, "zstd": COMPRESSION_ZSTD}

# magic, version, column compression, dictionary compression, reserved,
# session, seq, created_ns, timestamp_min_ns, timestamp_max_ns,
# rows, devices, metrics, dictionary raw, dictionary stored, columns raw, columns stored, body crc,
# dictionary digest, trace context (W3C: trace id 16, span id 8, flags 1, padding 7), reserved; then the header's crc
_FIELDS: Final = struct.Struct("<4sBBBB QQqqq IIIIIIII 16s 32s 28x")
_CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = _FIELDS.size + _CRC.size
NO_TRACE: Final = bytes(32)

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")


class BatchError(ValueError):
    """The bytes are no valid batch. Trying again cannot help: the batch belongs in the dead letters."""


class Device(NamedTuple):
    """What a row is about: one GPU (or part of it) with the attribution it had at that time.

    Empty strings mean "not told". ``labels`` holds every further label as sorted (name, value) pairs.
    """

    uuid: str = ""
    hostname: str = ""
    gpu_index: str = ""
    device: str = ""
    model: str = ""
    cluster: str = ""
    container: str = ""
    pod: str = ""
    namespace: str = ""
    job: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def gpu_id(self) -> str:
        """The GPU's identity: its uuid; without one ``hostname:index``, or the index alone; "" if nothing is told."""
        if self.uuid:
            return self.uuid
        if self.hostname and self.gpu_index:
            return f"{self.hostname}:{self.gpu_index}"
        return self.gpu_index

    @property
    def gpu_key(self) -> int:
        """uint64 key of the GPU in the store: equals ``xxHash64(gpu_id)`` in ClickHouse."""
        return xxhash.xxh64_intdigest(self.gpu_id.encode())

    @property
    def labels_key(self) -> int:
        """uint64 key of this very label set (attribution included), the same in every process."""
        return xxhash.xxh64_intdigest(encode_device(self))


class Dictionary(NamedTuple):
    """What the codes of a batch mean."""

    devices: tuple[Device, ...]
    metrics: tuple[str, ...]
    digest: bytes


class Batch(NamedTuple):
    """A decoded batch. The arrays are read-only views, all of ``rows`` elements."""

    session: int
    seq: int
    created_ns: int
    timestamp_ns: np.ndarray
    """int64, ns since the epoch, UTC."""
    value: np.ndarray
    """float64, in the metric's unit."""
    device_code: np.ndarray
    """uint16 into ``dictionary.devices``; every code is in range."""
    metric_code: np.ndarray
    """uint16 into ``dictionary.metrics``; every code is in range."""
    dictionary: Dictionary
    trace: bytes = NO_TRACE

    @property
    def rows(self) -> int:
        return len(self.value)


class Header(NamedTuple):
    """The fixed header, read without touching the body."""

    magic: bytes
    version: int
    columns_compression: int
    dictionary_compression: int
    reserved: int
    session: int
    seq: int
    created_ns: int
    timestamp_min_ns: int
    timestamp_max_ns: int
    rows: int
    devices: int
    metrics: int
    dictionary_raw_bytes: int
    dictionary_stored_bytes: int
    columns_raw_bytes: int
    columns_stored_bytes: int
    body_crc: int
    digest: bytes
    trace: bytes


def encode_device(device: Device) -> bytes:
    """Canonical bytes of one device: eleven length-prefixed UTF-8 fields, labels as a JSON object with sorted keys."""
    labels = json.dumps(dict(sorted(device.labels)), ensure_ascii=False, separators=(",", ":")) if device.labels else ""
    parts = []
    for field in (*device[:10], labels):
        data = field.encode("utf-8", "replace")
        if len(data) > 0xFFFF:
            raise BatchError(f"a device label of {len(data)} bytes is longer than 65,535; shorten it at the source")
        parts.append(_U16.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def _decode_device(data: memoryview, at: int) -> tuple[Device, int]:
    fields = []
    try:
        for _ in range(11):
            (size,) = _U16.unpack_from(data, at)
            at += 2
            if at + size > len(data):
                raise BatchError("dictionary: a device label runs past the end")
            fields.append(str(data[at : at + size], "utf-8"))
            at += size
        labels = json.loads(fields[10]) if fields[10] else {}
    except (struct.error, UnicodeDecodeError, ValueError, RecursionError) as e:
        if isinstance(e, BatchError):
            raise
        raise BatchError(f"dictionary: a device cannot be read ({e})") from None
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise BatchError("dictionary: a device's labels are not an object of strings")
    return Device._make((*fields[:10], tuple(sorted(labels.items())))), at


def _compress(data: bytes, method: int) -> bytes:
    if method == COMPRESSION_LZ4:
        return lz4.block.compress(data, store_size=False)
    if method == COMPRESSION_ZSTD:
        return zstandard.compress(data, 1)
    return data


def _decompress(data: memoryview, method: int, raw_bytes: int) -> bytes | memoryview:
    """Decompress to exactly ``raw_bytes``; the caller has bounded ``raw_bytes``."""
    try:
        if method == COMPRESSION_NONE:
            raw: bytes | memoryview = data
        elif method == COMPRESSION_LZ4:
            raw = lz4.block.decompress(data, uncompressed_size=raw_bytes)
        elif method == COMPRESSION_ZSTD:
            # The content size in the frame must not decide what is allocated: the header's, already bounded, does.
            if zstandard.frame_content_size(data) != raw_bytes:
                raise BatchError("zstd: the frame's size differs from the header's")
            raw = zstandard.ZstdDecompressor().decompress(data, max_output_size=raw_bytes)
        else:
            raise BatchError(f"unknown compression {method}: sent by a newer version?")
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError, MemoryError, OverflowError) as e:
        if isinstance(e, BatchError):
            raise
        raise BatchError(f"cannot decompress: {e}") from None
    if len(raw) != raw_bytes:
        raise BatchError(f"decompressed to {len(raw)} bytes, the header says {raw_bytes}")
    return raw


class EncodedDictionary(NamedTuple):
    """A dictionary ready to be sent, kept by the sender for as long as it repeats."""

    stored: bytes
    raw_bytes: int
    compression: int
    digest: bytes
    devices: int
    metrics: int


class DictionaryEncoder:
    """Turns devices and metric names into dictionary bytes; repeats cost a look-up.

    Keeps at most ``cache_max`` dictionaries: a streamer that plays a file in a loop meets the same ones again.
    """

    def __init__(self, compression: str = "lz4", cache_max: int = 1024) -> None:
        # zstd for dictionaries even beside lz4 columns: identities are text, and the cost is paid once.
        self._method = COMPRESSION_NONE if compression == "none" else COMPRESSION_ZSTD
        self._cache_max = cache_max
        self._cache: dict[object, EncodedDictionary] = {}
        self._device_bytes: dict[Device, bytes] = {}

    def encode(self, devices: Sequence[Device], metrics: Sequence[str], key: object = None) -> EncodedDictionary:
        """``key``: anything hashable that stands for these very devices and metrics, to spare hashing them."""
        if len(devices) > CODES_MAX or len(metrics) > CODES_MAX:
            raise BatchError(
                f"a dictionary holds at most {CODES_MAX} devices and as many metrics; send fewer rows a batch"
            )
        if key is None:
            key = (tuple(devices), tuple(metrics))
        found = self._cache.get(key)
        if found is not None:
            return found
        parts = []
        for device in devices:
            data = self._device_bytes.get(device)
            if data is None:
                if len(self._device_bytes) >= 1_000_000:
                    self._device_bytes.clear()
                data = self._device_bytes[device] = encode_device(device)
            parts.append(data)
        for metric in metrics:
            name = metric.encode("utf-8", "replace")
            if len(name) > 0xFFFF:
                raise BatchError(f"a metric name of {len(name)} bytes is longer than 65,535")
            parts.append(_U16.pack(len(name)) + name)
        raw = b"".join(parts)
        if len(raw) > DICTIONARY_BYTES_MAX:
            raise BatchError(
                f"a dictionary of {len(raw)} bytes is above {DICTIONARY_BYTES_MAX}; send fewer rows a batch"
            )
        encoded = EncodedDictionary(
            stored=_compress(raw, self._method),
            raw_bytes=len(raw),
            compression=self._method,
            digest=hashlib.blake2b(raw, digest_size=16).digest(),
            devices=len(devices),
            metrics=len(metrics),
        )
        if len(self._cache) >= self._cache_max:
            self._cache.pop(next(iter(self._cache)))
        self._cache[key] = encoded
        return encoded


def encode(
    session: int,
    seq: int,
    timestamp_ns: np.ndarray,
    device_code: np.ndarray,
    metric_code: np.ndarray,
    value: np.ndarray,
    dictionary: EncodedDictionary,
    *,
    created_ns: int,
    compression: str = "lz4",
    trace: bytes = NO_TRACE,
) -> bytes:
    """Pack columns of one length (1 to :data:`ROWS_MAX` rows) into a batch.

    Raises :class:`BatchError` for lengths that differ, too many rows, or a code outside the dictionary.
    """
    rows = len(value)
    if not (rows == len(timestamp_ns) == len(device_code) == len(metric_code)):
        raise BatchError("the columns of a batch must have one length")
    if not 1 <= rows <= ROWS_MAX:
        raise BatchError(f"a batch holds 1 to {ROWS_MAX} rows, not {rows}")
    if int(device_code.max()) >= dictionary.devices or int(metric_code.max()) >= dictionary.metrics:
        raise BatchError("a code lies outside the dictionary")
    timestamp_ns = np.ascontiguousarray(timestamp_ns, dtype="<i8")
    columns = b"".join(
        (
            timestamp_ns.data,
            np.ascontiguousarray(value, dtype="<f8").data,
            np.ascontiguousarray(device_code, dtype="<u2").data,
            np.ascontiguousarray(metric_code, dtype="<u2").data,
        )
    )
    method = COMPRESSIONS[compression]
    stored = _compress(columns, method)
    header = _FIELDS.pack(
        MAGIC,
        VERSION,
        method,
        dictionary.compression,
        0,
        session,
        seq,
        created_ns,
        int(timestamp_ns.min()),
        int(timestamp_ns.max()),
        rows,
        dictionary.devices,
        dictionary.metrics,
        dictionary.raw_bytes,
        len(dictionary.stored),
        len(columns),
        len(stored),
        crc32c(stored, crc32c(dictionary.stored)),
        dictionary.digest,
        trace,
    )
    return b"".join((header, _CRC.pack(crc32c(header)), dictionary.stored, stored))


def read_header(payload: bytes | memoryview) -> Header:
    """Read and check the fixed header alone (magic, version, CRC, every size against the limits and the payload)."""
    if len(payload) < HEADER_BYTES:
        raise BatchError(f"{len(payload)} bytes are shorter than a batch header of {HEADER_BYTES}")
    view = memoryview(payload)
    (crc,) = _CRC.unpack_from(view, _FIELDS.size)
    header = Header(*_FIELDS.unpack_from(view))
    if header.magic != MAGIC:
        raise BatchError("not a batch: the magic is missing")
    if crc32c(view[: _FIELDS.size]) != crc:
        raise BatchError("the header's checksum does not match")
    if header.version != VERSION:
        raise BatchError(f"batch version {header.version} is not {VERSION}: update this process")
    if not 1 <= header.rows <= ROWS_MAX:
        raise BatchError(f"the header says {header.rows} rows; 1 to {ROWS_MAX} are allowed")
    if header.columns_raw_bytes != header.rows * COLUMN_BYTES_A_ROW:
        raise BatchError("the size of the columns does not fit the rows")
    if header.dictionary_raw_bytes > DICTIONARY_BYTES_MAX:
        raise BatchError(f"the dictionary of {header.dictionary_raw_bytes} bytes is above {DICTIONARY_BYTES_MAX}")
    if header.devices > CODES_MAX or header.metrics > CODES_MAX:
        raise BatchError(f"the dictionary claims more than {CODES_MAX} devices or metrics")
    # An entry is at least its length prefixes: more entries than bytes is a lie that must not size a loop.
    entry_bytes_min = header.devices * 22 + header.metrics * 2
    if entry_bytes_min > header.dictionary_raw_bytes or not header.devices or not header.metrics:
        raise BatchError("the dictionary is too small for its entries")
    if header.dictionary_stored_bytes + header.columns_stored_bytes != len(payload) - HEADER_BYTES:
        raise BatchError("the payload's length differs from the header's sizes")
    return header


class BatchDecoder:
    """Decodes batches and remembers dictionaries by digest (at most ``cache_bytes_max`` of raw dictionary bytes)."""

    def __init__(self, cache_bytes_max: int = 64 << 20) -> None:
        self._cache: dict[bytes, tuple[Dictionary, int]] = {}
        self._cache_bytes = 0
        self._cache_bytes_max = cache_bytes_max

    def decode(self, payload: bytes | memoryview) -> Batch:
        """Decode and check one batch. Raises :class:`BatchError`."""
        header = read_header(payload)
        view = memoryview(payload)[HEADER_BYTES:]
        if crc32c(view) != header.body_crc:
            raise BatchError("the body's checksum does not match")
        dictionary = self._dictionary(header, view[: header.dictionary_stored_bytes])
        stored = view[header.dictionary_stored_bytes :]
        columns = _decompress(stored, header.columns_compression, header.columns_raw_bytes)
        rows = header.rows
        timestamp_ns = np.frombuffer(columns, dtype="<i8", count=rows)
        value = np.frombuffer(columns, dtype="<f8", count=rows, offset=8 * rows)
        device_code = np.frombuffer(columns, dtype="<u2", count=rows, offset=16 * rows)
        metric_code = np.frombuffer(columns, dtype="<u2", count=rows, offset=18 * rows)
        if int(device_code.max()) >= header.devices or int(metric_code.max()) >= header.metrics:
            raise BatchError("a code lies outside the dictionary")
        return Batch(
            header.session,
            header.seq,
            header.created_ns,
            timestamp_ns,
            value,
            device_code,
            metric_code,
            dictionary,
            header.trace,
        )

    def _dictionary(self, header: Header, stored: memoryview) -> Dictionary:
        found = self._cache.get(header.digest)
        if found is not None:
            dictionary = found[0]
            if len(dictionary.devices) != header.devices or len(dictionary.metrics) != header.metrics:
                raise BatchError("the digest names a dictionary of another size")
            return dictionary
        raw = _decompress(stored, header.dictionary_compression, header.dictionary_raw_bytes)
        if hashlib.blake2b(raw, digest_size=16).digest() != header.digest:
            raise BatchError("the dictionary does not match its digest")
        dictionary = _decode_dictionary(memoryview(raw), header)
        while self._cache and self._cache_bytes + len(raw) > self._cache_bytes_max:
            _, size = self._cache.pop(next(iter(self._cache)))
            self._cache_bytes -= size
        self._cache[header.digest] = (dictionary, len(raw))
        self._cache_bytes += len(raw)
        return dictionary


def _decode_dictionary(raw: memoryview, header: Header) -> Dictionary:
    at = 0
    devices = []
    for _ in range(header.devices):
        device, at = _decode_device(raw, at)
        devices.append(device)
    metrics = []
    for _ in range(header.metrics):
        if at + 2 > len(raw):
            raise BatchError("dictionary: a metric name is missing")
        (size,) = _U16.unpack_from(raw, at)
        at += 2
        if at + size > len(raw):
            raise BatchError("dictionary: a metric name runs past the end")
        try:
            metrics.append(str(raw[at : at + size], "utf-8"))
        except UnicodeDecodeError:
            raise BatchError("dictionary: a metric name is not UTF-8") from None
        at += size
    if at != len(raw):
        raise BatchError("dictionary: bytes are left over")
    return Dictionary(tuple(devices), tuple(metrics), header.digest)


def rows_as_dicts(batch: Batch, limit: int | None = None) -> Iterable[dict[str, object]]:
    """Rows for people to read (the shell's ``peek`` and ``tail``): slow by design, never on a hot path."""
    for i in range(batch.rows if limit is None else min(limit, batch.rows)):
        device = batch.dictionary.devices[int(batch.device_code[i])]
        yield {
            "timestamp": np.datetime_as_string(np.datetime64(int(batch.timestamp_ns[i]), "ns"), unit="ms") + "Z",
            "metric_name": batch.dictionary.metrics[int(batch.metric_code[i])],
            "gpu_id": device.gpu_id,
            "hostname": device.hostname,
            "device": device.device,
            "value": float(batch.value[i]),
        }
