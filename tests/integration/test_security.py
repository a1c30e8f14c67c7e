"""Keys: who is not listed is not heard, who is listed does what its role allows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.helpers.waiting import eventually
from zmqbroker.admin.contexts import Contexts
from zmqbroker.admin.server import AdminServer
from zmqbroker.admin.shell import Shell
from zmqbroker.client import Consumer, Producer
from zmqbroker.core.config import BrokerConfig, TopicConfig
from zmqbroker.errors import BrokerError
from zmqbroker.security import AllowList, ClientKeys, KeyFileError, ServerKeys, load_public, load_secret, make_keys
from zmqbroker.server import Broker, ServerConfig


class Vault:
    """Keys of a broker and of four clients, and the list of who may do what."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("broker", "agent", "collector", "operator", "stranger"):
            make_keys(name, directory)
        self.allow = directory / "allow-list"
        self.allow.write_text(
            "# who may do what\n\n"
            f"{self.public('agent')} produce the agents\n"
            f"{self.public('collector')} consume\n"
            f"{self.public('operator')} produce,consume,admin  the operator # on call\n"
        )

    def public(self, name: str) -> str:
        return load_public(str(self.directory / f"{name}.key")).decode()

    def client(self, name: str) -> ClientKeys:
        return ClientKeys.load(self.directory / f"{name}.key_secret", str(self.directory / "broker.key"))

    def server(self) -> ServerKeys:
        return ServerKeys.load(self.directory / "broker.key_secret", self.allow)


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "keys")


@pytest.fixture
def broker(tmp_path: Path, vault: Vault) -> Iterator[Broker]:
    config = ServerConfig(tmp_path / "data", ("tcp://127.0.0.1:*",), BrokerConfig(), TopicConfig(segment_bytes=1 << 20))
    running = Broker(config, keys=vault.server())
    running.start()
    yield running
    running.stop()


def test_listed_clients_publish_and_consume_over_curve(broker: Broker, vault: Vault) -> None:
    url = broker.endpoints[0]
    with Producer(url, "t", keys=vault.client("agent")) as producer:
        producer.publish(b"secret", 1, timeout=15)
        assert producer.flush(15)
    with Consumer(url, "t", "g", keys=vault.client("collector")) as consumer:
        delivery = consumer.receive(15)
        assert delivery is not None
        assert [bytes(p) for p in delivery.payloads()] == [b"secret"]


@pytest.mark.parametrize("who", ["stranger", None])
def test_who_is_not_listed_is_not_heard(broker: Broker, vault: Vault, who: str | None) -> None:
    with Producer(broker.endpoints[0], "t", keys=vault.client(who) if who else None) as producer:
        receipt = None
        try:
            receipt = producer.publish(b"x", 1, timeout=1.0)
        except BrokerError:
            pass
        assert receipt is None or not receipt.wait(1.0)
        producer.close(0)
    assert broker.call(lambda core: dict(core.topics)) == {}
    if who is not None:
        assert broker.keys is not None
        assert broker.keys.refused > 0


def test_a_broker_with_another_key_is_not_trusted(broker: Broker, vault: Vault) -> None:
    keys = ClientKeys.load(vault.directory / "agent.key_secret", vault.public("stranger"))
    with Producer(broker.endpoints[0], "t", keys=keys) as producer:
        receipt = None
        try:
            receipt = producer.publish(b"x", 1, timeout=0.7)
        except BrokerError:
            pass
        assert receipt is None or not receipt.wait(0.7)
        producer.close(0)
    assert broker.call(lambda core: dict(core.topics)) == {}


def test_a_role_allows_its_own_conversation_and_no_other(broker: Broker, vault: Vault) -> None:
    url = broker.endpoints[0]
    assert broker.keys is not None
    with Producer(url, "t", keys=vault.client("agent")) as producer:
        producer.publish(b"x", 1, timeout=15)
        assert producer.flush(15)
    denied = broker.keys.denied
    with Consumer(url, "t", "g", keys=vault.client("agent")) as consumer, contextlib.suppress(BrokerError):
        assert consumer.receive(1.0) is None
    assert broker.keys.denied > denied
    assert broker.call(lambda core: dict(core.topics["t"].groups)) == {}


def test_the_admin_socket_asks_for_the_admin_role(broker: Broker, vault: Vault, tmp_path: Path) -> None:
    admin = AdminServer(broker, "tcp://127.0.0.1:*")
    admin.start()
    try:
        for who, code in (("operator", 0), ("agent", 1), ("stranger", 1), (None, 1)):
            out, err = io.StringIO(), io.StringIO()
            key = vault.directory / f"{who}.key_secret" if who else None
            server_key = str(vault.directory / "broker.key") if who else None
            shell = Shell(
                admin.endpoint, key=key, server_key=server_key, timeout_s=5.0 if code == 0 else 0.7, out=out, err=err,
                contexts=Contexts(tmp_path / "contexts"), output="json",
            )  # fmt: skip
            assert shell.run(["topic", "create", "t"] if code == 0 else ["status"]) == code, err.getvalue()
            shell.close()
        assert admin.admin.audit[0]["who"] == "the operator"
    finally:
        admin.stop()


