"""The listening side: Granian inside this process, on a socket that this process bound itself.

One process, one Python: rate limits, caches, uploads and live tails need no sharing. More throughput is more
processes behind a load balancer, with ``--redis-url`` for what they share.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from threading import Event, Thread
from typing import Final

import uvloop
from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.server.embed import Server

from api.bridge import Bridge

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
STOP_POLL_SECONDS: Final = 0.05


class _Granian(Server):
    """Granian's embedded server, listening on a socket that exists already.

    Its own would be bound with SO_REUSEPORT, with which two API processes share a port without a word, and it
    could not tell which port ``:0`` became.
    """

    def __init__(self, bridge: Bridge, sock: socket.socket, tls: tuple[Path, Path] | None) -> None:
        super().__init__(
            bridge,
            interface=Interfaces.RSGI,
            websockets=True,
            log_enabled=False,
            backlog=BACKLOG,
            backpressure=BACKLOG,
            ssl_cert=tls[0] if tls else None,
            ssl_key=tls[1] if tls else None,
        )
        self._sock = sock

    def _init_shared_socket(self) -> None:
        self._shd = SocketHolder(self._sock.fileno(), False, BACKLOG)
        self._sfd = self._sock.fileno()
        self._ssp = None


def serve(
    bridge: Bridge, sock: socket.socket, stopping: Event, *, drain_seconds: float, tls: tuple[Path, Path] | None = None
) -> None:
    """Serve until ``stopping``, then finish what is being answered, for ``drain_seconds`` at most.

    The event loop runs in a thread of its own: in the main thread it would take the signals' wake-up pipe away from
    :mod:`telemetry.signals`. Raises what made the loop end.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            uvloop.run(_serve(bridge, sock, stopping, drain_seconds, tls))
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run, name="http", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
    if failed:
        raise failed[0]


async def _serve(
    bridge: Bridge, sock: socket.socket, stopping: Event, drain_seconds: float, tls: tuple[Path, Path] | None
) -> None:
    loop = asyncio.get_running_loop()
    server = _Granian(bridge, sock, tls)
    serving = asyncio.ensure_future(server.serve())
    while not stopping.is_set() and not serving.done():
        await asyncio.sleep(STOP_POLL_SECONDS)
    until = loop.time() + drain_seconds
    bridge.close_tails()
    while bridge.active and loop.time() < until:
        await asyncio.sleep(STOP_POLL_SECONDS)
    if bridge.active:
        log.warning("requests were cut off at the end of the drain", extra={"requests": bridge.active})
    server.stop()
    try:
        await asyncio.wait_for(serving, max(1.0, until - loop.time()))
    except TimeoutError:
        log.warning("the server did not stop in time")
    bridge.shutdown()
