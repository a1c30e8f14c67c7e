"""The broker's patience and the collector's, which are options of two processes, must fit together (R12)."""

from __future__ import annotations

import pytest

from consumers.source import SILENCE_S_MAX
from zmqbroker import cli
from zmqbroker.core.config import RECONNECT_GRACE_S_MIN


def test_r12_no_other_member_gets_a_range_before_its_collector_takes_the_lease_for_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert RECONNECT_GRACE_S_MIN > SILENCE_S_MAX
    assert next(o.default for o in cli.SERVE_OPTIONS if o.flag == "reconnect-grace") >= RECONNECT_GRACE_S_MIN
    with pytest.raises(SystemExit):
        cli.main(["serve", "--data-dir", "unused", "--reconnect-grace", "2s"])
    assert "is below 3.5 s" in capsys.readouterr().err
