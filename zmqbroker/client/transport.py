"""The clients' socket and thread: one DEALER, one conversation (:class:`.conversation.Conversation`).

``IMMEDIATE`` keeps messages from being queued for a connection that does not exist; what is queued for one that dies
is lost with it, and the conversation, which begins anew, sends again what was not acked. After too long a silence the
socket is closed and opened again, so that nothing queued for a dead peer floods it on its return.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from zmqbroker import protocol
from zmqbroker.client.conversation import Conversation
from zmqbroker.errors import ProtocolError
from zmqbroker.protocol import Type
from zmqbroker.sockets import receiver, sender

_log = logging.getLogger(__name__)
_RETRY_S = 0.05
"""While there is no connection: how often one is looked for."""


class Link(threading.Thread):
    """Drives one conversation over one address. ``lock`` guards the conversation against the application's threads."""

    def __init__(
        self,
        address: str,
        conversation: Conversation,
        lock: threading.Condition,
        *,
        name: str,
        secure: Callable[[zmq.Socket[Any]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._addresses = [a.strip() for a in address.split(",")]
        self._address = self._addresses[0]
        self._conversation = conversation
        self._lock = lock
        self._secure = secure
        self._clock = clock
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ending = threading.Event()
        self.asleep = False
        self._context: zmq.Context[Any] = zmq.Context.instance()
        self.reopened = 0

    def wake(self) -> None:
        """There is something to send."""
        if self.asleep:
            self.asleep = False
            os.eventfd_write(self._wake_fd, 1)

    def end(self, timeout_s: float) -> None:
        """Stop after sending what is due. The conversation should have been told to close."""
        self._ending.set()
        # The thread may end by itself as soon as it sees that; so the descriptor is closed here, after its last use.
        os.eventfd_write(self._wake_fd, 1)
        self.join(timeout_s)
        if not self.is_alive():
            self.asleep = False
            os.close(self._wake_fd)

    def _open(self) -> zmq.Socket[Any]:
        socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.RECONNECT_IVL, 50)
        socket.set(zmq.RECONNECT_IVL_MAX, 1000)
        if self._secure is not None:
            self._secure(socket)
        # Several addresses are tried in turn: each time the present one has been silent for too long.
        self._address = self._addresses[self.reopened % len(self._addresses)]
        socket.connect(self._address)
        return socket

    def run(self) -> None:
        socket = self._open()
        poller = self._poller(socket)
        conversation, lock, clock = self._conversation, self._lock, self._clock
        with lock:
            conversation.begin(clock())
        try:
            while True:
                now = clock()
                with lock:
                    if conversation.stale(now):
                        stale = True
                    else:
                        stale = False
                        out = conversation.outgoing(now)
                        wait_s = 0.0 if len(out) > 1 else conversation.due_in(now)
                        self.asleep = True
                if stale:
                    poller.unregister(socket)
                    socket.close(0)
                    self.reopened += 1
                    socket = self._open()
                    poller = self._poller(socket)
                    with lock:
                        conversation.begin(now)
                    continue
                if not self._send(socket, out):
                    wait_s = _RETRY_S
                if self._ending.is_set() and not out:
                    return
                ready = dict(poller.poll(0 if self._ending.is_set() else int(min(wait_s, 1.0) * 1000 + 0.999)))
                self.asleep = False
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                if socket in ready:
                    self._receive(socket)
        except Exception:
            _log.exception("the link to %s failed", self._address)
            raise
        finally:
            # What was said last (BYE, acks) should get out, if anybody is there.
            socket.close(200)

    def _poller(self, socket: zmq.Socket[Any]) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        return poller

    def _send(self, socket: zmq.Socket[Any], out: list[list[bytes]]) -> bool:
        """False where there is no connection."""
        send = sender(socket)
        for i, message in enumerate(out):
            try:
                send(message)
            except zmq.Again:
                with self._lock:
                    self._conversation.unsent(out[i:], self._clock() + _RETRY_S)
                return False
        return True

    def _receive(self, socket: zmq.Socket[Any]) -> None:
        """Drain the socket; whoever waits for the conversation is told once."""
        now = self._clock()
        receive = receiver(socket, views=True)
        with self._lock:
            try:
                for _ in range(256):
                    frames = receive()
                    try:
                        h = protocol.unpack(frames[0])
                        body = frames[1:] if h.type == Type.DELIVER else [bytes(part) for part in frames[1:]]
                        self._conversation.receive(h, body, now)
                    except ProtocolError as e:
                        _log.warning("the broker sent what the protocol does not allow: %s", e.reason)
            except zmq.Again:
                pass
            self._lock.notify_all()
