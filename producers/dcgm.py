"""``telemetry-streamer dcgm``: one or many dcgm-exporters to the broker."""

from __future__ import annotations

import argparse
from typing import Any

from producers.identities import Identities
from producers.live import run_live
from producers.scrape import ScrapeSource
from telemetry.options import UsageError
from telemetry.service import Service


def run(args: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    urls = list(dict.fromkeys(metrics_url(url) for url in args.urls))
    index, count = args.shard
    urls = urls[index::count]
    if not urls:
        raise UsageError(f"--shard: part {index} of {count} has no address left")
    interval_s = args.interval or 1.0
    service = Service.from_args("telemetry-streamer", args)
    identities = Identities()
    source = ScrapeSource(
        urls,
        identities,
        interval_s=interval_s,
        timeout_s=args.scrape_timeout or max(1.0, min(10.0, interval_s)),
        log=service.log,
        exporter_version=args.exporter_version,
        labels=args.label,
    )

    def details() -> dict[str, Any]:
        return {
            "targets_detail": [
                {
                    "url": target.url,
                    "up": target.up,
                    "reason": target.reason,
                    "scrapes": target.scrapes,
                    "failures": target.failures,
                    "scrape_seconds": round(target.seconds, 4),
                    "skipped": target.skipped,
                }
                for target in source.targets[:1000]
            ]
        }

    return run_live(args, service, source, identities, name="dcgm", targets=urls, details=details)


def metrics_url(text: str) -> str:
    """``host``, ``host:port`` or a URL to the full address: port 9400 and path /metrics are dcgm-exporter's."""
    if "://" not in text:
        host, colon, port = text.rpartition(":")
        text = f"http://{text}" if colon and port.partition("/")[0].isdecimal() and host else f"http://{text}:9400"
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or not rest.partition("/")[0]:
        raise UsageError(f"{text}: is no address such as http://node-1:9400/metrics")
    return text if "/" in rest else f"{text}/metrics"
