"""The service: probes, metrics, signals. In this process where it can be, as a real process where signals matter."""

from __future__ import annotations

import io
import json
import logging
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from telemetry.addresses import AddressUnavailable, is_loopback, listening_socket, may_listen
from telemetry.options import UsageError
from telemetry.service import Check, Service
from telemetry.signals import SAME_REQUEST_S, StopRequest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def service() -> Iterator[Service]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with Service("telemetry-demo", "127.0.0.1:0", log_format="json", log_stream=io.StringIO()) as service:
        yield service
    root.handlers[:] = handlers
    root.setLevel(level)


def get(service: Service, path: str, method: str = "GET") -> tuple[int, Any]:
    request = urllib.request.Request(f"http://{service.address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def get_json(service: Service, path: str) -> tuple[int, Any]:
    status, body = get(service, path)
    return status, json.loads(body)


def test_health_has_every_promised_key(service: Service) -> None:
    service.check("store", lambda: Check("degraded", "slow"))
    service.check("broker", Check)
    status, body = get_json(service, "/health")
    assert status == 200
    assert set(body) == {"status", "service", "version", "timestamp", "uptime_seconds", "checks"}
    assert body["status"] == "degraded"
    assert body["service"] == "telemetry-demo"
    assert body["checks"] == {
        "store": {"status": "degraded", "reason": "slow"},
        "broker": {"status": "healthy", "reason": ""},
    }


def test_an_unhealthy_check_makes_health_503_and_an_unready_one_only_readyz(service: Service) -> None:
    service.check("store", lambda: Check("unhealthy", "away", ready=False))
    assert get_json(service, "/health")[0] == 503
    assert get_json(service, "/readyz") == (503, {"status": "not ready", "reasons": {"store": "away"}})
    # A dependency that is away must not get this process restarted.
    assert get_json(service, "/healthz") == (200, {"status": "alive"})
    service.check("store", lambda: Check("degraded", "slow"))
    assert get_json(service, "/readyz") == (200, {"status": "ready"})


def test_only_a_check_that_says_so_makes_the_process_dead(service: Service) -> None:
    service.check("loop", lambda: Check("unhealthy", "stuck for 60 s", ready=False, alive=False))
    assert get_json(service, "/healthz") == (503, {"status": "dead", "reasons": {"loop": "stuck for 60 s"}})


def test_a_check_that_raises_is_unhealthy_and_says_why(service: Service) -> None:
    service.check("broken", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    status, body = get_json(service, "/health")
    assert status == 503
    assert "ZeroDivisionError" in body["checks"]["broken"]["reason"]


def test_a_process_that_drains_is_alive_but_not_ready(service: Service) -> None:
    service.stopping.set()
    assert get_json(service, "/readyz")[0] == 503
    assert get_json(service, "/healthz")[0] == 200


def test_routes_mounts_unknown_paths_and_other_methods(service: Service) -> None:
    service.route("/stats", lambda: {"rows": 3})
    service.route("/broken", lambda: 1 / 0)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("201 Created", [("Content-Length", "2")])
        return [b"ok"]

    service.mount("/api/v1", app)
    assert get_json(service, "/stats") == (200, {"rows": 3})
    assert get_json(service, "/broken")[0] == 503
    assert get(service, "/api/v1/csv/upload", "POST") == (201, b"ok")
    assert get_json(service, "/api/v1x")[0] == 404
    assert "/stats" in get_json(service, "/nothing")[1]["paths"]
    assert get(service, "/stats", "POST")[0] == 405
    assert get(service, "/stats", "HEAD") == (200, b"")


def test_metrics_hold_process_build_readiness_and_checks(service: Service) -> None:
    service.check("store", lambda: Check("degraded"))
    service.log.warning("something")
    text = get(service, "/metrics")[1].decode()
    assert 'telemetry_build_info{service="telemetry-demo",version="0.1.0"} 1.0' in text
    assert "telemetry_ready 1.0" in text
    assert 'telemetry_check_status{check="store"} 1.0' in text
    assert 'telemetry_log_lines_total{level="warning"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text


def test_silent_clients_do_not_keep_a_probe_waiting(service: Service) -> None:
    host, _, port = service.address.partition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    for sock in silent:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")  # never finished
    started = time.monotonic()
    assert get_json(service, "/healthz")[0] == 200
    assert time.monotonic() - started < 2
    for sock in silent:
        sock.close()


def test_garbage_on_the_port_does_no_harm(service: Service) -> None:
    host, _, port = service.address.partition(":")
    for garbage in (
        b"\0" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 300_000,
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        with socket.create_connection((host, int(port))) as sock:
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                sock.recv(100)
            except OSError:
                pass
    assert get_json(service, "/healthz")[0] == 200


def test_after_stop_nothing_listens(service: Service) -> None:
    host, _, port = service.address.partition(":")
    service.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1)


def test_an_address_in_use_is_named_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=rf"--http {address}: the address is in use by another process"):
            listening_socket(address, "--http")


def test_beyond_loopback_nothing_listens_without_keys_unless_insecure_says_so() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    for host in ("0.0.0.0", "::", "", "*", "8.8.8.8", "no.such.host.invalid"):
        assert not is_loopback(host)
    with pytest.raises(AddressUnavailable, match=r"--http 0\.0\.0\.0:0 is open beyond this machine without keys"):
        listening_socket("0.0.0.0:0", "--http")
    listening_socket("0.0.0.0:0", "--http", insecure=True).close()
    may_listen("0.0.0.0", "--bind", keys=True)


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(AddressUnavailable, match=r"the host no\.such\.host\.invalid is not known"):
        listening_socket("no.such.host.invalid:1", "--http", insecure=True)


class Signals:
    """A StopRequest with a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.seen: list[tuple[str, int]] = []
        self.request = StopRequest(
            lambda n: self.seen.append(("stop", n)), lambda n: self.seen.append(("at once", n)), lambda: self.now
        )


def test_the_first_signal_stops_and_the_same_again_ends_at_once() -> None:
    signals = Signals()
    signals.request.received(signal.SIGINT)
    signals.request.received(signal.SIGINT)
    assert signals.seen == [("stop", signal.SIGINT), ("at once", signal.SIGINT)]


def test_ctrl_c_followed_by_the_runners_sigterm_is_one_wish() -> None:
    signals = Signals()
    signals.request.received(signal.SIGINT)
    signals.request.received(signal.SIGTERM)
    assert signals.seen == [("stop", signal.SIGINT)]
    signals.now += SAME_REQUEST_S + 0.1
    signals.request.received(signal.SIGTERM)
    assert signals.seen[-1] == ("at once", signal.SIGTERM)


PROCESS = """
import os, sys, time
from telemetry.service import Service
with Service("demo", "127.0.0.1:0", log_format="json", drain_timeout_s=5) as service:
    service.log.info("up")
    {body}
    service.log.info("left", extra={{"seconds": service.drain_seconds_left()}})
"""


def start(body: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(PROCESS).format(body=body)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["msg"] == "up":
            return process
    raise AssertionError("the process ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_drains_and_exits_0_on_a_signal(number: int) -> None:
    process = start("service.stopping.wait(30)")
    process.send_signal(number)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0
    last = json.loads(log.splitlines()[-1])
    assert last["msg"] == "left"
    assert 3 < last["seconds"] <= 5


def test_a_second_signal_ends_even_a_process_whose_main_thread_sits_in_c_code() -> None:
    process = start("import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)")  # minutes inside one call into C
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGTERM
    assert [json.loads(line)["msg"] for line in log.splitlines()] == ["stopping", "ended at once by a second signal"]


def test_a_forked_child_that_is_stopped_does_not_stop_its_parent() -> None:
    body = "pid = os.fork() or time.sleep(30); os.kill(pid, 15); os.waitpid(pid, 0); service.stopping.wait(0.5); "
    body += "service.log.info('asked' if service.stopping.is_set() else 'not asked')"
    process = start(body)
    _, log = process.communicate(timeout=10)
    assert "not asked" in log
