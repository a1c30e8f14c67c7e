"""The embedded server: ClickHouse's HTTP interface in front of the engine in this process.

Threads: one a connection (bounded), one that watches the clients of running queries for hanging up. Order in a
request: user, body (whole or refused, R12), statement, query.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from wsgiref.types import WSGIApplication

from clickhouse.embedded.engine import Engine, EngineError, Ticket
from clickhouse.embedded.execute import Executor
from clickhouse.embedded.request import BodyCut, Budget, Request, decode, parse_target, read_body, statement
from clickhouse.embedded.response import Response
from clickhouse.embedded.sessions import Sessions
from clickhouse.embedded.space import SpaceGuard
from clickhouse.embedded.statement import INSERT, StatementError
from clickhouse.embedded.turns import Turns
from clickhouse.embedded.users import User, Users
from clickhouse.embedded.watch import Watcher
from telemetry.ids import unique_id

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 1024
IDLE_SECONDS: Final = 60
"""Keep-alive of an idle connection, and the longest silence within a request."""
_QUERY_PATHS: Final = ("/", "/query")
_PING_PATHS: Final = ("/ping", "/replicas_status")
_OWN_PAGES: Final = ("/health", "/healthz", "/readyz", "/metrics")


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
        self.space = SpaceGuard(engine)
        self.executor = Executor(engine, self.sessions, self.space)
        # Two at least: the wake-ups between question and answer leave half of a single place's time unused.
        self.turns = Turns(max(2, os.cpu_count() or 1))
        self.counters = Counters()
        self.watcher = Watcher(self._hung_up)
        self.body_bytes_max = body_bytes_max
        # A body is held twice for the time of its insert: as it came, and as the file that the engine reads.
        self.budget = Budget(engine.limits.memory_bytes // 4)
        self.own_pages = own_pages
        host, port = sock.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="accept", daemon=True)

    def start(self) -> None:
        self.space.start()
        self._thread.start()

    def _hung_up(self, query_id: str) -> None:
        self.counters.add(queries_cancelled=1)
        # It may still wait for its turn.
        self.engine.kill_announced({query_id})
        self.engine.kill(query_id)

    def stop(self, drain_seconds: float) -> int:
        """Stop accepting, let queries finish, close. Returns how many queries had to be killed."""
        self.shutdown()
        self.socket.close()
        self.space.stop()
        # It would take the next step for clients that hang up.
        self.watcher.stop()
        # Idle connections first: their threads wait for a next request that must not come any more.
        self._shut(socket.SHUT_RD)
        self.executor.close()
        killed = self.engine.close(drain_seconds)
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


def _is_query(request: Request) -> bool:
    if request.method in ("GET", "HEAD") and "query" not in request.params:
        return request.path == "/query"
    return request.path in _QUERY_PATHS and request.method != "OPTIONS"


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
        query_id = params.get("query_id") or unique_id()
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
        with engine.ticket(query_id) as ticket:
            try:
                self._serve(request, ticket, response)
            except BodyCut as e:
                # Nothing of it is used, and what comes next on this connection has no meaning.
                server.counters.add(bodies_refused=1)
                log.warning("refused a body that did not come whole", extra={"query_id": query_id, "reason": str(e)})
                response.close_connection = True
                with suppress(OSError):
                    response.fail(EngineError.of(3, "UNEXPECTED_END_OF_FILE", f"The body did not come whole: {e}"))
            except (EngineError, StatementError) as e:
                server.counters.add(errors=1)
                response.fail(e if isinstance(e, EngineError) else EngineError(str(e)))
            except OSError as e:
                log.info("the client left", extra={"query_id": query_id, "reason": str(e)})
                response.close_connection = True
            except Exception as e:
                server.counters.add(errors=1)
                log.exception("a request failed here", extra={"query_id": query_id})
                response.fail(EngineError.of(1001, "STD_EXCEPTION", f"The server failed: {e!r}"))
            finally:
                response.discard()
                if response.close_connection:
                    self.close_connection = True

    def _serve(self, request: Request, ticket: Ticket, response: Response) -> None:
        server = self.server
        if not _is_query(request):
            # Pages take no body: one that comes would be taken for the next request.
            response.close_connection = response.close_connection or self._has_body()
            self._page(request, response)
            return
        try:
            user = server.users.authenticate(self.headers, request.params)  # type: ignore[arg-type]
        except EngineError:
            # Whoever is not known gets no memory for a body.
            response.close_connection = self._has_body()
            raise
        with server.budget.reserve() as take:
            body = self._body(request, ticket, response, user, take) if self._has_body() else b""
            ticket.check()
            self._query(request, body, user, ticket, response)

    def _has_body(self) -> bool:
        return self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers

    def _body(
        self, request: Request, ticket: Ticket, response: Response, user: User, take: Callable[[int], None]
    ) -> bytes:
        server = self.server
        deadline = request.received + server.engine.limits.execution_seconds
        with ExitStack() as shown:
            server.watcher.watch_body(
                ticket,
                self.connection,
                deadline,
                lambda: shown.enter_context(server.executor.announced(request, user, ticket.query_id)),
            )
            try:
                return read_body(self.rfile, self.headers, server.body_bytes_max, deadline, take)
            except (ConnectionError, TimeoutError) as e:
                raise BodyCut(str(e)) from None
            except EngineError:
                response.close_connection = True
                raise
            finally:
                server.watcher.unwatch_body(ticket)

    def _query(self, request: Request, body: bytes, user: User, ticket: Ticket, response: Response) -> None:
        server = self.server
        query_id = ticket.query_id
        decode(request, body, server.body_bytes_max)
        found = statement(request)
        is_insert = found.verb == INSERT
        cancels = not is_insert and request.switch("cancel_http_readonly_queries_on_client_close", default=True)
        with server.engine.running(query_id, user.name, is_insert):
            if cancels:
                server.watcher.watch_query(self.connection, query_id)
            try:
                with server.turns.take() if found.streams else nullcontext():
                    ticket.check()
                    rows = server.executor.run(request, found, user, query_id, response)
            finally:
                if cancels:
                    server.watcher.unwatch_query(self.connection)
        server.counters.add(queries=1, inserts=int(is_insert), rows_inserted=rows)
        response.finish()

    def _page(self, request: Request, response: Response) -> None:
        """Answers that are no queries."""
        if request.method == "OPTIONS":
            response.headers["Allow"] = "GET, HEAD, POST, PUT, OPTIONS"
            response.finish()
        elif request.path in ("/", *_PING_PATHS):
            response.headers["Content-Type"] = "text/html; charset=UTF-8"
            response.write(b"Ok.\n")
            response.finish()
        elif request.path in _OWN_PAGES and self.server.own_pages is not None:
            self._own_page(request)
        else:
            pages = ", ".join(("/", *_PING_PATHS, *_OWN_PAGES))
            response.fail(EngineError.of(60, "UNKNOWN_TABLE", f"There is no handle {request.path}; there are {pages}"))

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
