"""An answer on its way: headers as late as possible, so that an error can still become a status.

Small answers leave whole with their length. Longer ones leave in chunks while the query runs, unless the client
asked to wait for its end. An error in the middle of a stream can no longer be a status: it is written in the framing
that clients of ClickHouse look for, and the connection ends without the closing chunk, so that nobody takes half a
result for a whole one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, BinaryIO, Final

from clickhouse.embedded import codecs
from clickhouse.embedded.engine import EngineError

BUFFER_BYTES: Final = 1 << 20
"""Answers up to this size are sent whole."""
WAIT_BUFFER_BYTES: Final = 16 << 20
"""Held in memory when the client waits for the end; the rest goes to a temporary file."""

_STATUS: Final = (
    dict.fromkeys((194,), 401)
    | dict.fromkeys((192, 193, 497, 516), 403)
    | dict.fromkeys(
        (1, 3, 4, 6, 20, 26, 27, 32, 33, 36, 38, 41, 42, 43, 44, 53, 62, 69, 70, 72, 117, 131, 271, 321, 349, 372, 373,
         386, 456, 457, 469),
        400,
    )
    | dict.fromkeys((16, 46, 47, 50, 56, 60, 63, 73, 81, 115), 404)
    | {48: 501, 159: 408, 202: 503, 236: 503, 241: 500, 307: 413, 439: 503}
)  # fmt: skip


_TAG_KEY: Final = secrets.token_bytes(16)
_tags = itertools.count()


def _tag() -> str:
    """What marks an error in the middle of a result: nobody can know it beforehand and put it into the data.

    Asking the kernel for it would make every question wait for the interpreter (see telemetry.ids).
    """
    return hashlib.blake2b(next(_tags).to_bytes(8, "little"), key=_TAG_KEY, digest_size=8).hexdigest()


def http_status(code: int) -> int:
    """The status that the HTTP interface gives for an error code."""
    return _STATUS.get(code, 500)


class Response:
    """Collects an answer and sends it through ``send`` (the socket's ``sendall``)."""

    def __init__(self, send: Callable[[bytes], Any], *, version: str, head_only: bool = False) -> None:
        self._send = send
        self._head_only = head_only
        self.server_version = version
        self.headers: dict[str, str] = {}
        self.coding = ""
        self.framed = False
        self.wait = False
        self.started = False
        """The status line has left."""
        self.close_connection = False
        self.exception_tag = _tag()
        self._compressor: codecs.Compressor | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._file: BinaryIO | None = None
        self._progress_at = 0.0
        self._head_open = False
        self.progress_interval_s = 0.0
        self._summary: dict[str, int] = {}

    def write(self, piece: bytes) -> None:
        """Add a piece of the body; may send."""
        if not piece:
            return
        if self._compressor is None and (self.coding or self.framed):
            self._compressor = codecs.Framing() if self.framed else codecs.compressor(self.coding)
        if self._compressor is not None:
            piece = self._compressor.compress(piece)
        self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        if self.started and not self._head_open and not self.wait:
            self._chunk(piece)
            return
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self.wait:
            if self._held_bytes > WAIT_BUFFER_BYTES:
                if self._file is None:
                    self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish()
                self._file.writelines(self._held)
                self._held, self._held_bytes = [], 0
        elif self._held_bytes > BUFFER_BYTES:
            self._begin_stream()

    def _begin_stream(self) -> None:
        self.headers["Transfer-Encoding"] = "chunked"
        self._head(200)
        for piece in self._held:
            self._chunk(piece)
        self._held, self._held_bytes = [], 0

    def _chunk(self, piece: bytes) -> None:
        if not self._head_only:
            self._send(b"%x\r\n%b\r\n" % (len(piece), piece))

    def progress(self, told: dict[str, int]) -> None:
        """Called while the query runs: keeps a waiting client's connection alive with progress headers."""
        now = time.monotonic()
        if self.started and not self._head_open:
            return
        if not self._progress_at:
            self._progress_at = now
        if now - self._progress_at < self.progress_interval_s:
            return
        self._progress_at = now
        if not self.started:
            self._send(b"HTTP/1.1 200 OK\r\n")
            self.started = self._head_open = True
        self._send(f"X-ClickHouse-Progress: {_counts(told)}\r\n".encode())

    def summary(self, told: dict[str, int]) -> None:
        self._summary = told

    def finish(self) -> None:
        """Send what is left."""
        if self._compressor is not None:
            self._keep(self._compressor.flush())
        if self.started and not self._head_open:
            if not self._head_only:
                self._send(b"0\r\n\r\n")
            return
        size = self._held_bytes + (self._file.tell() if self._file is not None else 0)
        self.headers["Content-Length"] = str(size)
        if self._head_only:
            self._head(200)
        elif size <= BUFFER_BYTES:
            self._head(200, self._held)
        else:
            self._head(200)
            if self._file is not None:
                self._file.seek(0)
                while block := self._file.read(BUFFER_BYTES):
                    self._send(block)
            for piece in self._held:
                self._send(piece)
        self.discard()

    def fail(self, error: EngineError) -> None:
        """Send an error: as a status where nothing has left yet."""
        text = f"{error} (version {self.server_version})\n"
        if self.started and not self._head_open:
            tag = self.exception_tag
            framed = f"\r\n__exception__\r\n{tag}\r\n{text}\n{len(text) + 1} {tag}\r\n__exception__\r\n".encode()
            if self._compressor is not None:
                framed = self._compressor.compress(framed) + self._compressor.flush()
            self._chunk(framed)
            # No closing chunk: the result is not whole.
            self.close_connection = True
            return
        self.discard()
        body = text.encode()
        for name in ("Content-Encoding", "Transfer-Encoding", "X-ClickHouse-Format"):
            self.headers.pop(name, None)
        self.headers["Content-Type"] = "text/plain; charset=UTF-8"
        self.headers["Content-Length"] = str(len(body))
        self.headers["X-ClickHouse-Exception-Code"] = str(error.code)
        if error.code == 194:
            self.headers["WWW-Authenticate"] = 'Basic realm="ClickHouse server HTTP API"'
        self._head(http_status(error.code), () if self._head_only else (body,))

    def discard(self) -> None:
        """Forget what is held."""
        self._held, self._held_bytes = [], 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _head(self, status: int, body: Sequence[bytes] = ()) -> None:
        """Send the headers, and with them what there is of the body: a client that waits is woken once."""
        if self._summary or self._head_open:
            self.headers["X-ClickHouse-Summary"] = _counts(self._summary)
        if "Content-Length" not in self.headers and "Transfer-Encoding" not in self.headers:
            self.headers["Content-Length"] = "0"
        lines = [] if self._head_open else [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines.append(f"Connection: {'close' if self.close_connection else 'Keep-Alive'}")
        self._send(b"".join(("\r\n".join((*lines, "", "")).encode("latin-1", "replace"), *body)))
        self.started, self._head_open = True, False


_COUNTS: Final = (
    *("read_rows", "read_bytes", "written_rows", "written_bytes", "total_rows_to_read"),
    *("result_rows", "result_bytes", "elapsed_ns"),
)


def _counts(told: dict[str, int]) -> str:
    """The JSON of progress and summary headers: numbers as strings, as ClickHouse writes them."""
    return json.dumps({name: str(told.get(name, 0)) for name in _COUNTS}, separators=(",", ":"))
