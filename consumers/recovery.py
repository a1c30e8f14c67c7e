"""After an unclean start of the store: what it was given lately is delivered once more, as doubtful (R16).

An insert is answered when it is synced, yet a disk that lies about syncs, or breaks, takes rows that were acknowledged.
The broker still has them. So for each start of the store for which nobody vouches a collector asks the broker to replay
what its group was given from fifteen minutes before the last write on. Each replayed range meets the check that every
doubtful one meets (R13): what is in place stays, what is missing is inserted. Several collectors may ask: what is on
its way already is not replayed twice, and a range that comes twice is stored once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from clickhouse.client import StoreConnection
from clickhouse.errors import StoreError
from clickhouse.queries.boots import is_settled, last_write_s, settle
from telemetry.backoff import Backoff
from telemetry.service import Check
from zmqbroker.client.operating import Replayed
from zmqbroker.errors import BrokerError

LOOK_BACK_S: Final = 900.0
"""As long as acknowledged records are kept at least."""


LOOK_S: Final = 2.0
"""How often it is asked whether the store still is the one that was met: without traffic nobody else notices."""


class Recovery:
    """``connect`` opens a connection to the store; ``replay(since)`` has everything since then (unix seconds) delivered
    once more and raises :class:`zmqbroker.errors.BrokerError`."""

    def __init__(
        self,
        connect: Callable[[], StoreConnection],
        replay: Callable[[float], Replayed],
        *,
        stopping: threading.Event,
        log: logging.Logger,
    ) -> None:
        self._connect = connect
        self._replay = replay
        self._stopping = stopping
        self._log = log
        self._backoff = Backoff(0.5, 15.0)
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> Check:
        """Ready all the same: what comes now is stored."""
        return Check("degraded", self._trouble) if self._trouble else Check()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connect() as conn:
                    conn.check_boot_id()
                    self.settle(conn)
                    self._trouble = ""
                    self._backoff.reset()
                    # As long as this connection lives, the store has not restarted.
                    while not self._stopping.wait(LOOK_S):
                        conn.query("SELECT 1")
            except StoreError:  # the workers tell of it
                self._stopping.wait(self._backoff.next_s())
            except BrokerError as e:
                self._tell(e)
                self._stopping.wait(self._backoff.next_s())

    def settle(self, conn: StoreConnection) -> None:
        """Have the present start of the store followed up if nobody has yet.

        Raises :class:`clickhouse.errors.StoreError` or :class:`zmqbroker.errors.BrokerError`: try again.
        """
        if is_settled(conn):
            return
        told = self._replay(last_write_s(conn) - LOOK_BACK_S)
        settle(conn, f"{told.rows} rows were delivered once more")
        if told.ranges:
            self._log.warning(
                "the store did not end in good order: what it was given lately is delivered once more",
                extra={"ranges": told.ranges, "rows": told.rows},
            )

    def _tell(self, error: BrokerError) -> None:
        trouble = (
            f"the store did not end in good order, and nothing is delivered once more yet: {error}; "
            "see --broker-admin, or run: zmqbroker admin replay TOPIC --into GROUP --from now-15m"
        )
        if trouble != self._trouble:
            self._trouble = trouble
            self._log.error(trouble)
