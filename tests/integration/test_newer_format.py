"""A broker of an older version meets the directory of a newer one: it refuses to start, and changes nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from crc32c import crc32c

from tests.integration.test_usage_errors import assert_refused, use
from zmqbroker.client import Producer
from zmqbroker.core.config import TopicConfig
from zmqbroker.core.topic import Topic
from zmqbroker.errors import NewerFormat
from zmqbroker.storage.interface import Recovered
from zmqbroker.testing import running_broker, topic_stats


def set_version(segment: Path, version: int) -> None:
    """What a later version would write into the head, with the checksums that go with it."""
    content = bytearray(segment.read_bytes())
    for at in (0, 2048):
        struct.pack_into("<I", content, at + 8, version)
        struct.pack_into("<I", content, at + 40, crc32c(bytes(content[at : at + 40])))
    segment.write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "LOCK"
    }


def test_r10_a_broker_refuses_a_log_of_a_newer_format_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    with running_broker(tmp_path) as broker, Producer(broker.endpoints[0], "kept") as producer:
        for _ in range(10):
            producer.publish(b"accepted", rows=1)
        assert producer.flush(30)
    segment = max((tmp_path / "kept").glob("*.log"))
    settings = tmp_path / "kept" / "topic.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "a_setting_to_come": 1}))
    set_version(segment, 7)
    before = contents(tmp_path)

    with pytest.raises(NewerFormat), running_broker(tmp_path):
        pass
    done = use("zmqbroker.cli", ["serve", "--data-dir", str(tmp_path), "--bind", "tcp://127.0.0.1:*"])

    assert_refused("broker", done, str(segment), "format version 7", "this software knows 1", "another directory")
    assert contents(tmp_path) == before

    set_version(segment, 1)  # the version that can read it is started again
    with running_broker(tmp_path) as broker:
        assert topic_stats(broker, "kept")["messages"] == 10


def test_a_journal_of_a_newer_version_is_refused_by_name() -> None:
    recovered = Recovered(json.dumps({"v": 2}).encode(), iter(()), [0] * 4, True, [])
    with pytest.raises(NewerFormat, match="the journal of topic t has format version 2"):
        Topic("t", TopicConfig(), bytes(16)).recover(recovered, 0.0)
