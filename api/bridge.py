"""Granian's async interface (RSGI) on one side, the Flask application on the other.

Ordinary requests run in a pool of threads; an answer of known length goes out in one piece, a streamed one piece
by piece, each asked for only when the client has taken the one before, so that a slow client costs neither memory
nor a thread. Live tails (SSE, WebSocket) are pumped by the event loop: thousands of them cost no thread at all,
which is why this module exists (docs/adr/0050).

The Flask application stays an ordinary WSGI application: it runs under any other server and in Flask's test client.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any, Final, NamedTuple

from granian.rsgi import HTTPProtocol, ProtocolClosed, Scope, WebsocketMessageType, WebsocketProtocol

from api import live

log = logging.getLogger(__name__)

BODY_MEMORY_BYTES: Final = 1 << 20
"""A request body above this goes to a temporary file."""
STREAM_THREADS: Final = 4
"""Threads that make the pieces of streamed answers: exports take none of those that answer, and memory that a thread
keeps of what it last held is kept a few times, not once for each thread of the pool."""

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Answer(NamedTuple):
    """What the application said: the whole body, or the iterator that makes it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None
    pieces: Iterator[bytes] | None
    close: Callable[[], None]


class Bridge:
    """The RSGI application around a WSGI one."""

    def __init__(
        self, app: WSGIApp, *, threads: int, waiting_max: int = 2000, body_bytes_max: int, scheme: str = "http"
    ) -> None:
        """``waiting_max``: requests that may wait for a thread; more are refused with 503 at once."""
        self._app = app
        # Not an executor: its futures, and what ties them together, cost a sixth of the kept answers (ADR 56).
        self._requests: SimpleQueue[tuple[dict[str, Any], asyncio.AbstractEventLoop, asyncio.Future[Answer]] | None]
        self._requests = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"request_{number}", daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()
        self._streams = ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="stream")
        self._waiting_max = waiting_max
        self._body_bytes_max = body_bytes_max
        self._tails: set[live.LiveTail] = set()
        self.active = 0
        """Requests being worked on, live tails not among them."""

    def close_tails(self) -> None:
        """End every live tail, so that their clients connect elsewhere (from the event loop's thread)."""
        for tail in list(self._tails):
            tail.close()

    def shutdown(self) -> None:
        for _ in self._threads:
            self._requests.put(None)
        self._streams.shutdown(wait=False, cancel_futures=True)

    async def __rsgi__(self, scope: Scope, proto: Any) -> None:
        if scope.proto == "ws":
            await self._websocket(scope, proto)
            return
        if self.active >= self._waiting_max:
            proto.response_str(
                503, [("retry-after", "1"), ("content-type", "text/plain")], "too many requests wait already\n"
            )
            return
        self.active += 1
        try:
            tail = await self._http(scope, proto)
        finally:
            self.active -= 1
        if tail is not None:
            await self._pump_sse(proto, *tail)

    async def _http(self, scope: Scope, proto: HTTPProtocol) -> tuple[live.LiveTail, Answer] | None:
        environ = _environ(scope)
        environ[live.ASYNC_KEY] = True
        body: IO[bytes] | None = None
        if scope.method not in ("GET", "HEAD", "OPTIONS") or "content-length" in scope.headers:
            body = await self._read_body(environ, proto)
            environ["wsgi.input"] = body
        try:
            answer = await self._call(environ)
            tail = environ.get(live.LIVE_KEY)
            if tail is not None:
                return tail, answer
            if answer.body is not None:
                proto.response_bytes(answer.status, answer.headers, answer.body)
            else:
                await self._stream(proto, answer)
        except ProtocolClosed:
            pass
        finally:
            if body is not None:
                body.close()
        return None

    async def _call(self, environ: dict[str, Any]) -> Answer:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()
        self._requests.put((environ, loop, answered))
        return await answered

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            self._answer(*request)
            del request  # Or it would be kept until the next one comes.

    def _answer(
        self, environ: dict[str, Any], loop: asyncio.AbstractEventLoop, answered: asyncio.Future[Answer]
    ) -> None:
        answer, failure = None, None
        try:
            answer = self._run(environ)
        except BaseException as error:
            failure = error
        # The loop is gone where this was the last request of a process that could not wait for it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, answered, answer, failure)

    def _run(self, environ: dict[str, Any]) -> Answer:
        """Call the application; in a thread of the pool."""
        said: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            said[:] = [int(status[:3]), [(name.lower(), value) for name, value in headers]]

        result = self._app(environ, start_response)
        close = getattr(result, "close", lambda: None)
        status, headers = said
        if live.LIVE_KEY in environ:
            # What follows has no length, whatever the empty body of the view's response had.
            headers = [(name, value) for name, value in headers if name != "content-length"]
            return Answer(status, headers, None, None, close)
        if (
            status in (204, 304)
            or any(name == "content-length" for name, _ in headers)
            or environ["REQUEST_METHOD"] == "HEAD"
        ):
            try:
                return Answer(status, headers, b"".join(result), None, close)
            finally:
                close()
        return Answer(status, headers, None, iter(result), close)

    async def _read_body(self, environ: dict[str, Any], proto: HTTPProtocol) -> IO[bytes]:
        declared = environ.get("CONTENT_LENGTH")
        if declared and declared.isdigit() and int(declared) > self._body_bytes_max:
            # Not read at all: the application sees the length and answers 413.
            return io.BytesIO()
        body = tempfile.SpooledTemporaryFile(max_size=BODY_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
        size = 0
        async for chunk in proto:
            size += len(chunk)
            if size > self._body_bytes_max:
                break
            body.write(chunk)
        body.seek(0)
        environ["CONTENT_LENGTH"] = str(size)
        return body

    async def _stream(self, proto: HTTPProtocol, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        pieces = answer.pieces
        assert pieces is not None
        try:
            first = await loop.run_in_executor(self._streams, next, pieces, None)
            transport = proto.response_stream(answer.status, answer.headers)
            piece = first
            while piece is not None:
                if piece:
                    await transport.send_bytes(piece)
                piece = await loop.run_in_executor(self._streams, next, pieces, None)
        except ProtocolClosed:
            pass
        except Exception:
            # The status line is out: all that is left is to end the connection short, which the client notices.
            log.exception("a streamed answer failed half-way")
            raise
        finally:
            await loop.run_in_executor(self._streams, answer.close)

    async def _pump_sse(self, proto: HTTPProtocol, tail: live.LiveTail, answer: Answer) -> None:
        gone = asyncio.ensure_future(proto.client_disconnect())
        try:
            transport = proto.response_stream(answer.status, answer.headers)
            await transport.send_bytes(live.sse_hello())
            async for events in self._events(tail, gone):
                await transport.send_bytes(b"".join(map(live.sse_frame, events)) if events else live.SSE_HEARTBEAT)
        except ProtocolClosed:
            pass
        finally:
            gone.cancel()
            answer.close()

    async def _events(self, tail: live.LiveTail, gone: asyncio.Future[Any]) -> Any:
        """What the tail owes, as it comes; an empty list when it is time for a heartbeat."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        tail.on_event(lambda: loop.call_soon_threadsafe(woken.set))
        self._tails.add(tail)
        try:
            while not gone.done():
                events = tail.take()
                if events:
                    yield events
                    continue
                if tail.closed:
                    return
                waiting = asyncio.ensure_future(woken.wait())
                await asyncio.wait({waiting, gone}, timeout=live.HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    if not gone.done():
                        yield []
                woken.clear()
        finally:
            self._tails.discard(tail)
            tail.on_event(None)
            tail.close()

    async def _websocket(self, scope: Scope, proto: WebsocketProtocol) -> None:
        environ = _environ(scope)
        environ[live.ASYNC_KEY] = environ[live.WEBSOCKET_KEY] = True
        # With it werkzeug would look for routes that are marked as WebSockets.
        environ.pop("HTTP_UPGRADE", None)
        answer = await self._call(environ)
        tail = environ.get(live.LIVE_KEY)
        answer.close()
        if tail is None:
            proto.close(answer.status)
            return
        transport = await proto.accept()
        gone = asyncio.ensure_future(_until_closed(transport))
        try:
            async for events in self._events(tail, gone):
                for event in events:
                    await transport.send_str(live.websocket_frame(event))
                if not events:
                    await transport.send_str(live.heartbeat_frame())
        except ProtocolClosed:
            pass
        finally:
            gone.cancel()
            proto.close(1001)


def _settle(answered: asyncio.Future[Answer], answer: Answer | None, failure: BaseException | None) -> None:
    """Tell the event loop's side; it may have given the request up."""
    if answered.done():
        return
    if failure is not None:
        answered.set_exception(failure)
    elif answer is not None:
        answered.set_result(answer)


async def _until_closed(transport: Any) -> None:
    """Read and drop what the client says until it goes away."""
    while True:
        message = await transport.receive()
        if message.kind == WebsocketMessageType.close:
            return


def _environ(scope: Scope) -> dict[str, Any]:
    host, _, port = scope.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "REMOTE_ADDR": scope.client.rpartition(":")[0].strip("[]"),
        "SERVER_NAME": host.strip("[]"),
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme.replace("ws", "http"),
        "wsgi.input": io.BytesIO(),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        if name == "content-type":
            environ["CONTENT_TYPE"] = value
        elif name == "content-length":
            environ["CONTENT_LENGTH"] = value
        else:
            key = "HTTP_" + name.upper().replace("-", "_")
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    if scope.authority and "HTTP_HOST" not in environ:
        environ["HTTP_HOST"] = scope.authority
    return environ
