"""What the core tells of itself."""

from __future__ import annotations

from tests.helpers.core_rig import Rig
from zmqbroker.core import report


def test_clients_of_one_name_are_told_as_one_with_the_longest_connection() -> None:
    rig = Rig()
    rig.hello(session=7)
    rig.wait(3)
    rig.hello(session=8, conn=b"p2")
    rig.subscribe()
    rig.publish(1)
    rig.wait(2)
    found = {one["kind"]: one for one in report.clients(rig.core.state)}
    producers, consumer = found["producer"], found["consumer"]
    assert producers["connections"] == 2
    assert producers["connected_seconds"] > 4.5
    assert producers["received_bytes"] > 0
    assert consumer["connections"] == 1
    assert consumer["group"] == "g"
    assert consumer["connected_seconds"] < 4.5
