"""An agent of the fleet: a producer's conversation over a TCP connection of its own, without a ZeroMQ socket.

It speaks ZMTP 3.1 (NULL, DEALER) by itself, so the broker sees what it sees of every client. A ZeroMQ socket an agent
would cost the machine more than the broker does: three times the CPU seconds a message, for queues and an I/O thread
that a fleet has on machines of its own.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

from zmqbroker import protocol
from zmqbroker.client.producing import ProducerConversation

_MORE: Final = 1
_LONG: Final = 2
_COMMAND: Final = 4
_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY: Final = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
_RECEIVE_BYTES: Final = 65_536


class Agent:
    """One connected producer. ``fileno`` is for a level-triggered poll; nothing here blocks but the connecting."""

    __slots__ = (
        "_greeted",
        "_heard_s",
        "_parts",
        "_ready",
        "_received",
        "_socket",
        "acks_s",
        "conversation",
        "fileno",
        "published_s",
    )

    def __init__(self, url: str, rng: random.Random, now: float) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._socket.sendall(_GREETING + _frame(_COMMAND, _READY))
        self.fileno = self._socket.fileno()
        self._greeted = self._ready = False
        self._heard_s = now
        self._received = b""
        self._parts: list[bytes] = []
        self.conversation = ProducerConversation(rng.getrandbits(64), "fleet", incarnation=1, rng=rng)
        self.conversation.on_acked = self._acked
        self.conversation.begin(now)
        self.published_s: dict[int, float] = {}
        """When each batch that is not acked yet was published, by seq."""
        self.acks_s: list[float] = []
        """How long each ack took."""

    def publish(self, payload: bytes, rows: int, crc: int, now: float) -> None:
        self.published_s[self.conversation.add(payload, rows, crc)] = now
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send what the conversation has to say. Raises BlockingIOError where the broker has stopped reading."""
        if not self._ready:  # a message before the peer's READY would end the connection
            return
        messages = self.conversation.outgoing(now)
        if messages:
            self._socket.sendall(b"".join(map(_message, messages)))

    def take(self, now: float) -> None:
        """Take in what has come by ``now``, and answer it."""
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the broker has ended the connection of an agent")
        self._received += data
        self._heard_s = now
        conversation = self.conversation
        for frames in self._messages():
            conversation.receive(protocol.unpack(frames[0]), frames[1:], now)
        if conversation.to_send or not conversation.connected:
            self.flush(now)

    def close(self) -> None:
        self._socket.close()

    def _acked(self, first: int, last: int) -> None:
        for seq in range(first, last + 1):
            at = self.published_s.pop(seq, None)
            if at is not None:
                self.acks_s.append(self._heard_s - at)

    def _messages(self) -> Iterator[list[bytes]]:
        """Whole messages of what was received; what is left of one waits for the rest."""
        data, at = self._received, 0
        if not self._greeted:
            if len(data) < len(_GREETING):
                return
            self._greeted = True
            at = len(_GREETING)
        while len(data) >= at + 2:
            flags = data[at]
            size, begin = data[at + 1], at + 2
            if flags & _LONG:
                size, begin = int.from_bytes(data[at + 1 : at + 9], "big"), at + 9
            if len(data) < begin + size:
                break
            at = begin + size
            if flags & _COMMAND:
                self._ready = True
                continue
            self._parts.append(data[begin:at])
            if not flags & _MORE:
                parts, self._parts = self._parts, []
                yield parts
        self._received = data[at:]


def _message(frames: Sequence[bytes]) -> bytes:
    return b"".join([*(_frame(_MORE, frame) for frame in frames[:-1]), _frame(0, frames[-1])])


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) > 255:
        return bytes((flags | _LONG,)) + len(body).to_bytes(8, "big") + body
    return bytes((flags, len(body))) + body
