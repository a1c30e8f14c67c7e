"""The operator's shell against a real broker, over the admin socket."""

from __future__ import annotations

import contextvars
import io
import json
import os
import pty
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.helpers.waiting import eventually
from zmqbroker.admin.contexts import Contexts
from zmqbroker.admin.protocol import unpack_answer
from zmqbroker.admin.server import AdminServer
from zmqbroker.admin.shell import CommandCompleter, Shell
from zmqbroker.client import Consumer, Delivery, Producer
from zmqbroker.core.config import TopicConfig
from zmqbroker.server import Broker
from zmqbroker.storage.backup import restore_logs
from zmqbroker.testing import running_broker


class Desk:
    """A broker, its admin socket, and a shell whose output is caught."""

    def __init__(self, broker: Broker, admin: AdminServer, contexts: Path) -> None:
        self.broker = broker
        self.admin = admin
        self.url = broker.endpoints[0]
        self.typed: list[str] = []
        self.out, self.err = io.StringIO(), io.StringIO()
        self.shell = Shell(
            admin.endpoint, contexts=Contexts(contexts), out=self.out, err=self.err, sleep=lambda seconds: None,
            ask_person=lambda question: self.typed.pop(0),
        )  # fmt: skip

    def run(self, *words: str, code: int = 0) -> str:
        """One command; its output, after a check of its exit code."""
        self.out.seek(0)
        self.out.truncate()
        self.err.seek(0)
        self.err.truncate()
        found = self.shell.run(list(words))
        assert found == code, f"{words}: exit code {found}: {self.err.getvalue()}{self.out.getvalue()}"
        return self.out.getvalue()

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.run(*words, "-o", "json", code=code))

    def publish(self, count: int, topic: str = "t", first: int = 0) -> int:
        """``count`` messages of ten rows that tell their number; the session."""
        with Producer(self.url, topic) as producer:
            for i in range(first, first + count):
                producer.publish(b"message %d" % i, 10)
            assert producer.flush(20)
            return producer.session


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with running_broker(tmp_path / "data", topic=TopicConfig(partitions=2, segment_bytes=1 << 20)) as broker:
        admin = AdminServer(broker, "tcp://127.0.0.1:*")
        admin.start()
        try:
            yield Desk(broker, admin, tmp_path / "contexts.json")
        finally:
            admin.stop()


def take(consumer: Consumer, messages: int, on: Callable[[Delivery], None] | None = None) -> list[bytes]:
    """Receive and ack until ``messages`` have come."""
    found: list[bytes] = []
    while len(found) < messages:
        delivery = consumer.receive(15)
        assert delivery is not None, f"only {len(found)} of {messages} came"
        found += [bytes(p) for p in delivery.payloads()]
        if on is not None:
            on(delivery)
        consumer.ack(delivery)
    return found


def settled(desk: Desk, group: str, topic: str = "t") -> None:
    eventually(lambda: desk.json("group", "info", topic, group)["lag_messages"] == 0, 15, "the acks arrive")


# -- looking


def test_a_new_broker_can_be_looked_at_in_every_way(desk: Desk) -> None:
    for words in ("status", "topics", "partitions", "groups", "lag", "members", "clients", "gaps", "dlq ls", "doctor",
                  "check", "metrics", "events", "audit", "quota get", "config get", "log-level", "version", "top --once",
                  "help", "help topic", "context ls"):  # fmt: skip
        desk.run(*words.split())


