"""Long random histories of a log on a disk that loses power, against a model of what must be there."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.helpers.log_model import LogModel

SIZES = st.lists(st.one_of(st.integers(0, 300), st.sampled_from([4096, 4097, 6000])), min_size=0, max_size=12)


class LogMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 2**32), survival=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    def begin(self, seed: int, survival: float) -> None:
        self.model = LogModel(seed, survival=survival)

    @rule(sizes=SIZES, sync=st.booleans())
    def commit(self, sizes: list[int], sync: bool) -> None:
        self.model.commit(sizes, sync=sync)

    @rule()
    def sync(self) -> None:
        self.model.sync()

    @rule()
    def drop(self) -> None:
        self.model.drop()

    @rule(power=st.booleans())
    def crash(self, power: bool) -> None:
        self.model.crash(power=power)

    @rule()
    def crash_after_a_failed_sync(self) -> None:
        self.model.fail_sync()
        self.model.crash(power=True)

    @rule()
    def close_and_reopen(self) -> None:
        self.model.close_and_reopen()

    @invariant()
    def exactly_what_is_synced_can_be_read(self) -> None:
        if hasattr(self, "model"):
            self.model.check_readable()


LogMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLogModel = LogMachine.TestCase


@pytest.mark.parametrize("seed", range(20))
def test_r10_everything_synced_survives_and_nothing_is_invented(seed: int) -> None:
    """As above with longer histories; a failure names its seed."""
    model = LogModel(seed, survival=[0.0, 0.2, 0.5, 0.95][seed % 4])
    for _ in range(120):
        draw = model.chance.random()
        if draw < 0.75:
            count = model.chance.randint(0, 20)
            sizes = [model.chance.choice((model.chance.randint(0, 200), 5000)) for _ in range(count)]
            model.commit(sizes, sync=model.chance.random() < 0.6)
        elif draw < 0.80:
            model.sync()
        elif draw < 0.88:
            model.drop()
        elif draw < 0.96:
            model.crash(power=model.chance.random() < 0.8)
        elif draw < 0.98:
            model.fail_sync()
            model.crash(power=True)
        else:
            model.close_and_reopen()
    model.crash(power=True)
