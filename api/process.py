"""The API as a process: options become parts, parts are started, served and drained."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from api.app import create_app
from api.auth import Keys
from api.bridge import Bridge
from api.broker import Broker
from api.server import serve
from api.settings import Settings
from clickhouse.client import StoreAddress, StorePool
from telemetry.addresses import listening_socket
from telemetry.options import UsageError
from telemetry.service import Service
from zmqbroker.client.options import keys_from


def run(args: Any, settings: Settings, tls: tuple[Path, Path] | None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    if settings.state_dir is not None:
        try:
            settings.state_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--state-dir {settings.state_dir}: {error.strerror}") from None
    sock = listening_socket(args.http, "--http", insecure=args.insecure, keys=settings.keys_file is not None)
    service = Service(
        "telemetry-api",
        "",
        log_level=args.log_level,
        log_format=args.log_format,
        drain_timeout_s=args.drain_timeout,
        insecure=args.insecure,
    )
    store = StorePool(
        StoreAddress(
            url=args.clickhouse,
            user=args.user,
            password=args.password,
            database=args.database,
            ca_file=str(args.ca_file or ""),
            timeout_s=max(settings.query_seconds_max + 5, 30),
        ),
        connections=args.threads + 4,
    )
    broker = Broker(args.connect, args.broker_http, settings.topic, keys=keys_from(args))
    with service:
        app = create_app(settings, store, broker, registry=service.registry, health=service.health)
        _reload_on_hangup(app, settings, service)
        bridge = Bridge(app, threads=args.threads, body_bytes_max=settings.upload_bytes_max)
        host, port = sock.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        service.log.info("listening", extra={"address": address, "scheme": "https" if tls else "http"})
        serve(bridge, sock, service.stopping, drain_seconds=service.drain_timeout_s, tls=tls)
        app.extensions["alerts"].stop()
        app.extensions["monitor"].stop()
        app.extensions["hub"].close()
        app.extensions["uploads"].close(min(4.0, service.drain_seconds_left()))
        app.extensions["submissions"].close()
        broker.close(min(2.0, service.drain_seconds_left()))
        store.close()
    service.log.info("stopped")
    return 0


def _reload_on_hangup(app: Any, settings: Settings, service: Service) -> None:
    """SIGHUP reads the keys file again, without dropping a connection."""

    def reload(number: int, frame: Any) -> None:
        if settings.keys_file is None:
            return
        try:
            app.extensions["keys"] = Keys.load(settings.keys_file)
        except Exception as error:
            service.log.error("the keys file was not reloaded, the keys before stay", extra={"reason": str(error)})
        else:
            service.log.info("reloaded the keys file")

    signal.signal(signal.SIGHUP, reload)
