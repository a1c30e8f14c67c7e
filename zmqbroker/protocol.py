"""The wire truth: every message between a client and a broker (or a collector that binds).

Frame 0 of every message begins with one fixed 64-byte little-endian header; the frames after it are opaque to the
header. A PUBLISH may carry a small payload behind the header in frame 0, instead of in a frame of its own.
``docs/protocol.md`` is this page for people; a test holds the two together through :data:`MESSAGES`.

The generation is chosen anew by the client for each HELLO or SUBSCRIBE and stands in every message of that
conversation, in both directions: what a socket had queued for an earlier conversation is recognised and dropped.
Credit is absolute: the total allowed since that generation's WELCOME or SUBSCRIBED, so that a lost, repeated or
reordered grant is harmless (R6).
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np

from zmqbroker.errors import ProtocolError

MAGIC: Final = b"GZB"
VERSION: Final = 1

HEADER: Final = struct.Struct("<3sBBBHIIQQQQIIII")
HEADER_BYTES: Final = HEADER.size
assert HEADER_BYTES == 64

NO_PARTITION: Final = 0xFFFF
TOPIC_BYTES_MAX: Final = 200
INLINE_BYTES_MAX: Final = 4096
"""A PUBLISH with a payload up to this size carries it behind the header in frame 0: a frame less to handle."""
MESSAGE_OVERHEAD_BYTES: Final = HEADER_BYTES
"""What a PUBLISH costs of the producer's byte credit beside its payload."""


class Type(IntEnum):
    HELLO = 1
    WELCOME = 2
    PUBLISH = 3
    ACK = 4
    REFUSE = 5
    HEARTBEAT = 6
    BYE = 7
    SUBSCRIBE = 8
    SUBSCRIBED = 9
    CREDIT = 10
    DELIVER = 11
    SETTLE = 12
    NACK = 13
    WORKING = 14
    ERROR = 15
    GAP = 16
    REVOKE = 17


class Flag(IntEnum):
    """Bits of the header's ``flags``; their meaning depends on the type."""

    KEYED = 1  # PUBLISH: ``f`` is a key hash that chooses the partition
    RESENT = 2  # PUBLISH: may already be in another log (R7)
    MAYBE_REPEAT = 1  # DELIVER: rows of this range may already be in the store (R13)
    DEAD = 1  # NACK: do not retry, dead-letter
    FAILURE = 2  # NACK: counts to max_attempts (R22)
    KNOWN = 1  # WELCOME: the session is known to this log
    RESUMED = 1  # HELLO: an earlier run of this session may have sent its batches (R8)


class WorkState(IntEnum):
    INSERTING = 1
    WAITING = 2


class Code(IntEnum):
    """Why something was refused. Codes from 100 on are fatal for the conversation: trying again cannot help."""

    NOT_WELCOME = 1  # no HELLO or SUBSCRIBE of this generation: say it again
    OVER_CREDIT = 2  # more bytes than granted: dropped, send again when there is credit
    BAD_CHECKSUM = 3  # the payload changed on its way: send again
    STOPPING = 4  # the broker drains: reconnect later
    TOPIC_STOPPED = 5  # the topic's log stopped after an fsync error: an operator must act
    STORAGE_FULL = 6  # the disk is full or the cap is reached: wait for credit
    BUSY = 7  # too many connections or topics: try later
    BAD_MESSAGE = 100  # malformed, or unexpected in this conversation
    BAD_VERSION = 101  # another protocol version
    TOO_LARGE = 102  # the payload exceeds the limit of this broker
    BAD_TOPIC = 103  # the topic name is not allowed, or the topic does not exist and may not be created
    FENCED = 104  # a newer incarnation of this session has said HELLO (R5)
    GROUP_DIFFERS = 105  # the group exists with other settings (R21)
    DENIED = 106  # the key has no role for this
    NO_PARTITION = 107  # the partition does not exist


FATAL_FROM: Final = 100


class Header(NamedTuple):
    """Frame 0. ``n`` and ``a`` to ``h`` mean what :data:`MESSAGES` says for the type."""

    magic: bytes
    version: int
    type: int
    flags: int
    partition: int
    generation: int
    n: int
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int


