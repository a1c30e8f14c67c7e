"""The ``zmqbroker`` command: ``serve``, and what the operator's shell adds."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from telemetry import metrics
from telemetry.options import (
    Command,
    CommandLine,
    Option,
    Positional,
    UsageError,
    common,
    duration_seconds,
    non_negative_int,
    path,
    positive_int,
    size_bytes,
    url,
    usage_errors,
)
from telemetry.service import Check, Service
from zmqbroker.admin import shell
from zmqbroker.admin.server import AdminServer
from zmqbroker.client.options import listening_keys
from zmqbroker.core import report
from zmqbroker.core.config import RECONNECT_GRACE_S_MIN, BrokerConfig, TopicConfig
from zmqbroker.errors import BrokerError
from zmqbroker.security import load_public, make_keys
from zmqbroker.server import Broker, ServerConfig

KEYGEN_OPTIONS = (Option("out", "directory of the files", Path("."), path, metavar="DIR"),)


def grace_seconds(text: str) -> float:
    """A duration that is not below what leases need."""
    seconds = duration_seconds(text)
    if seconds < RECONNECT_GRACE_S_MIN:
        raise ValueError(f"is below {RECONNECT_GRACE_S_MIN:g} s")
    return seconds


SERVE_OPTIONS = (
    Option("data-dir", "directory of the logs; one broker at a time holds it", None, path, required=True),
    Option(
        "bind",
        "address of the data socket (ROUTER), repeated for several",
        ("tcp://127.0.0.1:5555",),
        url,
        multiple=True,
    ),
    Option(
        "admin-bind", "address of the admin socket (ROUTER)", "tcp://127.0.0.1:5556", url, env="ZMQBROKER_ADMIN_URL"
    ),
    Option("curve-key", "the broker's NAME.key_secret file: encrypts, and asks clients for keys", None, path),
    Option("allow-list", "file of the clients' public keys and roles; needed with --curve-key", None, path),
    Option("partitions", "partitions of a topic made on first use", 4, positive_int),
    Option(
        "fsync",
        "when a batch is acked: commit (after fdatasync), interval, never",
        "commit",
        choices=("commit", "interval", "never"),
    ),
    Option("fsync-interval", "longest time without a sync under fsync=interval", 1.0, duration_seconds, "seconds"),
    Option("storage", "where topics made on first use live: disk or memory", "disk", choices=("disk", "memory")),
    Option("segment-bytes", "size of a log segment", 64 << 20, size_bytes, "bytes"),
    Option(
        "retention",
        "keep-for-replay: time that records stay after every durable group has acked them",
        900.0,
        duration_seconds,
        "seconds",
    ),
    Option("disk-max", "size of a topic's log at which producers get no more credit", 10 << 30, size_bytes, "bytes"),
    Option(
        "ingress-pool", "credit given to producers and not yet durable, all together", 64 << 20, size_bytes, "bytes"
    ),
    Option("tail-cache", "memory for what was just appended, all topics together", 64 << 20, size_bytes, "bytes"),
    Option("message-max", "largest message", 8 << 20, size_bytes, "bytes"),
    Option("connections-max", "connections at the same time", 20_000, positive_int),
    Option("topics-max", "topics", 1000, positive_int),
    Option(
        "reconnect-grace",
        "how long a consumer's ranges wait for it to reconnect",
        BrokerConfig.reconnect_grace_s,
        grace_seconds,
        "seconds",
    ),
    Option("backlog-warn", "lag in rows above which /health is degraded; 0 for never", 0, non_negative_int, "rows"),
)


COMMAND_LINE: Final = CommandLine(
    "zmqbroker",
    "BROKER",
    "A durable ZeroMQ message broker with credit-based flow control.",
    common("127.0.0.1:9090"),
    {
        "serve": Command("run the broker", SERVE_OPTIONS),
        "admin": Command("the operator's shell: `zmqbroker admin --help`"),
        "keygen": Command("make a pair of CURVE keys", KEYGEN_OPTIONS, (Positional("name", "whose keys"),)),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["admin"]:
        return shell.main(argv[1:])
    args = COMMAND_LINE.parse(argv)
    return keygen(args) if args.command == "keygen" else serve(args)


def keygen(args: argparse.Namespace) -> int:
    """Write NAME.key and NAME.key_secret; print what goes into an allow-list."""
    with usage_errors("zmqbroker keygen"):
        try:
            public, secret = make_keys(args.name, args.out)
            print(f"{public}\n{secret}\n\nfor an allow-list, with the roles that it is to have:")
            print(f"{load_public(str(public)).decode()} produce,consume {args.name}")
        except BrokerError as e:
            raise UsageError(str(e)) from None
    return 0


def server_config(args: argparse.Namespace) -> ServerConfig:
    """The server's configuration from its options."""
    topic = TopicConfig(
        partitions=args.partitions,
        fsync=args.fsync,
        fsync_interval_ms=int(args.fsync_interval * 1000),
        storage=args.storage,
        retention_ms=int(args.retention * 1000),
        disk_bytes_max=args.disk_max,
        segment_bytes=args.segment_bytes,
    )
    if args.message_max > args.ingress_pool // 2:
        # Credit is granted whole, and at most half the pool at once: such a message would wait for ever.
        raise UsageError("--message-max is above half of --ingress-pool: raise the pool, or lower the largest message")
    broker = BrokerConfig(
        ingress_pool_bytes=args.ingress_pool,
        tail_bytes=args.tail_cache,
        message_bytes_max=args.message_max,
        connections_max=args.connections_max,
        topics_max=args.topics_max,
        reconnect_grace_s=args.reconnect_grace,
    )
    return ServerConfig(args.data_dir, args.bind, broker, topic)


