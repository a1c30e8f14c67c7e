"""A request as it came: parameters, user, and a body that is whole or refused."""

from __future__ import annotations

import email.parser
import email.policy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Final
from urllib.parse import parse_qsl

from clickhouse.embedded import codecs
from clickhouse.embedded.engine import EngineError
from clickhouse.embedded.statement import Statement, cut

# Parameters that speak to the HTTP interface. Everything else in the URL is a setting.
_RESERVED: Final = frozenset(
    {
        *("query", "database", "user", "password", "quota_key", "role", "readonly"),
        *("query_id", "log_comment", "session_id", "session_timeout", "session_check", "close_session"),
        *("default_format", "compress", "decompress", "enable_http_compression", "client_protocol_version"),
        *("http_native_compression_disable_checksumming_on_decompress", "stacktrace", "no_cache"),
        *("buffer_size", "wait_end_of_query", "http_wait_end_of_query", "send_progress_in_http_headers"),
        *("http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close"),
    }
)


class BodyCut(Exception):
    """The connection ended, or the time was over, before the body was whole. Nothing of it may be used (R12)."""


@dataclass
class ExternalTable:
    """A table that came along with the query (multipart)."""

    name: str
    format: str
    structure: str
    data: bytes


@dataclass
class Request:
    """Everything that a query needs from HTTP."""

    method: str
    path: str
    headers: Mapping[str, str]
    params: dict[str, str]
    received: float
    """When its first line was read, by the monotonic clock."""
    query: bytes = b""
    """Of the URL, or of a form."""
    body: bytes = b""
    """Goes on where ``query`` ends: the whole statement, its end, or the data of an INSERT."""
    external: list[ExternalTable] = field(default_factory=list)

    def switch(self, name: str, default: bool = False) -> bool:
        value = self.params.get(name, "")
        return value.lower() in ("1", "true", "yes", "on") if value else default

    @property
    def settings(self) -> dict[str, str]:
        """What the request sets for its query."""
        return {
            name: value
            for name, value in self.params.items()
            if name not in _RESERVED and not name.startswith("param_") and not self._of_external(name)
        }

    @property
    def bound(self) -> dict[str, str]:
        """Values of ``{name:Type}``."""
        return {name[6:]: value for name, value in self.params.items() if name.startswith("param_")}

    def _of_external(self, name: str) -> bool:
        return any(name in (f"{t.name}_format", f"{t.name}_types", f"{t.name}_structure") for t in self.external)


def parse_target(target: str) -> tuple[str, dict[str, str]]:
    """Path and parameters of a request line's target; of a repeated parameter the last counts."""
    path, _, query = target.partition("?")
    return path, dict(parse_qsl(query, keep_blank_values=True, max_num_fields=10_000))


class Budget:
    """Bytes of all bodies that are held at a time: a bound of the server's memory, whatever clients send."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._held = 0

    @contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes bytes, or raises :class:`EngineError` 241; all are given back at the end."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            with self._lock:
                # A single body may be as long as --max-body says, however little the budget is.
                if self._held and self._held + size > self.bytes_max:
                    raise EngineError.of(
                        241, "MEMORY_LIMIT_EXCEEDED", f"Bodies of {self._held} bytes are being read: try again shortly"
                    )
                self._held += size
            mine += size

        try:
            yield take
        finally:
            with self._lock:
                self._held -= mine


def read_body(
    source: BinaryIO, headers: Mapping[str, str], bytes_max: int, deadline: float, take: Callable[[int], None]
) -> bytes:
    """The whole body. Raises :class:`BodyCut`, or :class:`EngineError` if it is longer than ``bytes_max``.

    ``take`` is told sizes before they are read and raises where there is no room.
    It blocks for as long as the client takes; :class:`clickhouse.embedded.watch.Watcher` ends that by the deadline.
    """
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        body = _read_chunked(source, bytes_max, take)
    else:
        length = headers.get("Content-Length", "0") or "0"
        if not length.isdecimal():
            raise BodyCut(f"Content-Length {length!r} is no number")
        if int(length) > bytes_max:
            raise _too_large(bytes_max)
        take(int(length))
        body = source.read(int(length)) if int(length) else b""
        if len(body) != int(length):
            raise BodyCut(f"{len(body)} of {length} bytes came")
    if time.monotonic() > deadline:
        raise BodyCut("it took longer than an insert may take")
    return body


def _too_large(bytes_max: int) -> EngineError:
    return EngineError.of(
        307, "TOO_MANY_BYTES", f"The body is longer than {bytes_max} bytes (--max-body): send less at once"
    )


def _read_chunked(source: BinaryIO, bytes_max: int, take: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        try:
            size = int(source.readline(1026).split(b";")[0], 16)
        except ValueError:
            raise BodyCut("a chunk's size is missing") from None
        if size == 0:
            break
        total += size
        if total > bytes_max:
            raise _too_large(bytes_max)
        take(size)
        part = source.read(size)
        if len(part) != size or source.readline(3) not in (b"\r\n", b"\n"):
            raise BodyCut("a chunk is cut short")
        parts.append(part)
    while True:  # trailers
        line = source.readline(65537)
        if line in (b"\r\n", b"\n"):
            return b"".join(parts)
        if not line:
            raise BodyCut("the last chunk is not closed")


def decode(request: Request, body: bytes, bytes_max: int) -> None:
    """Fill in ``request.query`` and ``request.body``: content coding, framing, forms. Raises :class:`EngineError`."""
    try:
        body = codecs.decompress(body, request.headers.get("Content-Encoding", "").strip().lower(), bytes_max)
        if request.switch("decompress"):
            unchecked = request.switch("http_native_compression_disable_checksumming_on_decompress")
            body = codecs.unframe(body, bytes_max, checksums=not unchecked)
    except codecs.CodingError as e:
        raise EngineError.of(271, "CANNOT_DECOMPRESS", str(e)) from None
    content_type = request.headers.get("Content-Type", "")
    request.query = request.params.get("query", "").encode()
    if content_type.startswith("multipart/form-data"):
        request.query += _form(request, content_type, body)
    else:
        request.body = body


def statement(request: Request) -> Statement:
    """The one statement of a request. Raises :class:`StatementError`."""
    if not request.query:
        return cut(request.body)
    if not request.body:
        return cut(request.query)
    if request.query.lstrip()[:6].upper() == b"INSERT":
        found = cut(request.query)
        if found.data is not None:
            # The usual way of clients: statement in the URL, data in the body, which need not be copied.
            return found._replace(data=memoryview(bytes(found.data) + request.body if found.data else request.body))
    return cut(request.query + b"\n" + request.body)


def _form(request: Request, content_type: str, body: bytes) -> bytes:
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
    )
    query = b""
    for part in message.iter_parts():
        name = str(part.get_param("name", "", "content-disposition"))
        content = part.get_payload(decode=True) or b""
        assert isinstance(content, bytes)
        if part.get_filename() is not None:
            request.external.append(ExternalTable(name, "", "", content))
        elif name == "query":
            query = content
        else:
            request.params[name] = content.decode()
    for table in request.external:
        table.format = request.params.get(f"{table.name}_format", "TabSeparated")
        table.structure = request.params.get(f"{table.name}_structure") or ", ".join(
            f"_{i} {kind}" for i, kind in enumerate(request.params.get(f"{table.name}_types", "").split(","), 1)
        )
    return query