class Message(NamedTuple):
    """One line of the specification: who sends it, what its fields and further frames mean."""

    type: Type
    sender: str
    fields: dict[str, str]
    frames: tuple[str, ...]
    answer: str


MESSAGES: Final[tuple[Message, ...]] = (
    Message(
        Type.HELLO,
        "producer",
        {
            "a": "session",
            "b": "incarnation",
            "c": "first seq that may still be sent",
            "d": "wanted bytes",
            "flags": "RESUMED",
        },
        ("topic (UTF-8)", "options (JSON object)"),
        "WELCOME, or ERROR",
    ),
    Message(
        Type.WELCOME,
        "broker",
        {"a": "session", "b": "credit bytes", "c": "window seqs", "d": "message bytes max", "flags": "KNOWN"},
        ("log uuid (16 bytes)", "options (JSON object)"),
        "",
    ),
    Message(
        Type.PUBLISH,
        "producer",
        {
            "a": "session",
            "b": "seq",
            "c": "lowest unacked seq",
            "d": "wanted bytes",
            "e": "CRC32C of the payload",
            "f": "key hash",
            "g": "messages in the payload",
            "h": "place in its run: seqs before it * 65536 + seqs after it",
            "n": "rows",
            "partition": "partition, or 65535",
            "flags": "KEYED, RESENT",
        },
        ("payload (opaque)",),
        "ACK when durable, or REFUSE",
    ),
    Message(
        Type.ACK,
        "broker",
        {"a": "session", "b": "credit bytes", "n": "ranges"},
        ("ranges: n pairs of uint64 (first seq, last seq)",),
        "",
    ),
    Message(
        Type.REFUSE,
        "broker",
        {"a": "session", "b": "seq", "e": "code", "c": "credit bytes"},
        ("reason (UTF-8)",),
        "",
    ),
    Message(
        Type.HEARTBEAT,
        "both",
        {
            "a": "session (producers)",
            "b": "credit bytes (from the broker to a producer)",
            "c": "the asker's clock, or the one that is answered",
            "d": "wanted bytes",
        },
        (),
        "HEARTBEAT",
    ),
    Message(Type.BYE, "both", {"a": "session (producers)"}, (), ""),
    Message(
        Type.SUBSCRIBE,
        "consumer",
        {"a": "member", "b": "credit deliveries"},
        (
            "topic (UTF-8)",
            "options (JSON object: group mode durable start max_rows max_bytes linger_ms name log holding)",
        ),
        "SUBSCRIBED, or ERROR",
    ),
    Message(
        Type.SUBSCRIBED,
        "broker",
        {"a": "member"},
        ("log uuid (16 bytes)", "options (JSON object: group generation heartbeat_s ack_timeout_s holding)"),
        "",
    ),
    Message(Type.CREDIT, "consumer", {"a": "member", "b": "credit deliveries"}, (), ""),
    Message(
        Type.DELIVER,
        "broker",
        {
            "a": "range id",
            "b": "first offset",
            "c": "last offset",
            "d": "seal epoch",
            "e": "attempt",
            "f": "group generation",
            "n": "records",
            "partition": "partition",
            "flags": "MAYBE_REPEAT",
        },
        ("records (48 bytes each)", "payloads, concatenated"),
        "SETTLE, NACK; WORKING meanwhile",
    ),
    Message(
        Type.SETTLE,
        "consumer",
        {"a": "range id", "b": "rows rejected", "e": "attempt", "f": "group generation", "n": "dead records"},
        ("offsets of dead records: n uint64", "reason (UTF-8)"),
        "",
    ),
    Message(
        Type.NACK,
        "consumer",
        {"a": "range id", "e": "attempt", "f": "group generation", "flags": "DEAD, FAILURE"},
        ("reason (UTF-8)",),
        "",
    ),
    Message(
        Type.WORKING,
        "consumer",
        {"a": "range id", "e": "attempt", "f": "group generation", "g": "state (1 inserting, 2 waiting)"},
        (),
        "",
    ),
    Message(Type.ERROR, "broker", {"e": "code", "a": "session or member"}, ("reason (UTF-8)",), ""),
    Message(
        Type.GAP,
        "broker",
        {"b": "first offset", "c": "last offset", "partition": "partition"},
        ("reason (UTF-8)",),
        "",
    ),
    Message(
        Type.REVOKE,
        "broker",
        {"a": "range id", "e": "attempt", "f": "group generation"},
        ("reason (UTF-8)",),
        "",
    ),
)