def serve(args: argparse.Namespace) -> int:
    """Run until a signal; exit code 0 after a clean drain."""
    with usage_errors("zmqbroker"):
        addresses = (*args.bind, args.admin_bind)
        keys = listening_keys(args.curve_key, args.allow_list, addresses, insecure=args.insecure)
        broker = Broker(server_config(args), keys=keys)
        service = Service.from_args("zmqbroker", args)
        service.check("loop", lambda: _loop_check(broker))
        service.check("logs", lambda: _logs_check(broker))
        service.route("/stats", lambda: _stats(broker))
        service.route("/topics", lambda: {"topics": broker.call(lambda core: sorted(core.topics))})
        _export(service, broker)
        admin = AdminServer(broker, args.admin_bind, registry=service.registry)
        try:
            broker.start()
            try:
                admin.start()
            except BrokerError:
                broker.stop()
                raise
        except (BrokerError, OSError) as e:
            raise UsageError(str(e)) from None
        # What was imported and recovered lives as long as the process. A full pass of the collector over it stops every
        # thread for 20 ms and more, again and again: what producers would see of it is an ack that comes late.
        gc.collect()
        gc.freeze()
        try:
            with service:
                service.log.info(
                    "broker listening",
                    extra={
                        "addresses": broker.endpoints,
                        "admin": admin.endpoint,
                        "data_dir": str(args.data_dir),
                        "topics": sorted(broker.core.topics),
                    },
                )
                while not service.stopping.wait(0.5):
                    if broker.failed is not None:
                        service.log.error("the broker cannot go on", extra={"reason": repr(broker.failed)})
                        break
        finally:
            admin.stop()
            broker.stop(service.drain_seconds_left())
        if broker.failed is not None:
            return 1
        service.log.info("stopped")
        return 0


def _stats(broker: Broker) -> dict[str, Any]:
    uptime = broker._clock() - broker.started_s
    found: dict[str, Any] = broker.call(lambda core: report.stats(core.state, uptime))
    return found


def _loop_check(broker: Broker) -> Check:
    if broker.failed is not None or not broker.alive:
        return Check("unhealthy", "the loop has ended: restart the broker", ready=False, alive=False)
    return Check("healthy", "")


def _logs_check(broker: Broker) -> Check:
    for topic in list(broker.core.topics.values()):
        if topic.stopped:
            return Check("unhealthy", f"topic {topic.name} is stopped: {topic.stopped}", ready=False)
        if topic.disk_full:
            return Check("degraded", f"topic {topic.name} is at its disk limit: producers wait")
    return Check("healthy", "")


def _export(service: Service, broker: Broker) -> None:
    syncs = metrics.histogram(service.registry, "zmqbroker_sync_seconds")
    broker.writer.on_sync = syncs.observe

    def samples() -> Iterator[metrics.Sample]:
        if not broker.alive:
            return
        found = _stats(broker)
        for name, value in found["counters"].items():
            yield f"zmqbroker_{name}_total", (), value
        for code, value in found["ingress_errors"].items():
            yield "zmqbroker_errors_total", (code,), value
        yield "zmqbroker_credit_outstanding_bytes", (), found["credit_outstanding_bytes"]
        yield "zmqbroker_peers", ("producer",), found["producers"]
        yield "zmqbroker_peers", ("consumer",), found["consumers"]
        yield "zmqbroker_commits_total", (), broker.writer.commits
        yield "zmqbroker_commit_bytes_total", (), broker.writer.commit_bytes
        yield "zmqbroker_loops_total", (), broker.loops
        if broker.keys is not None:
            yield "zmqbroker_handshakes_refused_total", (), broker.keys.refused
            yield "zmqbroker_conversations_denied_total", (), broker.keys.denied
        for topic, t in found["topics"].items():
            yield "zmqbroker_topic_published_rows_total", (topic,), t["published_rows"]
            yield "zmqbroker_topic_published_messages_total", (topic,), t["published_messages"]
            yield "zmqbroker_topic_disk_bytes", (topic,), t["disk_bytes"]
            yield "zmqbroker_topic_disk_full", (topic,), float(t["disk_full"])
            yield "zmqbroker_topic_stopped", (topic,), float(bool(t["stopped"]))
            yield "zmqbroker_topic_dead_messages", (topic,), t["dead"]
            for group, g in t["groups"].items():
                labels = (topic, group)
                yield "zmqbroker_group_lag_rows", labels, g["lag_rows"]
                yield "zmqbroker_group_lag_messages", labels, g["lag_messages"]
                yield "zmqbroker_group_oldest_age_seconds", labels, g["oldest_age_seconds"]
                yield "zmqbroker_group_in_flight", labels, g["in_flight"]
                yield "zmqbroker_group_ready", labels, g["ready"]
                yield "zmqbroker_group_members", labels, g["members"]
                yield "zmqbroker_group_free_credit", labels, g["free_credit"]
                yield "zmqbroker_group_settled_rows_total", labels, g["settled_rows"]
                yield "zmqbroker_group_redelivered_total", labels, g["redelivered"]
                yield "zmqbroker_group_lost_messages_total", labels, g["lost_messages"]

    metrics.on_scrape(service.registry, samples)


if __name__ == "__main__":
    sys.exit(main())