def test_a_changed_allow_list_counts_from_the_next_conversation_on(broker: Broker, vault: Vault) -> None:
    with vault.allow.open("a") as file:
        file.write(f"{vault.public('stranger')} produce\n")
    with Producer(broker.endpoints[0], "t", keys=vault.client("stranger")) as producer:
        producer.publish(b"x", 1, timeout=15)
        assert producer.flush(15)


def test_a_damaged_allow_list_keeps_what_stood_there_before(vault: Vault) -> None:
    allow = AllowList(vault.allow)
    assert allow.roles(vault.public("agent")) == {"produce"}
    vault.allow.write_text(f"{vault.public('agent')} everything\n")
    assert allow.roles(vault.public("agent")) == {"produce"}
    assert "line 1" in allow.error
    assert "everything" in allow.error
    vault.allow.write_text(f"{vault.public('agent')} consume\n")
    assert allow.roles(vault.public("agent")) == {"consume"}
    assert allow.error == ""


def test_keys_are_private_and_never_overwritten(vault: Vault) -> None:
    secret = vault.directory / "agent.key_secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyFileError, match="exists"):
        make_keys("agent", vault.directory)
    with pytest.raises(KeyFileError, match="no name"):
        make_keys("../agent", vault.directory)
    secret.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_secret(secret)
    with pytest.raises(KeyFileError, match="no secret key"):
        load_secret(vault.directory / "agent.key")
    assert vault.client("collector").own.secret.decode() not in repr(vault.client("collector"))


def test_a_key_is_never_taken_for_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = zmq.curve_keypair
    drawn: list[bytes] = []

    def first_with_a_dash() -> tuple[bytes, bytes]:
        public, secret = draw()
        drawn.append(public if drawn else b"-" + public[1:])
        return drawn[-1], secret

    monkeypatch.setattr(zmq, "curve_keypair", first_with_a_dash)
    public, _ = make_keys("agent", tmp_path)
    assert len(drawn) > 1
    assert load_public(str(public)) == drawn[-1]
    assert not drawn[-1].startswith(b"-")


@pytest.mark.parametrize("text", ["short produce", "x" * 40, '"' * 40 + " produce", "a b c", "k" * 40 + " root"])
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "allow").write_text(f"# fine\n{text}\n")
    with pytest.raises(KeyFileError, match="line 2"):
        AllowList(tmp_path / "allow")


# -- the command line


def zmqbroker(*words: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("BROKER_", "ZMQBROKER_"))}
    return subprocess.run(
        [sys.executable, "-m", "zmqbroker.cli", *words], capture_output=True, text=True, timeout=60, env=environ
    )


def test_keygen_writes_both_files_and_says_what_goes_into_the_list(tmp_path: Path) -> None:
    done = zmqbroker("keygen", "lab", "--out", str(tmp_path / "k"))
    assert done.returncode == 0
    assert load_public(str(tmp_path / "k" / "lab.key")).decode() in done.stdout
    assert load_secret(tmp_path / "k" / "lab.key_secret").secret.decode() not in done.stdout
    again = zmqbroker("keygen", "lab", "--out", str(tmp_path / "k"))
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--bind", "tcp://0.0.0.0:0"), "without keys"),
        (("--admin-bind", "tcp://*:0"), "without keys"),
        (("--curve-key", "nowhere"), "go together"),
        (("--curve-key", "nowhere", "--allow-list", "nothing"), "cannot read the key"),
    ],
)
def test_beyond_loopback_nothing_listens_without_keys(tmp_path: Path, options: tuple[str, ...], hint: str) -> None:
    done = zmqbroker("serve", "--data-dir", str(tmp_path), "--http", "127.0.0.1:0", *options)
    assert done.returncode == 2
    assert hint in done.stderr


def test_the_whole_way_by_the_command_line_with_keys(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "keys")
    environ = {**os.environ, "BROKER_LOG_FORMAT": "json"}
    with subprocess.Popen(
        [sys.executable, "-m", "zmqbroker.cli", "serve", "--data-dir", str(tmp_path / "data"), "--bind", "tcp://127.0.0.1:*",
         "--admin-bind", "tcp://127.0.0.1:*", "--http", "127.0.0.1:0", "--curve-key", str(vault.directory / "broker.key_secret"),
         "--allow-list", str(vault.allow)],
        stderr=subprocess.PIPE, text=True, env=environ,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr)
            listening = next(line for line in lines if line["msg"] == "broker listening")
            keys = ("--key", str(vault.directory / "operator.key_secret"), "--server-key", vault.public("broker"))
            done = zmqbroker("admin", "--url", listening["admin"], *keys, "produce", "t", "hello", "-o", "json")
            assert done.returncode == 0, done.stderr
            done = zmqbroker("admin", "--url", listening["admin"], *keys, "peek", "t", "-o", "csv")
            assert "hello" in done.stdout
            process.terminate()
            process.stderr.read()
            eventually(lambda: process.poll() is not None, 15, "the broker ends")
            assert process.returncode == 0
        finally:
            process.kill()
