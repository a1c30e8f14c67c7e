"""Live tails: bounded, honest about what they missed, and resumable."""

from __future__ import annotations

import json
import threading

import numpy as np

from api.hub import Hub, TailFilter
from api.live import Event, LiveTail, sse_frame
from telemetry.batch import Device, DictionaryEncoder, encode

TEMP, UTIL = "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_UTIL"


class Delivery:
    """One batch: two GPUs by two metrics, ``rows`` of them."""

    def __init__(self, rows: int = 4, value: float = 1.0) -> None:
        dictionary = DictionaryEncoder().encode(
            [Device(uuid="GPU-0", hostname="h0"), Device(uuid="GPU-1", hostname="h1")], [TEMP, UTIL]
        )
        codes = np.arange(rows)
        self._payload = encode(
            1, 1, np.full(rows, 10**18), codes // 2 % 2, codes % 2, np.full(rows, value), dictionary, created_ns=0
        )

    def payloads(self) -> list[memoryview]:
        return [memoryview(b"no batch"), memoryview(self._payload)]


class SilentConsumer:
    connected = True

    def receive(self, timeout: float) -> None:
        threading.Event().wait(0.01)

    def close(self, timeout: float) -> None:
        pass


def hub(rows_max: int = 100, clients_max: int = 10) -> Hub:
    return Hub(SilentConsumer, clients_max=clients_max, rows_max=rows_max)


def rows_of(tail: LiveTail) -> list[tuple[str, str]]:
    return [
        (row["gpu_id"], row["metric_name"])
        for event in tail.take()
        if event.kind == "telemetry"
        for row in json.loads(event.data)["telemetry"]
    ]


def test_each_tail_gets_the_rows_that_its_filter_lets_through() -> None:
    with_all = hub()
    tails = [
        with_all.subscribe(TailFilter()),
        with_all.subscribe(TailFilter(gpus=frozenset({"GPU-1"}))),
        with_all.subscribe(TailFilter(hosts=frozenset({"h0"}), metrics=frozenset({UTIL}))),
        with_all.subscribe(TailFilter(gpus=frozenset({"GPU-none"}))),
    ]
    with_all.deliver(Delivery())
    assert rows_of(tails[0]) == [("GPU-0", TEMP), ("GPU-0", UTIL), ("GPU-1", TEMP), ("GPU-1", UTIL)]
    assert rows_of(tails[1]) == [("GPU-1", TEMP), ("GPU-1", UTIL)]
    assert rows_of(tails[2]) == [("GPU-0", UTIL)]
    assert tails[3].take() == []
    with_all.close()


def test_rows_without_a_value_are_not_shown() -> None:
    one = hub()
    tail = one.subscribe(TailFilter())
    one.deliver(Delivery(value=float("nan")))
    one.deliver(Delivery(value=9.2233720368547758e18))
    assert tail.take() == []
    one.close()


def test_a_slow_client_loses_the_oldest_rows_and_is_told_how_many() -> None:
    tail = LiveTail(rows_max=10)
    for number in range(5):
        tail.put(Event(str(number), "telemetry", b"{}", 4))
    first, *rest = tail.take()
    assert first.kind == "gap"
    assert json.loads(first.data)["missed_rows"] == 12
    assert [event.id for event in rest] == ["3", "4"]
    assert tail.missed_rows == 12


def test_more_rows_at_once_than_a_buffer_holds_are_a_gap_and_not_a_flood() -> None:
    small = hub(rows_max=10)
    tail = small.subscribe(TailFilter())
    small.deliver(Delivery(rows=100))
    events = tail.take()
    assert [event.kind for event in events] == ["gap", "telemetry"]
    assert json.loads(events[0].data)["missed_rows"] == 90
    assert len(json.loads(events[1].data)["telemetry"]) == 10
    small.close()


def test_a_client_that_comes_back_gets_what_came_since() -> None:
    one = hub()
    tail = one.subscribe(TailFilter())
    one.deliver(Delivery())
    (seen,) = tail.take()
    tail.close()
    one.deliver(Delivery())
    one.deliver(Delivery())
    back = one.subscribe(TailFilter(), last_event_id=seen.id)
    events = back.take()
    assert [event.kind for event in events] == ["telemetry", "telemetry"]
    assert seen.id not in [event.id for event in events]
    one.close()


def test_a_client_that_comes_back_too_late_is_told_of_the_gap() -> None:
    one = hub()
    for last_event_id in ("00000000-5", "nonsense", f"{one._run_id}-99"):
        tail = one.subscribe(TailFilter(), last_event_id=last_event_id)
        (event,) = tail.take()
        assert event.kind == "gap"
    one.close()


def test_tails_are_limited_and_leave_when_closed() -> None:
    import pytest

    from api.errors import Problem

    one = hub(clients_max=1)
    tail = one.subscribe(TailFilter())
    with pytest.raises(Problem) as refused:
        one.subscribe(TailFilter())
    assert refused.value.code == 503
    tail.close()
    assert one.clients == 0
    one.subscribe(TailFilter())
    one.close()


def test_a_frame_is_one_server_sent_event() -> None:
    assert sse_frame(Event("a-1", "telemetry", b"{}", 1)) == b"id: a-1\nevent: telemetry\ndata: {}\n\n"
    assert sse_frame(Event("", "gap", b"{}", 0)) == b"event: gap\ndata: {}\n\n"
