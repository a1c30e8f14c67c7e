"""What was answered and is gone after an unclean start of the store comes again by itself: real processes."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clickhouse.client import StoreAddress, StoreConnection
from clickhouse.errors import StoreError
from clickhouse.insert import insert_samples
from consumers.recovery import LOOK_BACK_S, Recovery
from tests.chaos.pipeline import Pipeline
from tests.helpers.store import running_store, sample_columns
from tests.helpers.waiting import eventually
from zmqbroker.client.operating import Replayed
from zmqbroker.errors import BrokerUnavailable

ROWS = 20_000

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """Some rows are stored and settled."""
    with Pipeline(tmp_path / "run", rows=ROWS, collectors=1) as made:
        made.start()
        made.wait_until_fed(60)
        made.wait_until_drained(60)
        yield made


def asked(pipeline: Pipeline, sql: str) -> list[tuple]:
    """Rows, as soon as the store answers."""

    def answer() -> list[tuple]:
        try:
            with pipeline.open_store() as store:
                return [tuple(row) for row in store.query(sql)]
        except StoreError as e:
            raise AssertionError(str(e)) from None

    return eventually(answer, 60, "the store answers", pause=0.2)


def batches(pipeline: Pipeline) -> list[tuple]:
    """Each batch in the raw table, with its rows."""
    return asked(pipeline, "SELECT _session, _seq, count() FROM telemetry.samples GROUP BY 1, 2 ORDER BY 1, 2")


def boots(pipeline: Pipeline) -> list[str]:
    return [why for (why,) in asked(pipeline, "SELECT why FROM telemetry.boots ORDER BY at")]


def test_r16_rows_that_an_unclean_boot_has_lost_are_delivered_again_and_stored_once(pipeline: Pipeline) -> None:
    """A disk that said "synced" and lied: a part is gone with its directory after the loss of power."""
    before = batches(pipeline)
    parts = asked(pipeline, "SELECT path FROM system.parts WHERE active AND table = 'samples' ORDER BY rows DESC")
    pipeline.store.kill()
    shutil.rmtree(parts[0][0])
    pipeline.store.start()
    eventually(lambda: batches(pipeline) == before, 60, "what was lost is back, each batch once", pause=0.2)
    eventually(lambda: pipeline.lag_rows() == 0, 30, "all that was delivered once more is settled")
    assert batches(pipeline) == before
    assert boots(pipeline)[-1] == f"{ROWS} rows were delivered once more"


def test_r16_after_an_end_in_good_order_nothing_is_delivered_again(pipeline: Pipeline) -> None:
    assert pipeline.store.terminate(30) == 0
    pipeline.store.start()
    eventually(lambda: len(boots(pipeline)) == 2, 60, "the second start is vouched for")
    assert all("good order" in why for why in boots(pipeline))
    with StoreConnection(StoreAddress(url=pipeline.store_url)) as conn:
        recovery_with(lambda since_s: pytest.fail("a replay was asked for")).settle(conn)


def test_r16_a_start_is_not_settled_before_the_broker_was_asked(tmp_path: Path) -> None:
    """Nobody answers at first, and all is tried again; the broker is asked for what came before the end, and more."""
    with running_store(tmp_path) as store:
        with store.connect() as conn:
            insert_samples(conn, sample_columns(10), token="before")
        wrote_s = time.time()
        store.restart(kill=True)
        asked: list[float] = []

        def replay(since_s: float) -> Replayed:
            asked.append(since_s)
            if len(asked) == 1:
                raise BrokerUnavailable("nobody answers")
            return Replayed(1, 10)

        recovery = recovery_with(replay)
        with store.connect() as conn:
            with pytest.raises(BrokerUnavailable):
                recovery.settle(conn)
            recovery.settle(conn)
            recovery.settle(conn)
        assert len(asked) == 2
        assert all(abs(wrote_s - LOOK_BACK_S - since_s) < 60 for since_s in asked)


def recovery_with(replay: Callable[[float], Replayed]) -> Recovery:
    def connect() -> StoreConnection:
        raise AssertionError("it is asked about one connection")

    return Recovery(connect, replay, stopping=threading.Event(), log=logging.getLogger("recovery"))
