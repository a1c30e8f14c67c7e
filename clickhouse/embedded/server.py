"""The embedded server: ClickHouse's HTTP interface in front of the engine in this process.

Threads: one a connection (bounded), one that watches the clients of running queries for hanging up. Order in a
request: user, body (whole or refused, R12), statement, query.
"""

from __future__ import annotations

import io
import logging
import select
import socket
import socketserver
import threading
import time
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from wsgiref.types import WSGIApplication

from clickhouse.embedded.engine import Engine, EngineError
from clickhouse.embedded.execute import Executor
from clickhouse.embedded.request import BodyCut, Request, decode, parse_target, read_body, statement
from clickhouse.embedded.response import Response
from clickhouse.embedded.sessions import Sessions
from clickhouse.embedded.statement import INSERT, StatementError
from clickhouse.embedded.users import Users

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 1024
IDLE_SECONDS: Final = 60
"""Keep-alive of an idle connection, and the longest silence within a request."""
_OWN_PAGES: Final = ("/health", "/healthz", "/readyz", "/metrics")
_WATCH_SECONDS: Final = 0.2


class Counters:
    """What the server has done; read by metrics and health."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.queries = 0
        self.inserts = 0
        self.rows_inserted = 0
        self.errors = 0
        self.bodies_refused = 0
        self.queries_cancelled = 0
        self.connections = 0

    def add(self, **amounts: int) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


class Watcher:
    """Cancels queries whose client has hung up."""

    def __init__(self, engine: Engine, counters: Counters) -> None:
        self._engine = engine
        self._counters = counters
        self._lock = threading.Lock()
        self._watched: dict[int, str] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client-watch", daemon=True)
        self._thread.start()

    def watch(self, sock: socket.socket, query_id: str) -> None:
        with self._lock:
            self._watched[sock.fileno()] = query_id

    def unwatch(self, sock: socket.socket) -> None:
        with self._lock:
            self._watched.pop(sock.fileno(), None)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stopped.wait(_WATCH_SECONDS):
            with self._lock:
                watched = dict(self._watched)
            if not watched:
                continue
            poll = select.poll()
            for descriptor in watched:
                poll.register(descriptor, select.POLLRDHUP)
            for descriptor, events in poll.poll(0):
                if events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL):
                    with self._lock:
                        query_id = self._watched.get(descriptor)
                        if query_id != watched[descriptor]:
                            continue
                        del self._watched[descriptor]
                    log.info("cancelled: its client hung up", extra={"query_id": query_id})
                    self._counters.add(queries_cancelled=1)
                    self._engine.kill(query_id)


class StoreServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Serves on an already listening socket until :meth:`stop`."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        sock: socket.socket,
        engine: Engine,
        users: Users,
        *,
        body_bytes_max: int,
        own_pages: WSGIApplication | None,
    ) -> None:
        socketserver.BaseServer.__init__(self, sock.getsockname(), _Handler)
        self.socket = sock
        self.engine = engine
        self.users = users
        self.sessions = Sessions(engine)
        self.executor = Executor(engine, self.sessions)
        self.counters = Counters()
        self.watcher = Watcher(engine, self.counters)
        self.body_bytes_max = body_bytes_max
        self.own_pages = own_pages
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="accept", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, drain_seconds: float) -> int:
        """Stop accepting, let queries finish, close. Returns how many queries had to be killed."""
        self.shutdown()
        self.socket.close()
        # Idle connections first: their threads wait for a next request that must not come any more.
        self._shut(socket.SHUT_RD)
        killed = self.engine.close(drain_seconds)
        self.watcher.stop()
        self.sessions.close()
        self._shut(socket.SHUT_RDWR)
        return killed

    def _shut(self, how: int) -> None:
        with self._open_lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(how)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            with suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.shutdown_request(request)
            return
        with self._open_lock:
            self._open.add(request)
        self.counters.add(connections=1)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.discard(request)
            self.counters.add(connections=-1)
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("a connection's thread failed", extra={"client": str(client_address)})


class _Handler(BaseHTTPRequestHandler):
    server: StoreServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    rbufsize = 1 << 16

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_OPTIONS = do_GET

    def _answer(self) -> None:
        received = time.monotonic()
        server = self.server
        path, params = parse_target(self.path)
        request = Request(self.command, path, self.headers, params, received)  # type: ignore[arg-type]
        query_id = params.get("query_id") or str(uuid.uuid4())
        engine = server.engine
        response = Response(self.connection.sendall, version=engine.version, head_only=self.command == "HEAD")
        response.close_connection = self.close_connection
        response.headers = {
            "Date": self.date_time_string(),
            "X-ClickHouse-Server-Display-Name": engine.display_name,
            "X-ClickHouse-Query-Id": query_id,
            "X-ClickHouse-Timezone": engine.timezone,
            "Keep-Alive": f"timeout={IDLE_SECONDS}",
        }
        try:
            body = read_body(
                self.rfile, self.headers, server.body_bytes_max, received + engine.limits.execution_seconds
            )
        except (BodyCut, ConnectionError, TimeoutError) as e:
            # Nothing of it is used, and what comes next on this connection has no meaning.
            server.counters.add(bodies_refused=1)
            log.warning("refused a body that did not come whole", extra={"query_id": query_id, "reason": str(e)})
            response.close_connection = self.close_connection = True
            with suppress(OSError):
                response.fail(EngineError.of(3, "UNEXPECTED_END_OF_FILE", f"The body did not come whole: {e}"))
            return
        except EngineError as e:
            response.close_connection = self.close_connection = True
            response.fail(e)
            return
        try:
            if self._page(request, response):
                return
            self._query(request, body, query_id, response)
        except (EngineError, StatementError) as e:
            server.counters.add(errors=1)
            response.fail(e if isinstance(e, EngineError) else EngineError(str(e)))
        except OSError as e:
            log.info("the client left", extra={"query_id": query_id, "reason": str(e)})
            self.close_connection = True
        except Exception as e:
            server.counters.add(errors=1)
            log.exception("a request failed here", extra={"query_id": query_id})
            response.fail(EngineError.of(1001, "STD_EXCEPTION", f"The server failed: {e!r}"))
        finally:
            response.discard()
            if response.close_connection:
                self.close_connection = True

    def _query(self, request: Request, body: bytes, query_id: str, response: Response) -> None:
        server = self.server
        user = server.users.authenticate(self.headers, request.params)  # type: ignore[arg-type]
        decode(request, body, server.body_bytes_max)
        found = statement(request)
        is_insert = found.verb == INSERT
        cancels = not is_insert and request.switch("cancel_http_readonly_queries_on_client_close", default=True)
        with server.engine.running(query_id, user.name, is_insert):
            if cancels:
                server.watcher.watch(self.connection, query_id)
            try:
                rows = server.executor.run(request, found, user, query_id, response)
            finally:
                if cancels:
                    server.watcher.unwatch(self.connection)
        server.counters.add(queries=1, inserts=int(is_insert), rows_inserted=rows)
        response.finish()

    def _page(self, request: Request, response: Response) -> bool:
        """Answers that are no queries. True if this was one."""
        if request.path in ("/ping", "/replicas_status") or (
            request.path == "/" and request.method in ("GET", "HEAD") and "query" not in request.params
        ):
            response.headers["Content-Type"] = "text/html; charset=UTF-8"
            response.write(b"Ok.\n")
            response.finish()
            return True
        if request.path in _OWN_PAGES and self.server.own_pages is not None:
            self._own_page(request)
            return True
        if request.method == "OPTIONS":
            response.headers["Allow"] = "GET, HEAD, POST, PUT, OPTIONS"
            response.finish()
            return True
        if request.path not in ("/", "/query"):
            pages = ", ".join(("/", "/ping", *_OWN_PAGES))
            response.fail(EngineError.of(60, "UNKNOWN_TABLE", f"There is no handle {request.path}; there are {pages}"))
            return True
        return False

    def _own_page(self, request: Request) -> None:
        assert self.server.own_pages is not None
        environ = {
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": self.path.partition("?")[2],
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
            "wsgi.input": io.BytesIO(),
            "wsgi.url_scheme": "http",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "0",
            "SERVER_PROTOCOL": "HTTP/1.1",
        }
        head: list[str] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
            head.append(f"HTTP/1.1 {status}")
            head.extend(f"{name}: {value}" for name, value in headers if name.lower() != "content-length")

        body = b"".join(self.server.own_pages(environ, start_response))  # type: ignore[arg-type]
        head.append(f"Content-Length: {len(body)}")
        self.connection.sendall("\r\n".join((*head, "", "")).encode() + body)
