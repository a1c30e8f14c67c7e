"""Options and checks that the collector and the archive share."""

from __future__ import annotations

import argparse

from consumers.source import BrokerSource
from consumers.validate import Rules
from telemetry.options import Option, duration_seconds, url
from telemetry.service import Check
from zmqbroker.client.options import CURVE_OPTIONS

_WEEK_S = 7 * 86_400.0

BROKER = (
    Option("connect", "broker to take batches from", "tcp://127.0.0.1:5555", url, env="ZMQBROKER_URL"),
    *CURVE_OPTIONS,
    Option("topic", "topic to consume", "gpu-telemetry"),
    Option("name", "name of this member in the broker's lists; default: the host's name", "", metavar="NAME"),
)
RULES = (
    Option("accept-past", "how old a row may be when the broker appends it", _WEEK_S, duration_seconds, "seconds"),
    Option("accept-future", "how far ahead of the broker's clock a row may be", 3_600.0, duration_seconds, "seconds"),
    Option("retention", "how long raw rows are kept; older ones are rejected", _WEEK_S, duration_seconds, "seconds"),
)


def rules_of(args: argparse.Namespace) -> Rules:
    return Rules(
        past_ms=round(args.accept_past * 1000),
        future_ms=round(args.accept_future * 1000),
        retention_ms=round(args.retention * 1000),
    )


def broker_check(source: BrokerSource, shown: str) -> Check:
    """Readiness by the broker: without it there is nothing to do."""
    if source.connected:
        return Check()
    return Check("unhealthy", f"no broker answers at {shown}", ready=False)
