"""Waiting for dependencies, with an injected clock and injected chance."""

from __future__ import annotations

import io
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.backoff import Backoff, Stopped, wait_for
from telemetry.progress import ProgressLine

LOG = logging.getLogger("demo-backoff")


class Time:
    """A stop event whose waits move the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopping = threading.Event()
        self.stopping.wait = self.wait  # type: ignore[method-assign,assignment]

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.stopping.is_set()


@given(chance=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_to_the_bound_and_half_of_each_is_chance(chance: float) -> None:
    backoff = Backoff(0.1, 5.0, 2.0, lambda: chance)
    pauses = [backoff.next_s() for _ in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.05 + 0.05 * chance)
    assert pauses[-1] == pytest.approx(2.5 + 2.5 * chance)
    backoff.reset()
    assert backoff.next_s() == pauses[0]


def test_waiting_says_for_what_at_once_and_then_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    answers = iter([OSError("refused")] * 30)

    def attempt() -> str:
        error = next(answers, None)
        if error:
            raise error
        return "connected"

    with caplog.at_level(logging.INFO):
        found = wait_for(
            "the store at http://x",
            attempt,
            stopping=time.stopping,
            log=LOG,
            backoff=Backoff(1.0, 1.0, random=lambda: 0.999999),
            clock=lambda: time.now,
        )
    assert found == "connected"
    assert [record.getMessage() for record in caplog.records] == [
        *["waiting for the store at http://x"] * 3,
        "the store at http://x is there",
    ]
    assert vars(caplog.records[0])["reason"] == "refused"


def test_waiting_is_silent_when_there_is_nothing_to_wait_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert wait_for("it", lambda: 7, stopping=threading.Event(), log=LOG) == 7
    assert not caplog.records


def test_a_stop_ends_the_wait() -> None:
    stopping = threading.Event()

    def attempt() -> None:
        stopping.set()
        raise OSError

    with pytest.raises(Stopped, match="stopped while waiting for it"):
        wait_for("it", attempt, stopping=stopping, log=LOG)


def test_an_error_that_is_not_about_waiting_goes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_for("it", lambda: 1 / 0, stopping=threading.Event(), log=LOG)


def test_progress_without_a_terminal_is_a_log_line_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    with caplog.at_level(logging.INFO):
        with ProgressLine("sending", 1000, log=LOG, stream=io.StringIO(), clock=lambda: now[0]) as line:
            for second in range(1, 11):
                now[0] = float(second)
                line.update(second * 50, pending=2)
    lines = [(record.getMessage(), vars(record)["rows"]) for record in caplog.records]
    assert lines == [("sending: progress", 250), ("sending: progress", 500), ("sending: finished", 500)]
    assert vars(caplog.records[0])["rows_per_s"] == 50
    assert vars(caplog.records[0])["percent"] == 25.0
    assert vars(caplog.records[0])["pending"] == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_and_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    with caplog.at_level(logging.INFO):
        with ProgressLine("sending", 1000, log=LOG, stream=terminal) as line:
            line.update(1000)
    assert "sending" in terminal.getvalue()
    assert "1,000 rows" in terminal.getvalue()
    assert not caplog.records