RECORD: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("session", "<u8"),
        ("seq", "<u8"),
        ("lowest", "<u8"),
        ("rows", "<u4"),
        ("time_ms", "<u8"),
        ("length", "<u4"),
    ]
)
"""One record in a DELIVER: 48 bytes, packed."""
RECORD_STRUCT: Final = struct.Struct("<QQQQIQI")
assert RECORD.itemsize == RECORD_STRUCT.size == 48

_RANGE: Final = struct.Struct("<QQ")
_pack = HEADER.pack


def pack(
    type: int,
    generation: int,
    *,
    flags: int = 0,
    partition: int = NO_PARTITION,
    n: int = 0,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    d: int = 0,
    e: int = 0,
    f: int = 0,
    g: int = 0,
    h: int = 0,
) -> bytes:
    """Frame 0 for any type."""
    return _pack(MAGIC, VERSION, type, flags, partition, generation, n, a, b, c, d, e, f, g, h)


def unpack(frame: bytes | memoryview) -> Header:
    """Read frame 0. Raises :class:`ProtocolError` for another length, magic or version."""
    if len(frame) != HEADER_BYTES:
        raise ProtocolError(Code.BAD_MESSAGE, f"frame 0 has {len(frame)} bytes, not {HEADER_BYTES}")
    header = Header._make(HEADER.unpack(frame))
    if header.magic != MAGIC:
        raise ProtocolError(Code.BAD_MESSAGE, "frame 0 does not start with GZB")
    if header.version != VERSION:
        raise ProtocolError(Code.BAD_VERSION, f"protocol version {header.version}; this side speaks {VERSION}")
    return header


def pack_options(options: dict[str, Any]) -> bytes:
    return json.dumps(options, separators=(",", ":")).encode()


def unpack_options(frame: bytes | memoryview) -> dict[str, Any]:
    """Read a JSON options frame of at most 64 KiB. Raises :class:`ProtocolError`."""
    if len(frame) > 65_536:
        raise ProtocolError(Code.BAD_MESSAGE, "the options are longer than 64 KiB")
    try:
        options = json.loads(bytes(frame))
    except (ValueError, RecursionError):
        raise ProtocolError(Code.BAD_MESSAGE, "the options are not JSON") from None
    if not isinstance(options, dict):
        raise ProtocolError(Code.BAD_MESSAGE, "the options are not a JSON object")
    return options


def pack_ranges(ranges: list[tuple[int, int]] | list[list[int]]) -> bytes:
    if len(ranges) == 1:  # nearly every ACK; an array for it costs ten times as much
        return _RANGE.pack(*ranges[0])
    return np.array(ranges, dtype="<u8").tobytes()


def unpack_ranges(frame: bytes | memoryview, count: int) -> list[tuple[int, int]]:
    """Pairs of (first, last). Raises :class:`ProtocolError` where the frame is not ``count`` pairs."""
    if len(frame) != 16 * count:
        raise ProtocolError(Code.BAD_MESSAGE, f"{count} ranges take {16 * count} bytes, not {len(frame)}")
    return list(_RANGE.iter_unpack(frame))


def unpack_offsets(frame: bytes | memoryview, count: int) -> list[int]:
    """``count`` uint64 offsets. Raises :class:`ProtocolError` where the frame is of another length."""
    if len(frame) != 8 * count:
        raise ProtocolError(Code.BAD_MESSAGE, f"{count} offsets take {8 * count} bytes, not {len(frame)}")
    offsets: list[int] = np.frombuffer(frame, dtype="<u8").tolist()
    return offsets


def valid_topic(name: str) -> bool:
    """Letters, digits, ``. _ -``; it names a directory, so no leading dot and at most 200 bytes."""
    return (
        bool(name)
        and len(name) <= TOPIC_BYTES_MAX
        and name[0] not in ".-"
        and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    )
