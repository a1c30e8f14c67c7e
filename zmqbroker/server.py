"""The broker's shell: sockets in, core, effects out.

One loop thread owns the ROUTER socket: it drains what has come (at most 512 messages or 2 ms), calls the core once,
runs its effects, and rests a moment while it is busy (pacing.py). The writer thread owns the logs' files, the reader
thread reads what is immutable; both answer by events through a queue and an eventfd in the same poll. Nothing slow
happens in the loop (R29).
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from zmqbroker import protocol
from zmqbroker.core import events as ev
from zmqbroker.core.broker import Core
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.core.effects import Effects
from zmqbroker.errors import BrokerError
from zmqbroker.pacing import Pacing
from zmqbroker.protocol import HEADER_BYTES, MAGIC, VERSION, Code, Type
from zmqbroker.reading import LogReader
from zmqbroker.security import DATA_DOMAIN, ServerKeys
from zmqbroker.sockets import receiver, sender
from zmqbroker.storage.interface import TopicLog
from zmqbroker.storage.topics import TopicStore
from zmqbroker.writing import LogWriter

_log = logging.getLogger("zmqbroker")

DRAIN_MESSAGES_MAX: Final = 512
DRAIN_SECONDS_MAX: Final = 0.002
_MAINTAIN_S: Final = 1.0
_GATHER_S: Final = 0.0003
"""How long the loop lets messages gather while the writer is behind."""
_PUBLISH: Final = int(Type.PUBLISH)


@dataclass
class ServerConfig:
    """Where the broker listens and keeps its data, and the limits of its sockets."""

    data_dir: Path
    bind: tuple[str, ...] = ("tcp://127.0.0.1:5555",)
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    topic: TopicConfig = field(default_factory=TopicConfig)
    topics: dict[str, TopicConfig] = field(default_factory=dict)


class Broker:
    """A running broker. ``start`` returns once it listens; ``stop`` drains and leaves a clean end."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        keys: ServerKeys | None = None,
    ) -> None:
        self.config = config
        self.core = Core(config.broker, rng or random.Random(), config.topic)
        self.core.state.topic_configs.update(config.topics)
        self.endpoints: list[str] = []
        """Addresses that are listened on, with the ports that were picked."""
        self.started_s = clock()
        self.failed: BaseException | None = None
        """Why the loop ended, if not by ``stop``."""
        self._clock = clock
        self._wall_clock = wall_clock
        self.keys = keys
        self._logs: dict[str, TopicLog] = {}
        self._store = TopicStore(config.data_dir)
        self._posted: deque[tuple] = deque()
        self._calls: deque[tuple[Callable[[Core], Any], _Answer]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.writer = LogWriter(self._post, clock)
        self.reader = LogReader(self._post, self._logs, self._open_topic)
        self._thread = threading.Thread(target=self._run, name="broker-loop", daemon=True)
        self._stopping = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._router: zmq.Socket[Any] | None = None
        self._receive: Callable[[], list[bytes]] = list
        self._send_frames: Callable[[Sequence[bytes]], None] = lambda frames: None
        self._next_maintain_s = 0.0
        self.loops = 0

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover every topic, then listen. Raises :class:`BrokerError` (a held directory, an address in use)."""
        self._store.lock()
        try:
            events = [self._open_topic(name, config) for name, config in self._store.list()]
            for name, config in self.config.topics.items():
                if name not in self._logs:
                    events.append(self._open_topic(name, config))
            self._run_effects(self.core.handle(events, self._clock(), self._wall_ms()))
            router = self._context.socket(zmq.ROUTER)
            router.set(zmq.ROUTER_MANDATORY, 1)
            router.set(zmq.LINGER, 0)
            # What waits for a peer is bounded by credit, not by a number of messages: a mark here would only drop.
            router.set(zmq.SNDHWM, 0)
            router.set(zmq.RCVHWM, 1000)
            router.set(zmq.BACKLOG, 4096)
            router.set(zmq.MAXMSGSIZE, self.config.broker.message_bytes_max + HEADER_BYTES)
            if self.keys is not None:
                self.keys.start(self._context)
                self.keys.secure_server(router, DATA_DOMAIN)
            for address in self.config.bind:
                try:
                    router.bind(address)
                except zmq.ZMQError as e:
                    raise BrokerError(f"cannot listen on {address}: {e.strerror or e}") from None
                self.endpoints.append(router.get_string(zmq.LAST_ENDPOINT))
            self._router = router
            self._receive = (
                self.keys.receiver(router, self._send) if self.keys is not None else receiver(router, views=True)
            )
            self._send_frames = sender(router)
        except BaseException:
            self._store.unlock()
            self._end_context()
            raise
        self.writer.start()
        self.reader.start()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Refuse new conversations, make what came durable, tell the peers, close the logs cleanly."""
        deadline = self._clock() + timeout_s
        self._stopping.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self.writer.is_alive():
            self.writer.end(max(0.5, deadline - self._clock()))
        if self.reader.is_alive():
            self.reader.end(max(0.5, deadline - self._clock()))
        if not self.writer.is_alive():
            for name, log in self._logs.items():
                topic = self.core.topics.get(name)
                if topic is not None and topic.settled:
                    try:
                        log.close(topic.snapshot(self.core.state.sessions_of(topic)))
                    except BrokerError as e:
                        _log.error("the log did not close cleanly", extra={"topic": name, "reason": str(e)})
        if self._router is not None:
            self._router.close(0)
        self._end_context()
        self._store.unlock()

    def _end_context(self) -> None:
        if self.keys is not None:
            self.keys.stop()
        self._context.destroy(0)

    def call(self, what: Callable[[Core], Any], timeout_s: float = 5.0) -> Any:
        """Run ``what(core)`` in the loop thread and return its result: how other threads read or steer the core."""
        answer = _Answer()
        self._calls.append((what, answer))
        self._wake()
        return answer.wait(timeout_s)

    @property
    def context(self) -> zmq.Context[Any]:
        """The ZeroMQ context: one ZAP handler serves all of its sockets."""
        return self._context

    @property
    def uptime_s(self) -> float:
        return self._clock() - self.started_s

    def keep_settings(self, topic: str, config: TopicConfig) -> None:
        """A topic's settings were changed in the core: write them down and tell the writer."""
        log = self._logs[topic]
        if config.storage == "disk":
            self._store.save(topic, config)
        self.writer.call(lambda: self.writer.add(topic, log, config.fsync, config.fsync_interval_ms / 1000))

    def remove_topic(self, topic: str) -> None:
        """The core has forgotten the topic: close its log and remove its files. Returns when that is done."""
        log = self._logs.pop(topic)
        done = threading.Event()

        def remove() -> None:
            self.writer.remove(topic)
            try:
                log.close(b"")
                self._store.delete(topic)
            finally:
                done.set()

        self.writer.call(remove)
        if not done.wait(10.0):
            raise BrokerError(f"removing topic {topic} takes long: it goes on")

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def log_of(self, topic: str) -> TopicLog | None:
        """For readers of immutable data (peek, replay) in other threads."""
        return self._logs.get(topic)

    # --- the loop --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as e:
            self.failed = e
            _log.exception("the broker's loop failed")
            self._stopping.set()

    def _loop(self) -> None:
        assert self._router is not None
        router = self._router
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        clock = self._clock
        stop_at: float | None = None
        pacing = Pacing()
        while True:
            now = clock()
            wait_ms = max(0, int((self.core.deadline_s - now) * 1000 + 0.999))
            ready = poller.poll(min(wait_ms, 500))
            woken = clock()
            events: list[tuple] = []
            for source, _ in ready:
                if source is router:
                    self._drain(events)
                else:
                    os.eventfd_read(self._wake_fd)
            while self._posted:
                events.append(self._posted.popleft())
            if self._stopping.is_set() and stop_at is None:
                stop_at = clock() + 5.0
                self.core.state.stopping = True
            self._run_effects(self.core.handle(events, clock(), self._wall_ms()))
            if self._calls:
                self._run_calls()
            if now >= self._next_maintain_s:
                self._next_maintain_s = now + _MAINTAIN_S
                self._maintain()
            self.loops += 1
            if rest_s := pacing.rest_s(woken - now, clock() - woken, len(events)):
                time.sleep(rest_s)
            elif self.writer.backlog:
                # What comes now joins the next commit, which waits for the last one anyway: take it in one turn. (The
                # descriptor is older than any connection, so its number is one that select takes.)
                select.select([self._wake_fd], [], [], _GATHER_S)
            if stop_at is not None:
                pending = any(t.commits and not t.stopped for t in self.core.topics.values())
                if not pending or clock() > stop_at:
                    self._say_bye(router)
                    return

    def _run_calls(self) -> None:
        """What other threads asked for; its effects are run like those of events."""
        fx = self.core.state.fx
        fx.clear()
        while self._calls:
            what, answer = self._calls.popleft()
            answer.give(what, self.core)
        self._run_effects(fx)
        self._wake()  # what was journaled is handed over in the next turn, at once

    def _drain(self, events: list[tuple]) -> None:
        """Take what has come, up to 512 messages or 2 ms."""
        unpack = protocol.HEADER.unpack_from
        receive = self._receive
        until = self._clock() + DRAIN_SECONDS_MAX
        append = events.append
        try:
            for i in range(DRAIN_MESSAGES_MAX):
                frames = receive()
                if len(frames) >= 2 and len(frames[1]) >= HEADER_BYTES:
                    frame = frames[1]
                    h = unpack(frame)
                    if h[0] == MAGIC and h[1] == VERSION:
                        # A small payload may ride behind the header.
                        body = [frame[HEADER_BYTES:]] if len(frame) > HEADER_BYTES else frames[2:]
                        if h[2] != _PUBLISH:  # a payload may be a view; what is read here is bytes
                            body = [bytes(part) for part in body]
                        append((ev.MESSAGE, frames[0], h, body))
                        if not i & 15 and self._clock() > until:
                            return
                        continue
                self._garbage(frames)
        except zmq.Again:
            return

    def _garbage(self, frames: list[bytes]) -> None:
        """What is no message of this protocol: counted, and answered."""
        self.core.state.counters.garbage += 1
        if not frames or self._router is None:
            return
        code, reason = Code.BAD_MESSAGE, "not a message of this protocol"
        if len(frames) >= 2 and len(frames[1]) >= HEADER_BYTES and frames[1][:3] == MAGIC:
            code, reason = Code.BAD_VERSION, f"protocol version {frames[1][3]}; this broker speaks {VERSION}"
        self._send(frames[0], [protocol.pack(Type.ERROR, 0, e=code), reason.encode()])

    def _run_effects(self, fx: Effects) -> None:
        if fx.hands:
            self.writer.hand(fx.hands)
        if self._router is not None:
            for conn, frames in fx.sends:
                self._send(conn, frames)
        for read in fx.reads:
            self.reader.ask(read)
        for cut in fx.cuts:
            self.reader.ask(cut)
        for open_ in fx.opens:
            self.reader.ask(open_)
        for text, about in fx.notices:
            _log.warning(text, extra=about)

    def _send(self, conn: bytes, frames: list[bytes]) -> None:
        try:
            self._send_frames([conn, *frames])
        except zmq.ZMQError as e:
            # EHOSTUNREACH: the connection is gone. EAGAIN cannot be without a mark; such a peer is as good as gone.
            if e.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                self._posted.append((ev.GONE, conn))
            else:
                raise

    def _say_bye(self, router: zmq.Socket[Any]) -> None:
        for conn, peer in list(self.core.state.peers.items()):
            generation = peer.generation if hasattr(peer, "generation") else peer.member.generation
            self._send(conn, [protocol.pack(Type.BYE, generation)])
        # Nothing is owed to the peers any more, but what was just said should reach them.
        router.set(zmq.LINGER, 200)

    def _maintain(self) -> None:
        for topic in self.core.topics.values():
            if topic.stopped:
                continue
            self.writer.maintain(topic.name, *topic.retention(self._wall_ms()))

    # --- threads and files -----------------------------------------------------------------------------------------

    def _post(self, events: list[tuple]) -> None:
        self._posted.extend(events)
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _wall_ms(self) -> int:
        return int(self._wall_clock() * 1000)

    def _open_topic(self, name: str, config: TopicConfig) -> tuple:
        """Open or create a topic's log and recover it; the OPENED event. Runs before the loop, or in the reader."""
        log = self._store.open(name, config)
        try:
            recovered = log.recover()
        except BaseException:
            log.close(b"")
            raise
        if not recovered.clean:
            _log.warning(
                "the log had no clean end",
                extra={"topic": name, "torn_bytes": recovered.torn_bytes, "gaps": len(recovered.gaps)},
            )
        # The entries are an iterator over files: they are used up here, outside the loop.
        recovered = recovered._replace(entries=iter(list(recovered.entries)))
        self._logs[name] = log
        self.writer.add(name, log, config.fsync, config.fsync_interval_ms / 1000)
        return (ev.OPENED, name, config, log.uuid, recovered)


class _Answer:
    """The result of a call into the loop."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def give(self, what: Callable[[Core], Any], core: Core) -> None:
        try:
            self._value = what(core)
        except Exception as e:
            self._error = e
        self._done.set()

    def wait(self, timeout_s: float) -> Any:
        if not self._done.wait(timeout_s):
            raise BrokerError("the broker's loop did not answer in time")
        if self._error is not None:
            raise self._error
        return self._value
