"""A client of the admin socket: one request, one answer."""

from __future__ import annotations

from typing import Any, Final

import zmq

from zmqbroker.admin.protocol import ANSWER_BYTES_MAX, Answer, pack_request, unpack_answer
from zmqbroker.errors import BrokerUnavailable
from zmqbroker.security import ClientKeys

TIMEOUT_S: Final = 10.0


class AdminClient:
    """Not for several threads at once. ``timeout_s`` is how long an answer is waited for."""

    def __init__(self, url: str, *, keys: ClientKeys | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._keys = keys
        self._context: zmq.Context[Any] = zmq.Context.instance()
        self._socket: zmq.Socket[Any] | None = None
        self._next = 0

    def call(self, command: str, *, timeout_s: float | None = None, **args: Any) -> Answer:
        """Raises :class:`AdminError` (the broker said no) and :class:`BrokerUnavailable` (nobody answered)."""
        socket = self._socket or self._open()
        self._next += 1
        waited_s = self.timeout_s
        try:
            # A command may take long; that nobody is there shows sooner.
            if socket.poll(int(1000 * waited_s), zmq.POLLOUT):
                socket.send(pack_request(self._next, command, args), zmq.NOBLOCK)
                waited_s = timeout_s or self.timeout_s
                while socket.poll(int(1000 * waited_s)):
                    id, answer = unpack_answer(socket.recv())
                    if id == self._next:
                        return answer
        except zmq.ZMQError as e:
            self.close()
            raise BrokerUnavailable(f"cannot reach {self.url}: {e.strerror or e}") from None
        self.close()
        hint = (
            "does it run, and is the key in its allow-list?" if self._keys else "does it run, and does it ask for keys?"
        )
        raise BrokerUnavailable(f"no broker answers at {self.url} within {waited_s:g} s: {hint}")

    def _open(self) -> zmq.Socket[Any]:
        socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.IMMEDIATE, 1)
        socket.set(zmq.MAXMSGSIZE, ANSWER_BYTES_MAX)
        if self._keys is not None:
            self._keys.secure_client(socket)
        try:
            socket.connect(self.url)
        except zmq.ZMQError as e:
            socket.close(0)
            raise BrokerUnavailable(f"{self.url} is no address: {e.strerror or e}") from None
        self._socket = socket
        return socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
