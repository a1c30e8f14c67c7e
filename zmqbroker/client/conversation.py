"""What both conversations share: a generation, silence, and when to begin anew."""

from __future__ import annotations

import random
from typing import Final, Protocol

from zmqbroker.protocol import Header

HELLO_RETRY_S: Final = 1.0
"""An unanswered HELLO or SUBSCRIBE is said again after this time."""
SILENCE_S: Final = 5.0
"""With something expected, silence of the broker after which the socket is closed and opened again."""


class Conversation(Protocol):
    """What :class:`zmqbroker.client.transport.Link` drives. Every method is called in the link's thread."""

    def begin(self, now: float) -> None:
        """The socket is new: nothing that was sent on another counts."""

    def receive(self, h: Header, frames: list[bytes], now: float) -> None:
        """One message of the broker."""

    def outgoing(self, now: float) -> list[list[bytes]]:
        """Messages to send now, in order. What cannot be sent comes back by :meth:`unsent`."""

    def unsent(self, messages: list[list[bytes]], now: float) -> None:
        """There is no connection: these were not sent."""

    def due_in(self, now: float) -> float:
        """Seconds until :meth:`outgoing` should be asked again, if nothing happens before."""

    def stale(self, now: float) -> bool:
        """Whether the broker has been silent for too long, so that the socket should be opened anew."""


class Opening:
    """The first step of a conversation: who says HELLO or SUBSCRIBE, when, and in which generation."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.generation = 0
        self.accepted = False
        self._said_s: float | None = None
        self._not_before_s = 0.0
        self.count = 0
        """Conversations that the broker accepted."""

    def reset(self, not_before_s: float = 0.0) -> None:
        """Begin anew, in a new generation: what belongs to the old one is recognised and dropped."""
        # Never 0, never the same twice in a row.
        self.generation = (self.generation + self._rng.randrange(1, 1 << 31)) % 0xFFFFFFFF + 1
        self.accepted = False
        self._said_s = None
        self._not_before_s = not_before_s

    def should_say(self, now: float) -> bool:
        if self.accepted or now < self._not_before_s:
            return False
        return self._said_s is None or now - self._said_s >= HELLO_RETRY_S

    def said(self, now: float) -> None:
        self._said_s = now

    def accept(self) -> None:
        """WELCOME or SUBSCRIBED has come."""
        self.accepted = True
        self.count += 1

    def due_in(self, now: float) -> float:
        if self.accepted:
            return HELLO_RETRY_S
        at = self._not_before_s if self._said_s is None else self._said_s + HELLO_RETRY_S
        return max(0.0, at - now)