def test_a_topic_is_made_filled_looked_at_changed_and_removed(desk: Desk) -> None:
    made = desk.json("topic", "create", "t", "--partitions", "3", "--retention", "1h")
    assert made["settings"]["retention_ms"] == 3_600_000
    desk.publish(20)
    info = desk.json("topic", "info", "t")
    assert (info["partitions"], info["published_messages"], info["published_rows"]) == (3, 20, 200)
    assert sum(p["messages"] for p in desk.json("partitions", "t")) == 20
    assert desk.json("topics")[0]["rows"] == 200
    changed = desk.json("topic", "edit", "t", "--retention", "2h", "--disk-max", "1GiB")
    assert changed["changed"]["retention_ms"] == {"from": 3_600_000, "to": 7_200_000}
    saved = json.loads((Path(desk.broker.config.data_dir) / "t" / "topic.json").read_text())
    assert (saved["retention_ms"], saved["disk_bytes_max"], saved["partitions"]) == (7_200_000, 1 << 30, 3)
    assert desk.json("topic", "delete", "t", "--dry-run")["messages"] == 20
    assert desk.json("topics")
    desk.run("topic", "delete", "t", "--yes")
    assert desk.json("topics") == []
    assert not (Path(desk.broker.config.data_dir) / "t").exists()
    desk.publish(1)  # made again on first use, under another uuid
    assert desk.json("topic", "info", "t")["log_uuid"] != info["log_uuid"]


def test_records_are_looked_at_without_being_taken(desk: Desk) -> None:
    desk.publish(30)
    first = desk.json("peek", "t", "-n", "4")
    assert len(first) == 4
    assert first[0]["payload"] == "message 0"
    last = desk.json("peek", "t", "-n", "2", "--from", "latest", "--partition", str(first[0]["partition"]))
    assert last[-1]["offset"] > first[0]["offset"]
    one = desk.json("peek", "t", "-n", "1", "--from", "3", "--partition", str(first[0]["partition"]))
    assert one[0]["offset"] == 3
    assert desk.json("peek", "t", "--from", "now-1h")[0]["offset"] == 0
    assert desk.json("peek", "t", "--from", "2999-01-01") == []
    assert desk.json("topics")[0]["messages"] == 30
    assert "message" in desk.run("tail", "t", "-n", "3")
    desk.run("peek", "t", "--partition", "9", code=2)


def test_a_message_can_be_published_and_traced(desk: Desk) -> None:
    sent = desk.json("produce", "t", "hello", "--rows", "7")
    found = desk.json("trace", "t", f"{sent['session']}/{sent['seq']}")
    assert (found["in_log"], found["rows"], found["acked"]) == (True, 7, True)
    with Consumer(desk.url, "t", "g") as consumer:
        delivery = consumer.receive(15)
        assert delivery is not None
        fate = desk.json("trace", "t", f"{found['partition']}:{found['offset']}")["groups"][0]
        assert (fate["group"], fate["fate"]) == ("g", "held")
        consumer.ack(delivery)
        settled(desk, "g")
    assert desk.json("trace", "t", f"{found['partition']}:{found['offset']}")["groups"][0]["fate"] == "settled"
    assert desk.json("trace", "t", "1/1")["in_log"] is False


def test_lag_is_in_rows_and_seconds_and_can_be_an_alarm(desk: Desk) -> None:
    desk.publish(10)
    with Consumer(desk.url, "t", "g", credit=0):
        eventually(lambda: desk.json("groups"), 15, "the group is there")
        rows = desk.json("lag", "t", "g")
        assert sum(r["lag_rows"] for r in rows) == 100
        assert sum(r["lag_messages"] for r in rows) == 10
        desk.run("lag", "--max-rows", "99", code=1)
        desk.run("lag", "--max-rows", "100", code=0)
        clients = desk.json("clients")
        assert [c["kind"] for c in clients] == ["consumer"]
        assert desk.json("members", "t", "g")[0]["client"] == clients[0]["client"]
    problems = [c for c in desk.json("doctor", code=1) if c["state"] == "problem"]
    assert "no member" in problems[0]["finding"]
    assert problems[0]["do"]


# -- groups


def test_a_paused_group_gets_nothing_until_it_is_resumed(desk: Desk) -> None:
    with Consumer(desk.url, "t", "g") as consumer:
        eventually(lambda: desk.json("groups"), 15, "the group is there")
        assert desk.json("group", "pause", "t", "g")["paused"]
        desk.publish(5)
        assert consumer.receive(0.7) is None
        assert desk.json("groups")[0]["paused"]
        desk.run("group", "resume", "t", "g")
        assert len(take(consumer, 5)) == 5


