"""The pipeline in numbers: what was sent, stored, refused and given up, how far behind it is, and how fast it runs."""

from __future__ import annotations

import time
from typing import Final

from flask import Response, current_app, jsonify
from flask.views import MethodView
from flask_smorest import Blueprint

from api import context
from api.caching import AnswerCache, cached
from api.described import described
from api.monitor import Monitor
from api.parts import parts
from api.schemas import GenericSchema
from api.times import format_ms
from clickhouse.queries import events, totals

BROKER_NUMBERS: Final = ("producers", "credit_outstanding_bytes", "credit_pool_bytes", "uptime_seconds")
"""What the answer quotes of the broker as a whole; null while it is away."""

blueprint = Blueprint("stats", __name__, url_prefix="/api/v1/stats", description="The pipeline in numbers")


@blueprint.route("")
class Stats(MethodView):
    """Pipeline statistics."""

    @cached(1)
    @blueprint.response(200, GenericSchema)
    @described(blueprint, "getStats", "Pipeline statistics")
    def get(self) -> Response:
        """Rows `sent` (taken by the broker), `stored`, `rejected` (refused by validation) and `dead` (given up).

        The broker is asked every two seconds, the store at once: while rows stream, `stored` may be a moment ahead of
        `sent`.

        Also the collectors' lag in rows and seconds, rates in rows a second, sizes of the store's tables, and what
        the API's cache saved.

        `parts` lists the processes that are known: streamers, broker, collectors, other readers (live tails, archives),
        store and API, each with its `state` (healthy, degraded or unhealthy), the `reason`, `since` when it runs or is
        connected, and `rates` (a second; null until seen twice). Connections of one name are one entry.

        Numbers of the broker are null while it is away; without the store this is 503.
        """
        monitor: Monitor = current_app.extensions["monitor"]
        answers: AnswerCache = current_app.extensions["answers"]
        found = totals.pipeline(context.store())
        topic, group = monitor.topic_stats(), monitor.group_stats()
        known = monitor.broker.value is not None
        now_ms = int(time.time() * 1000)
        last_ms = found["last_ms"]
        return jsonify(
            sent=topic.get("published_rows", 0) if known else None,
            stored=found["samples_rows"],
            rejected=found["rejects_rows"],
            dead=topic.get("dead", 0) if known else None,
            lag={
                "rows": group.get("lag_rows", topic.get("rows", 0)) if known else None,
                "seconds": group.get("oldest_age_seconds", topic.get("oldest_age_seconds", 0.0)) if known else None,
                "newest_sample_age_seconds": round((now_ms - last_ms) / 1000, 3) if last_ms is not None else None,
            },
            rates={"rows_per_second": topic.get("throughput_rows_per_sec", 0.0) if known else None},
            broker={
                "reachable": known,
                "collectors": group.get("members", 0) if known else None,
                "in_flight": topic.get("in_flight", 0) if known else None,
                **{name: (monitor.broker.value or {}).get(name) for name in BROKER_NUMBERS},
                "topics": (monitor.broker.value or {}).get("topics", {}) if known else None,
            },
            store={
                "oldest": format_ms(found["first_ms"]) if found["first_ms"] is not None else None,
                "newest": format_ms(last_ms) if last_ms is not None else None,
                "uptime_seconds": found["uptime_seconds"],
                "bytes_on_disk": sum(table["bytes_on_disk"] for table in found["tables"].values()),
                "tables": found["tables"],
            },
            parts=parts(monitor, current_app.extensions["health"]),
            rejected_by_reason=events.reject_reasons(context.store()),
            cache={"hits": answers.hits, "misses": answers.misses},
            timestamp=format_ms(now_ms),
        )
