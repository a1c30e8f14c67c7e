"""The admin socket: a ROUTER in a thread of its own, one command at a time: nothing here slows the loop (R29)."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import zmq

from zmqbroker.admin.handlers import Admin, answer
from zmqbroker.admin.protocol import REQUEST_BYTES_MAX, AdminError, pack_answer, unpack_request
from zmqbroker.errors import BrokerError
from zmqbroker.security import ADMIN_DOMAIN

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from zmqbroker.server import Broker

_log = logging.getLogger(__name__)

CONNECTIONS_WAITING_MAX: Final = 100
ANSWERS_WAITING_MAX: Final = 100
"""For each client; more are dropped: it asked and does not read."""


class AdminServer:
    """Listens from :meth:`start` to :meth:`stop`. The broker must be running."""

    def __init__(self, broker: Broker, address: str, *, registry: CollectorRegistry | None = None) -> None:
        self.admin = Admin(broker, registry=registry)
        self.endpoint = ""
        self.requests = 0
        self.garbage = 0
        self._broker = broker
        self._address = address
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = threading.Event()
        self._socket: zmq.Socket[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="admin", daemon=True)

    def start(self) -> None:
        """Raises :class:`BrokerError` where the address cannot be used."""
        socket = self._broker.context.socket(zmq.ROUTER)
        socket.set(zmq.LINGER, 200)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.MAXMSGSIZE, REQUEST_BYTES_MAX)
        socket.set(zmq.SNDHWM, ANSWERS_WAITING_MAX)
        socket.set(zmq.BACKLOG, CONNECTIONS_WAITING_MAX)
        if self._broker.keys is not None:
            self._broker.keys.secure_server(socket, ADMIN_DOMAIN)
        try:
            socket.bind(self._address)
        except zmq.ZMQError as e:
            socket.close(0)
            raise BrokerError(f"cannot listen on {self._address}: {e.strerror or e}") from None
        self.endpoint = self.admin.endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        logging.getLogger("zmqbroker").addHandler(self.admin.events)
        self._socket = socket
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Before the broker stops: its context is shared."""
        self._stopping.set()
        os.eventfd_write(self._wake_fd, 1)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        logging.getLogger("zmqbroker").removeHandler(self.admin.events)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _run(self) -> None:
        assert self._socket is not None
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        while not self._stopping.is_set():
            poller.poll()
            while not self._stopping.is_set():
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                try:
                    self._answer(frames)
                except Exception:
                    _log.exception("an admin request failed")

    def _answer(self, frames: list[zmq.Frame]) -> None:
        assert self._socket is not None
        self.requests += 1
        id: Any = None
        try:
            if len(frames) != 2:
                raise AdminError("bad_request", f"a request has one frame, not {len(frames) - 1}")
            request = unpack_request(frames[1].bytes)
            id = request.id
            found = pack_answer(id, answer(self.admin, request, self._who(frames[1])))
        except AdminError as e:
            self.garbage += e.code == "bad_request"
            found = pack_answer(id, e)
        try:
            self._socket.send_multipart([frames[0].bytes, found], zmq.NOBLOCK)
        except zmq.ZMQError as e:
            _log.warning("an admin client did not take its answer", extra={"reason": e.strerror or str(e)})

    def _who(self, frame: zmq.Frame) -> str:
        """For the audit: the key's name where there are keys, else the peer's address."""
        keys = self._broker.keys
        try:
            if keys is not None:
                key = str(frame.get("User-Id"))
                return keys.allow.name(key) or key
            return str(frame.get("Peer-Address"))
        except (zmq.ZMQError, UnicodeDecodeError):
            return "unknown"
