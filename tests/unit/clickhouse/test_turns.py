"""Questions take turns: how many at a time, in which order, and what a long one may not do."""

from __future__ import annotations

import random
import threading
import time

import pytest

from clickhouse.embedded.turns import SHORT_SECONDS, Turns
from tests.helpers.waiting import eventually


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Question(threading.Thread):
    """Takes a turn and has it until told to end."""

    def __init__(self, turns: Turns, order: list[str], name: str) -> None:
        super().__init__(daemon=True)
        self.turns, self.order, self.title = turns, order, name
        self.end = threading.Event()
        self.start()

    def run(self) -> None:
        with self.turns.take():
            self.order.append(self.title)
            self.end.wait(60)


def test_so_many_at_a_time_in_the_order_in_which_they_came() -> None:
    order: list[str] = []
    turns = Turns(2, Clock())
    asked = []
    for name in "abcd":
        asked.append(Question(turns, order, name))
        eventually(lambda: turns.waiting + turns.running == len(asked), pause=0.001)
    assert (turns.running, turns.waiting, order) == (2, 2, ["a", "b"])
    asked[1].end.set()
    eventually(lambda: order == ["a", "b", "c"])
    assert (turns.running, turns.waiting) == (2, 1)
    asked[0].end.set()
    eventually(lambda: order == ["a", "b", "c", "d"])
    for question in asked:
        question.end.set()
        question.join(10)
    assert (turns.running, turns.waiting) == (0, 0)


def test_a_long_question_holds_up_nobody() -> None:
    clock = Clock()
    turns = Turns(1, clock)
    order: list[str] = []
    long = Question(turns, order, "long")
    eventually(lambda: order == ["long"])
    short = Question(turns, order, "short")
    eventually(lambda: turns.waiting == 1)
    clock.now = SHORT_SECONDS * 0.9
    time.sleep(SHORT_SECONDS * 2)
    assert order == ["long"], "while it could still be a short one, it has its turn"
    clock.now = SHORT_SECONDS
    eventually(lambda: order == ["long", "short"])
    assert (turns.running, turns.waiting) == (2, 0)
    for question in (long, short):
        question.end.set()
        question.join(10)


def test_a_question_that_fails_gives_its_turn_back() -> None:
    turns = Turns(1)
    with pytest.raises(ValueError, match="no"), turns.take():
        raise ValueError("no")
    with turns.take():
        assert turns.running == 1
    assert turns.running == 0


def test_many_threads_are_all_answered_and_never_too_many_at_once() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    turns = Turns(3, Clock())  # A clock that stands: none ever counts as long.
    waits = [rng.random() / 2000 for _ in range(40 * 12)]
    seen: list[int] = []

    def ask(number: int) -> None:
        for i in range(40):
            with turns.take():
                seen.append(turns.running)
                time.sleep(waits[number * 40 + i])

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 480
    assert max(seen) <= 3
    assert (turns.running, turns.waiting) == (0, 0)