def test_r27_a_reset_group_gets_everything_again_as_doubtful(desk: Desk) -> None:
    desk.publish(40)
    with Consumer(desk.url, "t", "g") as consumer:
        assert len(take(consumer, 40)) == 40
        settled(desk, "g")
        generation = desk.json("group", "info", "t", "g")["generation"]
        plan = desk.json("group", "reset", "t", "g", "--to", "earliest", "--dry-run")["plan"]
        assert sum(p["from"] for p in plan) == 40
        assert all(p["to"] == 0 for p in plan)
        assert consumer.receive(0.3) is None
        desk.run("group", "reset", "t", "g", "--to", "earliest", "--yes")
        doubts: list[bool] = []
        again = take(consumer, 40, lambda d: doubts.append(d.maybe_repeat))
        assert sorted(again) == sorted(b"message %d" % i for i in range(40))
        assert all(doubts)
        settled(desk, "g")
        assert desk.json("group", "info", "t", "g")["generation"] == generation + 1
        desk.publish(1, first=40)
        assert take(consumer, 1, lambda d: doubts.append(d.maybe_repeat)) == [b"message 40"]
        assert doubts[-1] is False  # what comes now was never given out


def test_r27_replay_gives_old_records_to_one_group_and_leaves_its_place(desk: Desk) -> None:
    desk.publish(30)
    with Consumer(desk.url, "t", "g") as consumer, Consumer(desk.url, "t", "other") as other:
        take(consumer, 30)
        take(other, 30)
        settled(desk, "g")
        settled(desk, "other")
        assert desk.json("replay", "t", "--into", "g", "--dry-run")["rows"] == 300
        assert desk.json("replay", "t", "--into", "g", "--yes")["rows"] == 300
        doubts: list[bool] = []
        assert len(take(consumer, 30, lambda d: doubts.append(d.maybe_repeat))) == 30
        assert all(doubts)
        assert other.receive(0.5) is None


