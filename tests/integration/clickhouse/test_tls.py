"""A server behind TLS: its certificate is checked against the CA that is named, and only against that."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse.client import StoreAddress, StoreConnection, StorePool
from clickhouse.errors import StoreUnavailable
from clickhouse.insert import insert_samples
from tests.helpers.store import Store, sample_columns
from tests.helpers.tools import needed


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    needed("openssl", "openssl")
    directory = tmp_path_factory.mktemp("tls")
    cert, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def https(store: Store, certificate: tuple[Path, Path]) -> Iterator[str]:
    """The store behind a TLS proxy."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for sock in (source, target):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                client = context.wrap_socket(client, server_side=True)
            except OSError:
                continue
            upstream = socket.create_connection(("127.0.0.1", store.port))
            threading.Thread(target=pump, args=(client, upstream), daemon=True).start()
            threading.Thread(target=pump, args=(upstream, client), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_a_certificate_of_the_named_ca_is_trusted(https: str, certificate: tuple[Path, Path]) -> None:
    address = StoreAddress(https, ca_file=str(certificate[0]))
    with StoreConnection(address) as conn:
        insert_samples(conn, sample_columns(1000, session=99), token="tls")
        assert conn.scalar("SELECT count() FROM telemetry.samples WHERE _session = 99") == 1000
    with StorePool(address) as pool:
        assert pool.query("SELECT 1") == [(1,)]


def test_any_other_certificate_is_not(https: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"(?i)certificate"), StoreConnection(StoreAddress(https)):
        pass
    with StoreConnection(StoreAddress(https, verify=False)) as conn:
        assert conn.query("SELECT 1") == [(1,)]
