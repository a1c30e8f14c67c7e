"""A network that loses connections, not messages: what TCP and ZeroMQ leave to fear.

Within a connection messages arrive in order. When it breaks, what was on its way arrives up to some message and then
no more, perhaps long after the next connection carried newer ones: reordering across reconnects, stale messages of
old connections. A client whose connection broke is not told; it reconnects beneath, under a new connection id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from zmqbroker import protocol
from zmqbroker.client.conversation import Conversation
from zmqbroker.errors import ProtocolError
from zmqbroker.protocol import HEADER_BYTES, Type

if TYPE_CHECKING:
    from tests.simulation.stage import Stage

Frames = list[bytes]


class Server(Protocol):
    """Who listens: a broker, or a collector that binds."""

    @property
    def listens(self) -> bool: ...

    def message(self, connection: Connection, frames: Frames) -> None:
        """A message has arrived at its socket."""


class Connection:
    """One connection of one client to a server. ``id`` is what the ROUTER would call it."""

    def __init__(self, world: Stage, link: SimulatedLink, server: Server) -> None:
        self.world = world
        self.link = link
        self.server = server
        self.id = world.next_connection_id()
        self.open = True
        self.latency_s = world.clock.between(0.0001, 0.002) if world.chance(0.9) else world.clock.between(0.05, 0.8)
        self._arrival_up = self._arrival_down = 0.0
        self._sent_up = self._sent_down = 0
        self._last_up = self._last_down = 1 << 60
        """Numbers of the last messages that arrive."""

    def send_up(self, frames: Frames) -> None:
        number = self._sent_up = self._sent_up + 1
        self._arrival_up = max(self._arrival_up, self.world.clock.now + self._delay_s())
        self.world.clock.after(self._arrival_up - self.world.clock.now, lambda: self._arrive_up(number, frames))

    def send_down(self, frames: Frames) -> None:
        number = self._sent_down = self._sent_down + 1
        self._arrival_down = max(self._arrival_down, self.world.clock.now + self._delay_s())
        self.world.clock.after(self._arrival_down - self.world.clock.now, lambda: self._arrive_down(number, frames))

    def _delay_s(self) -> float:
        return self.latency_s * self.world.clock.between(0.5, 1.5)

    def _arrive_up(self, number: int, frames: Frames) -> None:
        if number <= self._last_up:
            self.server.message(self, self.world.corrupt_in_transit(frames))

    def _arrive_down(self, number: int, frames: Frames) -> None:
        if number <= self._last_down and self.link.connection is self:
            self.link.receive(frames)

    def break_(self) -> None:
        """The connection is gone. What was on its way may still arrive, up to some message."""
        if not self.open:
            return
        self.open = False
        rng = self.world.clock.rng
        self._last_up = rng.randint(max(0, self._sent_up - 20), self._sent_up)
        self._last_down = 0


class SimulatedLink:
    """What :class:`zmqbroker.client.transport.Link` does, on the simulated network and clock."""

    def __init__(self, world: Stage, conversation: Conversation, on_received: Callable[[], None]) -> None:
        self.world = world
        self.conversation = conversation
        self.on_received = on_received
        self.connection: Connection | None = None
        self.paused = False
        self.dead = False
        self._planned_s: float | None = None
        self._reconnect_s = 0.0
        self._inbox: list[Frames] = []
        self.reopened = world.clock.rng.randrange(len(world.servers)) if len(world.servers) > 1 else 0
        """How often it was silent for too long: each time another address is tried."""
        self._connect()
        conversation.begin(world.clock.now)
        self.wake()

    def wake(self, in_s: float = 0.0) -> None:
        at = self.world.clock.now + in_s
        if self._planned_s is None or at < self._planned_s - 1e-9:
            self._planned_s = at
            self.world.clock.after(in_s, lambda: self._run(at))

    def break_connection(self) -> None:
        if self.connection is not None:
            self.connection.break_()
            self.connection = None
        self._reconnect_s = self.world.clock.now + self.world.clock.between(0.02, 1.0)

    def kill(self) -> None:
        """The process is gone."""
        self.dead = True
        if self.connection is not None:
            self.connection.break_()
            self.connection = None

    def _connect(self) -> None:
        if self.connection is None and self.world.clock.now >= self._reconnect_s:
            servers = self.world.servers
            server = servers[self.reopened % len(servers)]
            if server.listens:
                self.connection = Connection(self.world, self, server)

    def _run(self, planned_s: float) -> None:
        if self.dead or planned_s != self._planned_s:
            return
        self._planned_s = None
        if self.paused:
            return
        now = self.world.clock.now
        conversation = self.conversation
        if conversation.stale(now):
            if self.connection is not None:
                self.connection.break_()
                self.connection = None
            self._reconnect_s = now
            self.reopened += 1
            conversation.begin(now)
            self.wake(0.001)
            return
        out = conversation.outgoing(now)
        wait_s = 0.0005 if len(out) > 1 else conversation.due_in(now)
        if self.connection is not None and not self.connection.open:
            self.connection = None
        self._connect()
        if self.connection is None:
            if out:
                conversation.unsent(out, now + 0.05)
                wait_s = 0.05
        else:
            for frames in out:
                self.connection.send_up(frames)
        self.wake(min(max(wait_s, 0.0005), 1.0))

    def receive(self, frames: Frames) -> None:
        if self.dead:
            return
        self._inbox.append(frames)
        if not self.paused:
            self._take()

    def _take(self) -> None:
        inbox, self._inbox = self._inbox, []
        for frames in inbox:
            try:
                self.conversation.receive(protocol.unpack(frames[0]), frames[1:], self.world.clock.now)
            except ProtocolError as e:
                raise AssertionError(f"the broker sent what the protocol does not allow: {e}") from e
        self.on_received()
        self.wake()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """The process goes on: its loop's turn, with all that came meanwhile still in the socket."""
        self.paused = False
        self._planned_s = None
        # Which comes first is chance: the poll may have been about to return, or the loop about to send.
        if self.world.chance(0.5):
            self._run_now()
        self._take()
        self._run_now()

    def _run_now(self) -> None:
        self._planned_s = self.world.clock.now
        self._run(self._planned_s)


def flip_payload(frames: Frames, at: int) -> Frames:
    """A PUBLISH whose payload changed on its way; anything else as it is."""
    head = frames[0]
    if head[4] != Type.PUBLISH:
        return frames
    if len(frames) > 1 and frames[1]:
        body = bytearray(frames[1])
        body[at % len(body)] ^= 0x10
        return [head, bytes(body)]
    if len(head) > HEADER_BYTES:
        changed = bytearray(head)
        changed[HEADER_BYTES + at % (len(head) - HEADER_BYTES)] ^= 0x10
        return [bytes(changed)]
    return frames