def test_r27_what_was_settled_around_a_range_that_is_being_delivered_is_replayed(desk: Desk) -> None:
    with Consumer(desk.url, "t", "g", credit=8, linger_ms=0) as consumer:
        taken: list[Delivery] = []
        for first in range(0, 30, 10):
            desk.publish(10, first=first)
            while sum(len(delivery.records) for delivery in taken) < first + 10:
                delivery = consumer.receive(30)
                assert delivery is not None
                taken.append(delivery)
        held = taken.pop(len(taken) // 2)
        for delivery in taken:
            consumer.ack(delivery)
        rows = 10 * (30 - len(held.records))
        eventually(lambda: desk.json("replay", "t", "--into", "g", "--dry-run")["rows"] == rows, 30, "all but one")
        assert desk.json("replay", "t", "--into", "g", "--yes")["rows"] == rows
        again = take(consumer, 30 - len(held.records))
        assert set(again).isdisjoint(bytes(payload) for payload in held.payloads())


def test_a_deleted_group_begins_anew(desk: Desk) -> None:
    desk.publish(5)
    with Consumer(desk.url, "t", "g") as consumer:
        take(consumer, 5)
        settled(desk, "g")
    desk.run("group", "delete", "t", "g", "--yes")
    assert desk.json("groups") == []
    with Consumer(desk.url, "t", "g") as consumer:
        assert len(take(consumer, 5)) == 5


# -- dropping and keeping


def test_purged_records_are_gone_for_every_group(desk: Desk) -> None:
    desk.publish(50)
    assert desk.json("purge", "t", "--keep", "0", "--dry-run")["offsets"] == 50
    assert desk.json("purge", "t", "--before", "latest", "--yes")["offsets"] == 50
    desk.publish(3, first=50)
    with Consumer(desk.url, "t", "g") as consumer:
        assert sorted(take(consumer, 3)) == [b"message 50", b"message 51", b"message 52"]
        assert consumer.receive(0.3) is None
    assert sum(g["messages"] for g in desk.json("gaps", "t")) == 50
    assert [r["payload"] for r in desk.json("peek", "t")] == ["message 50", "message 51", "message 52"]
    desk.run("purge", "t", "--yes", code=2)


def test_a_backup_taken_while_producers_write_can_be_restored(desk: Desk, tmp_path: Path) -> None:
    desk.publish(200)
    desk.run("snapshot", "t")
    desk.publish(200, first=200)
    copied = desk.json("backup", "--to", str(tmp_path / "backup"))
    assert copied["bytes"]["t"] > 0
    uuid = desk.json("topic", "info", "t")["log_uuid"]
    desk.run("restore", "--from", str(tmp_path / "backup"), "--data-dir", str(tmp_path / "restored"))
    desk.run("restore", "--from", str(tmp_path / "nothing"), "--data-dir", str(tmp_path / "r2"), code=1)
    with pytest.raises(Exception, match="is held by"):
        restore_logs(tmp_path / "backup", desk.broker.config.data_dir)
    with running_broker(tmp_path / "restored") as broker:
        assert broker.core.topics["t"].uuid.hex() != uuid  # R10
        with Consumer(broker.endpoints[0], "t", "g") as consumer:
            assert len(take(consumer, 400)) == 400


# -- dead letters


def bury(desk: Desk, count: int) -> None:
    """``count`` messages that group g gives up on."""
    desk.publish(count)
    with Consumer(desk.url, "t", "g", max_rows=10) as consumer:
        for _ in range(count):
            delivery = consumer.receive(15)
            assert delivery is not None
            consumer.nack(delivery, "cannot be stored", dead=True)
        eventually(lambda: sum(x["letters"] for x in desk.json("dlq", "ls")) == count, 15, "the letters are written")
        settled(desk, "g")


def test_r26_dead_letters_are_listed_and_given_back_to_their_group_alone(desk: Desk) -> None:
    bury(desk, 6)
    assert desk.json("dlq", "stats", "t") == [{"group": "g", "reason": "cannot be stored", "letters": 6, "rows": 60}]
    letters = desk.json("dlq", "peek", "t", "-n", "2")
    assert (letters[0]["group"], letters[0]["reason"], letters[0]["rows"]) == ("g", "cannot be stored", 10)
    assert desk.json("dlq", "redrive", "t", "--dry-run")["redriven"] == 6
    with (
        Consumer(desk.url, "t", "other", credit=2, start="latest") as other,
        Consumer(desk.url, "t", "g", max_rows=10) as g,
    ):
        assert desk.json("dlq", "redrive", "t", "--yes")["redriven"] == 6
        doubts: list[bool] = []
        assert sorted(take(g, 6, lambda d: doubts.append(d.maybe_repeat))) == [b"message %d" % i for i in range(6)]
        assert all(doubts)
        assert other.receive(0.3) is None
        eventually(lambda: sum(x["letters"] for x in desk.json("dlq", "ls")) == 0, 15, "the letters are done with")


def test_r26_a_dead_letter_can_be_given_back_after_its_record_is_gone(desk: Desk) -> None:
    bury(desk, 2)
    desk.run("purge", "t", "--before", "latest", "--yes")
    with Consumer(desk.url, "t", "g", max_rows=10) as consumer:
        desk.run("dlq", "redrive", "t", "--offset", "1", "--yes")
        assert take(consumer, 1) == [b"message 1"]
        eventually(lambda: [x["letter"] for x in desk.json("dlq", "peek", "t")] == [0], 15, "one letter is done with")


def test_dead_letters_can_go_to_another_topic(desk: Desk) -> None:
    bury(desk, 3)
    desk.run("topic", "create", "repair")
    assert desk.json("dlq", "redrive", "t", "--target", "repair", "--yes")["redriven"] == 3
    with Consumer(desk.url, "repair", "g") as consumer:
        assert sorted(take(consumer, 3)) == [b"message 0", b"message 1", b"message 2"]
    eventually(lambda: desk.json("dlq", "peek", "t") == [], 15, "the letters are done with")
    assert desk.json("topic", "info", "t")["dead"] == 0


def test_dead_letters_can_be_dropped_one_by_one_or_all(desk: Desk) -> None:
    bury(desk, 4)
    second = desk.json("dlq", "peek", "t")[1]["letter"]
    desk.run("dlq", "drop", "t", "--offset", str(second), "--yes")
    eventually(lambda: [x["letter"] for x in desk.json("dlq", "peek", "t")] == [0, 2, 3], 15, "one letter is gone")
    assert desk.json("dlq", "drop", "t", "--dry-run")["letters"] == 3
    desk.run("dlq", "drop", "t", "--yes")
    eventually(lambda: desk.json("dlq", "peek", "t") == [], 15, "all letters are gone")
    desk.run("dlq", "peek", "nowhere", code=1)


# -- limits, peers, logs


def test_a_drained_topic_takes_no_more_until_it_is_undrained(desk: Desk) -> None:
    desk.publish(1)
    desk.run("drain", "t")
    with Producer(desk.url, "t") as producer:
        receipt = producer.publish(b"x" * 1000, 1, timeout=10)
        assert not receipt.wait(0.5)
        assert desk.json("topic", "info", "t")["draining"]
        assert "topic t is drained: its producers wait" in desk.run("doctor")
        desk.run("undrain", "t")
        assert receipt.wait(10)


def test_limits_can_be_changed_and_wrong_ones_are_refused(desk: Desk) -> None:
    assert desk.json("quota", "set", "topics_max", "1")["to"] == 1
    desk.publish(1)
    assert desk.json("quota", "get")["topics_max"] == 1
    desk.run("quota", "set", "topics_max", "many", code=2)
    desk.run("quota", "set", "tail", "5", code=1)
    desk.run("quota", "set", "topics_max", "0", code=2)
    desk.run("quota", "set", "reconnect_grace_s", "2", code=2)
    assert desk.json("config", "get", "topics_max") == {"topics_max": 1}
    desk.run("config", "reload", code=1)  # without keys there is no allow-list


def test_a_kicked_client_comes_back_and_loses_nothing(desk: Desk) -> None:
    with Producer(desk.url, "t") as producer:
        producer.publish(b"one", 1)
        assert producer.flush(10)
        client = desk.json("clients")[0]["client"]
        desk.run("kick", client, "--yes")
        producer.publish(b"two", 1, timeout=15)
        assert producer.flush(15)
    assert desk.json("topic", "info", "t")["published_messages"] == 2
    desk.run("kick", "p-0000000000000000", "--yes", code=1)


def test_what_was_changed_and_by_whom_is_written_down(desk: Desk) -> None:
    desk.run("topic", "create", "t")
    desk.run("topic", "create", "t", code=1)
    desk.run("topics")
    found = desk.json("audit")
    assert [(a["command"], a["outcome"]) for a in found] == [
        ("topic create", "done"),
        ("topic create", "topic t exists"),
    ]
    assert all(a["who"] == "127.0.0.1" for a in found)


# -- the shell itself


def test_what_destroys_asks_for_the_name_on_a_terminal_and_for_yes_elsewhere(desk: Desk) -> None:
    desk.publish(1)
    desk.run("topic", "delete", "t", code=2)
    desk.shell.terminal = True
    desk.typed = ["something else", "t"]
    desk.run("topic", "delete", "t", code=1)
    assert desk.json("topics")
    desk.run("topic", "delete", "t")
    assert desk.json("topics") == []


def test_a_script_ends_at_the_first_line_that_fails(desk: Desk) -> None:
    script = ["topic create a  # a comment", "", "topic create 'b'", "topic info nowhere", "topic create c"]
    assert desk.shell.run_script(script) == 1
    assert [t["topic"] for t in desk.json("topics")] == ["a", "b"]


def test_words_are_completed_with_what_the_broker_knows(desk: Desk) -> None:
    desk.publish(1, topic="gpu-telemetry")

    def offers(text: str) -> list[str]:
        document = Document(text, len(text))
        return [c.text for c in CommandCompleter(desk.shell).get_completions(document, CompleteEvent())]

    assert "topics" in offers("to")
    assert {"info", "create", "delete", "edit"} <= set(offers("topic "))
    assert offers("peek ") == ["gpu-telemetry"]
    assert "--from" in offers("peek gpu-telemetry --")
    assert offers("peek gpu-telemetry --decode ") == ["auto", "yes", "no"]
    assert "topics_max" in offers("quota set ")


def test_the_prompt_runs_lines_until_exit(desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("topic create t\ntopic info t -o json\nnonsense\nexit\n")
        desk.out.seek(0)
        desk.out.truncate()
        # In a thread: the browser tests leave an event loop in this one, and the prompt brings its own.
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(contextvars.copy_context().run, desk.shell.prompt).result(30)
        assert code == 2  # of the last command
    assert '"log_uuid"' in desk.out.getvalue()
    assert "no command 'nonsense'" in desk.err.getvalue()
    assert "topic create t" in (tmp_path / "config" / "zmqbroker" / "history").read_text()


def test_the_live_screen_sorts_by_key_and_ends_with_q(desk: Desk) -> None:
    """On a real terminal, in a process of its own."""
    desk.publish(5)
    child, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqbroker.cli", "admin", "--url", desk.admin.endpoint, "top", "-i", "0.2"],
        stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, close_fds=True, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""

    def shows(text: bytes) -> bool:
        nonlocal seen
        if select.select([child], [], [], 0.1)[0]:
            seen += os.read(child, 65536)
        return text in seen

    try:
        eventually(lambda: shows(b"sorted by topic"), 20, "the first screen", pause=0.01)
        os.write(child, b"o")
        eventually(lambda: shows(b"sorted by group"), 20, "another column", pause=0.01)
        os.write(child, b"q")
        eventually(lambda: process.poll() is not None or shows(b"\0"), 20, "the end", pause=0.01)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(child)
        assert process.stderr is not None
        process.stderr.close()


def test_nobody_there_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    err = io.StringIO()
    shell = Shell(f"tcp://127.0.0.1:{port}", timeout_s=0.2, contexts=Contexts(tmp_path / "c"), err=err)
    assert shell.run(["status"]) == 1
    assert "no broker answers" in err.getvalue()
    assert err.getvalue().count("\n") == 1


def test_a_saved_context_is_used(desk: Desk, tmp_path: Path) -> None:
    contexts = Contexts(tmp_path / "contexts.json")
    desk.run("context", "add", "here", desk.admin.endpoint)
    out = io.StringIO()
    shell = Shell(contexts=contexts, out=out)
    assert shell.run(["version", "-o", "json"]) == 0
    assert json.loads(out.getvalue())["protocol"] == 1


def test_a_live_view_ends_after_its_rounds(desk: Desk) -> None:
    desk.publish(5)
    assert desk.run("top", "--rounds", "3").count("lag rows") == 3
    assert desk.run("watch", "--rounds", "2", "topics").count("disk bytes") == 2


def test_the_bench_cleans_up_after_itself(desk: Desk) -> None:
    assert desk.json("bench", "--messages", "200", "--size", "100")["messages_per_s"] > 0
    assert desk.json("topics") == []


# -- garbage


def test_garbage_on_the_admin_socket_is_answered_and_hurts_nobody(desk: Desk) -> None:
    context: zmq.Context[Any] = zmq.Context.instance()
    dealer = context.socket(zmq.DEALER)
    dealer.set(zmq.LINGER, 0)
    dealer.connect(desk.admin.endpoint)
    try:
        frames = [[b""], [b"{}"], [b"[" * 10_000], [os.urandom(1000)], [b'{"v":1,"command":"status","args":{"x":1}}'],
                  [b'{"v":1,"command":"no such"}'], [b"a", b"b", b"c"], [b'{"v":9,"command":"status"}']]  # fmt: skip
        for message in frames:
            dealer.send_multipart(message)
            assert dealer.poll(5000), message
            with pytest.raises(Exception, match=r".+"):
                unpack_answer(dealer.recv())
    finally:
        dealer.close(0)
    assert desk.json("status")["topics"] == 0
