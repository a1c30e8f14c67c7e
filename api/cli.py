"""``telemetry-api``: the REST API and the dashboard in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from api.auth import SCOPES, new_key
from api.limits import rate_text
from api.settings import Settings
from telemetry import options
from telemetry.options import Command, CommandLine, Option, Positional, UsageError
from zmqbroker.client.options import CURVE_OPTIONS

DEFAULT_HTTP: Final = "127.0.0.1:8080"
DEFAULTS: Final = Settings()

_STORE: Final = (
    Option("clickhouse", "the store's HTTP interface", "http://127.0.0.1:8123", options.url, env="CLICKHOUSE_URL"),
    Option("user", "user at the store", "default", env="CLICKHOUSE_USER"),
    Option("password", "its password", "", env="CLICKHOUSE_PASSWORD", secret=True),
    Option("database", "database at the store", "telemetry", env="CLICKHOUSE_DATABASE"),
    Option("ca-file", "CA certificate of the store, where it is not one of the system's", None, options.path),
)
_BROKER: Final = (
    Option("connect", "the broker's data socket", "tcp://127.0.0.1:5555", options.url, env="ZMQBROKER_URL"),
    Option(
        "broker-http",
        "the broker's HTTP address, for its statistics",
        "http://127.0.0.1:9090",
        options.url,
        env="ZMQBROKER_HTTP_URL",
    ),
    *CURVE_OPTIONS,
    Option("topic", "topic of the telemetry", DEFAULTS.topic),
    Option("group", "the collectors' group, whose lag is told", DEFAULTS.group),
)
_ACCESS: Final = (
    Option("keys-file", "API keys, a line NAME SCOPES SHA256 each (see new-key)", None, options.path),
    Option("cors-origins", "origins that browsers may call from; * for all", (), multiple=True),
    Option("trusted-proxies", "reverse proxies in front whose X-Forwarded headers count", 0, options.non_negative_int),
    Option("tls-cert", "certificate chain (PEM): serve HTTPS", None, options.path),
    Option("tls-key", "its private key (PEM)", None, options.path),
    Option("rate-limit", "requests a client, such as 600/minute;20/second", "", rate_text),
    Option("write-rate-limit", "the same for writing requests", "", rate_text),
    Option(
        "redis-url", "Redis for what several API processes share (rate limits, cached answers)", "", env="REDIS_URL"
    ),
)
_LIMITS: Final = (
    Option("threads", "requests answered at the same time", 16, options.positive_int),
    Option(
        "cache-time",
        "longest age of a cached answer; 0 caches nothing",
        DEFAULTS.cache_seconds,
        options.duration_seconds,
        "seconds",
    ),
    Option("body-max", "largest JSON body", DEFAULTS.body_bytes_max, options.size_bytes, "bytes"),
    Option("upload-max", "largest CSV upload", DEFAULTS.upload_bytes_max, options.size_bytes, "bytes"),
    Option("query-timeout", "longest time of a query", DEFAULTS.query_seconds_max, options.duration_seconds, "seconds"),
    Option(
        "scan-rows-max",
        "rows that a query may read before it is refused",
        DEFAULTS.scan_rows_max,
        options.positive_int,
        "rows",
    ),
    Option("live-clients-max", "live tails at the same time", DEFAULTS.live_clients_max, options.positive_int),
    Option(
        "publish-timeout",
        "longest wait for the broker when writing",
        DEFAULTS.publish_seconds_max,
        options.duration_seconds,
        "seconds",
    ),
)
_FEATURES: Final = (
    Option("graphql", "serve /graphql", False, options.flag),
    Option("rules-file", "alert rules; default: the package's own", None, options.path),
    Option("alert-webhook", "URL that gets alerts as JSON by POST", ""),
    Option("alertmanager-url", "Alertmanager that gets alerts", ""),
    Option(
        "alert-interval",
        "how often alert rules are evaluated; 0: never",
        DEFAULTS.alert_seconds,
        options.duration_seconds,
        "seconds",
    ),
    Option("state-dir", "directory where silences and uploads outlive a restart", None, options.path),
)

SERVE_OPTIONS: Final = (*options.common(DEFAULT_HTTP), *_STORE, *_BROKER, *_ACCESS, *_LIMITS, *_FEATURES)

COMMAND_LINE: Final = CommandLine(
    "telemetry-api",
    "API",
    "The REST API of the GPU telemetry pipeline, and its dashboard.",
    SERVE_OPTIONS,
    commands={
        "serve": Command("serve the API (what happens without a command)"),
        "new-key": Command(
            "print a new API key, and the line of the keys file that admits it",
            (Option("scopes", f"what it allows, of {', '.join(SCOPES)}", "read"),),
            (Positional("name", "who will use it"),),
        ),
    },
    default_command="serve",
)


def settings_from(args: Any) -> Settings:
    """The application's settings from parsed options."""
    return Settings(
        topic=args.topic,
        group=args.group,
        keys_file=args.keys_file,
        cors_origins=args.cors_origins,
        trusted_proxies=args.trusted_proxies,
        rate_limit=args.rate_limit,
        write_rate_limit=args.write_rate_limit,
        redis_url=args.redis_url,
        cache_seconds=args.cache_time,
        body_bytes_max=args.body_max,
        upload_bytes_max=args.upload_max,
        query_seconds_max=args.query_timeout,
        scan_rows_max=args.scan_rows_max,
        live_clients_max=args.live_clients_max,
        publish_seconds_max=args.publish_timeout,
        graphql=args.graphql,
        rules_file=args.rules_file,
        alert_webhook=args.alert_webhook,
        alertmanager_url=args.alertmanager_url,
        alert_seconds=args.alert_interval,
        state_dir=args.state_dir,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    args = COMMAND_LINE.parse(argv)
    with options.usage_errors(COMMAND_LINE.prog):
        if args.command == "new-key":
            key, line = new_key(args.name, args.scopes)
            print(f"key (shown once): {key}\nkeys file line:   {line}")
            return 0
        # Imported here: `--help` and `new-key` need neither Flask nor Granian.
        from api.process import run

        return run(args, settings_from(args), tls_of(args))
    raise AssertionError("unreachable")


def tls_of(args: Any) -> tuple[Path, Path] | None:
    """(certificate, key) if HTTPS is asked for; :class:`UsageError` for half of it or an unreadable file."""
    if not args.tls_cert and not args.tls_key:
        return None
    if not (args.tls_cert and args.tls_key):
        raise UsageError("--tls-cert and --tls-key belong together: give both or none")
    for flag, path in (("--tls-cert", args.tls_cert), ("--tls-key", args.tls_key)):
        if not Path(path).is_file():
            raise UsageError(f"{flag} {path}: no such file")
    return Path(args.tls_cert), Path(args.tls_key)


if __name__ == "__main__":
    raise SystemExit(main())
