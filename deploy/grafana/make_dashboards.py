"""Writes the Grafana dashboards: ``python deploy/grafana/make_dashboards.py``.

A dashboard's JSON is nine tenths repetition, so what differs stands here and the rest is made. Tests run every query
that ends up in the JSON: PromQL against the list of metrics, SQL against the real engine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "${prometheus}"}
CLICKHOUSE = {"type": "grafana-clickhouse-datasource", "uid": "${clickhouse}"}
GRID_WIDTH = 24

GREEN, AMBER, RED = "green", "orange", "red"
Panel = dict[str, Any]


def panel(kind: str, title: str, source: dict[str, str], targets: Sequence[Any], *, unit: str = "short", width: int = 12,
          height: int = 8, help: str = "", steps: Sequence[tuple[float | None, str]] = (), options: Any = None,
          custom: Any = None) -> Panel:  # fmt: skip
    """One panel; ``steps`` are thresholds as (from, colour)."""
    defaults: dict[str, Any] = {"unit": unit}
    if steps:
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in steps]}
    if custom:
        defaults["custom"] = custom
    return {
        "type": kind,
        "title": title,
        "description": help,
        "datasource": source,
        "targets": list(targets),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options or {},
        "gridPos": {"w": width, "h": height},
    }


def prom(expression: str, legend: str = "", *, instant: bool = False) -> dict[str, Any]:
    return {
        "datasource": PROMETHEUS,
        "expr": expression,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
    }


def sql(text: str, *, table: bool = False) -> dict[str, Any]:
    # 0 = time series, 1 = table: what the data source calls them.
    return {
        "datasource": CLICKHOUSE, "rawSql": " ".join(text.split()), "queryType": "table" if table else "timeseries",
        "format": 1 if table else 0, "editorType": "sql",
    }  # fmt: skip


def lines(title: str, source: dict[str, str], *targets: Any, **kwargs: Any) -> Panel:
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    # Without a value there is a gap: nothing is drawn on (spanNulls false).
    return panel(
        "timeseries",
        title,
        source,
        targets,
        options=options,
        custom={"lineWidth": 1, "fillOpacity": 8, "spanNulls": False},
        **kwargs,
    )


def number(title: str, source: dict[str, str], target: Any, **kwargs: Any) -> Panel:
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "value", "graphMode": "area"}
    return panel(
        "stat",
        title,
        source,
        [target],
        width=kwargs.pop("width", 4),
        height=kwargs.pop("height", 4),
        options=options,
        **kwargs,
    )


def table(title: str, source: dict[str, str], target: Any, **kwargs: Any) -> Panel:
    return panel("table", title, source, [target], options={"cellHeight": "sm"}, **kwargs)


def row(title: str) -> Panel:
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": GRID_WIDTH, "h": 1}}


def source_variable(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "label": name.capitalize(), "type": "datasource", "query": kind, "current": {}, "hide": 0}


def dashboard(
    uid: str, title: str, description: str, variables: Sequence[Any], panels: Sequence[Panel], *, since: str
) -> dict[str, Any]:
    """Panels flow from left to right and wrap, as words do."""
    x = y = tall = 0
    placed = []
    for number_, item in enumerate(panels, 1):
        width, height = item["gridPos"]["w"], item["gridPos"]["h"]
        if x + width > GRID_WIDTH:
            x, y, tall = 0, y + tall, 0
        placed.append({**item, "id": number_, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, tall = x + width, max(tall, height)
    return {
        "uid": uid, "title": title, "description": description, "tags": ["gpu-telemetry"], "schemaVersion": 41, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "10s", "time": {"from": f"now-{since}", "to": "now"}, "timezone": "browser",
        "templating": {"list": list(variables)}, "annotations": {"list": []}, "links": [], "panels": placed,
    }  # fmt: skip


# -- the pipeline, from Prometheus -------------------------------------------------------------------------------

RATE = "[$__rate_interval]"
TOPIC = '{topic=~"$topic"}'
ZERO_IS_FINE = ((None, GREEN), (1, RED))
LAG_STEPS = ((None, GREEN), (10, AMBER), (60, RED))


def pipeline() -> dict[str, Any]:
    topics = {
        "name": "topic", "label": "Topic", "type": "query", "datasource": PROMETHEUS, "refresh": 2, "multi": True, "includeAll": True,
        "query": {"query": "label_values(zmqbroker_topic_published_rows_total, topic)", "refId": "topic"}, "current": {}, "sort": 1,
    }  # fmt: skip
    p = PROMETHEUS
    panels = [
        number("Rows/s in", p, prom(f"sum(rate(zmqbroker_topic_published_rows_total{TOPIC}{RATE}))"), unit="rowsps"),
        number("Rows/s stored", p, prom(f"sum(rate(collector_rows_stored_total{RATE}))"), unit="rowsps"),
        number("Rows waiting", p, prom(f"sum(zmqbroker_group_lag_rows{TOPIC})"), help="Of all groups that settle rows."),
        number("Oldest row waits", p, prom(f"max(zmqbroker_group_oldest_age_seconds{TOPIC})"), unit="s", steps=LAG_STEPS),
        number("Dead letters", p, prom(f"sum(zmqbroker_topic_dead_messages{TOPIC})"), steps=ZERO_IS_FINE),
        number("Not ready", p, prom("count(telemetry_ready == 0) or vector(0)"), steps=ZERO_IS_FINE, help="Processes whose /readyz says no."),
        row("Where rows are"),
        lines("Rows by station", p,
              prom(f"sum(rate(streamer_rows_published_total{RATE}))", "given to the broker's client"),
              prom(f"sum(rate(streamer_rows_acked_total{RATE}))", "durable at the broker"),
              prom(f"sum(rate(zmqbroker_delivered_rows_total{RATE}))", "delivered"),
              prom(f"sum(rate(collector_rows_stored_total{RATE}))", "stored"), unit="rowsps"),
        lines("Rows waiting, by group", p, prom(f"zmqbroker_group_lag_rows{TOPIC}", "{{topic}} / {{group}}")),
        lines("Age of the oldest row, by group", p, prom(f"zmqbroker_group_oldest_age_seconds{TOPIC}", "{{topic}} / {{group}}"), unit="s"),
        lines("Rejected rows", p, prom(f"sum by (reason) (rate(collector_rows_rejected_total{RATE}))", "{{reason}}"),
              prom(f"sum by (reason) (rate(streamer_rows_rejected_total{RATE}))", "streamer: {{reason}}"), unit="rowsps"),
        row("Streamers"),
        lines("Waiting for credit", p, prom(f"sum by (instance) (rate(streamer_backpressure_seconds_total{RATE}))", "{{instance}}"), unit="percentunit",
              help="Share of time in which a streamer could not send: the broker holds it back."),
        lines("Publish to ack", p, prom("max by (quantile) (streamer_publish_latency_seconds)", "p{{quantile}}"), unit="s"),
        lines("Not yet durable", p, prom("sum by (instance) (streamer_pending_bytes)", "{{instance}}"), unit="bytes"),
        lines("Workers and restarts", p, prom("sum(streamer_workers)", "workers"), prom("sum(increase(streamer_worker_restarts_total[1h]))", "restarts in an hour"),
              prom("sum(increase(streamer_reconnects_total[1h]))", "reconnects in an hour")),
        row("Broker"),
        lines("fdatasync", p, prom(f"histogram_quantile(0.5, sum by (le) (rate(zmqbroker_sync_seconds_bucket{RATE})))", "p50"),
              prom(f"histogram_quantile(0.99, sum by (le) (rate(zmqbroker_sync_seconds_bucket{RATE})))", "p99"), unit="s"),
        lines("Credit out", p, prom("zmqbroker_credit_outstanding_bytes", "held by producers"), unit="bytes"),
        lines("Log on disk", p, prom(f"zmqbroker_topic_disk_bytes{TOPIC}", "{{topic}}"), unit="bytes"),
        lines("Peers", p, prom("zmqbroker_peers", "{{kind}}"), prom(f"sum(zmqbroker_group_free_credit{TOPIC})", "free credit of collectors")),
        lines("Redeliveries, deaths, failures", p, prom(f"rate(zmqbroker_redeliveries_total{RATE})", "redelivered"), prom(f"rate(zmqbroker_deaths_total{RATE})", "deaths"),
              prom(f"rate(zmqbroker_failures_total{RATE})", "failures"), unit="ops"),
        lines("Errors", p, prom(f"sum by (code) (rate(zmqbroker_errors_total{RATE}))", "{{code}}"), prom(f"rate(zmqbroker_garbage_total{RATE})", "garbage"),
              prom(f"rate(zmqbroker_over_credit_total{RATE})", "above credit"), unit="ops"),
        row("Collectors"),
        lines("One INSERT", p, prom(f"histogram_quantile(0.5, sum by (le) (rate(collector_insert_seconds_bucket{RATE})))", "p50"),
              prom(f"histogram_quantile(0.99, sum by (le) (rate(collector_insert_seconds_bucket{RATE})))", "p99"), unit="s"),
        lines("Where collectors spend their time", p, prom(f"sum by (step) (rate(collector_step_seconds_total{RATE}))", "{{step}}"),
              prom(f"sum(rate(collector_insert_seconds_sum{RATE}))", "insert"), unit="percentunit"),
        lines("Breaker", p, prom("collector_breaker_state", "{{instance}}"), help="0 closed, 1 half-open, 2 open: the store is away."),
        lines("Deliveries by outcome", p, prom(f"sum by (outcome) (rate(collector_deliveries_total{RATE}))", "{{outcome}}"), unit="ops"),
        lines("Doubt", p, prom(f"sum(rate(collector_doubtful_total{RATE}))", "doubtful deliveries"), prom(f"sum(rate(collector_rows_found_total{RATE}))", "duplicates avoided (rows)"),
              prom("sum(increase(collector_alarms_total[1h]))", "alarms in an hour"), unit="ops"),
        row("Store and API"),
        lines("Store: queries", p, prom(f"rate(store_queries_total{RATE})", "succeeded"), prom(f"rate(store_query_errors_total{RATE})", "failed"), prom("store_queries_running", "running"),
              unit="ops", help="Of the embedded server; a ClickHouse server has metrics of its own."),
        lines("API: requests", p, prom(f"sum by (status) (rate(api_requests_total{RATE}))", "{{status}}"), unit="reqps"),
        lines("API: time of a request", p, prom(f"histogram_quantile(0.5, sum by (le) (rate(api_request_seconds_bucket{RATE})))", "p50"),
              prom(f"histogram_quantile(0.99, sum by (le) (rate(api_request_seconds_bucket{RATE})))", "p99"), unit="s"),
        table("Checks that are not healthy", p, prom("telemetry_check_status > 0", instant=True), help="1 degraded, 2 unhealthy."),
    ]  # fmt: skip
    return dashboard("gpu-telemetry-pipeline", "GPU telemetry: pipeline", "From streamers to the store: what holds it up now.",
                     [source_variable("prometheus", "prometheus"), topics], panels, since="1h")  # fmt: skip


# -- the fleet, from ClickHouse ------------------------------------------------------------------------------------

NEWEST = "(SELECT gpu, argMax(hostname, seen) AS hostname, argMax(gpu_index, seen) AS gpu_index, argMax(gpu_id, seen) AS gpu_id, argMax(model, seen) AS model, argMax(pod, seen) AS pod, argMax(namespace, seen) AS namespace FROM devices GROUP BY gpu)"
ON_HOSTS = "gpu IN (SELECT gpu FROM devices WHERE hostname IN (${host:singlequote}))"
RECENT = "ts > now64(3) - INTERVAL 1 MINUTE"


def over_time(value: str, metric: str, *, by: str = "") -> dict[str, Any]:
    """A metric of the chosen hosts over time; ``by``: a column of the newest labels."""
    if not by:
        return sql(
            f"SELECT $__timeInterval(ts) AS time, {value} FROM samples WHERE $__timeFilter(ts) AND metric = '{metric}' AND {ON_HOSTS} GROUP BY time ORDER BY time"
        )
    return sql(f"SELECT $__timeInterval(ts) AS time, {by} AS label, {value} FROM samples INNER JOIN {NEWEST} AS d USING gpu "
               f"WHERE $__timeFilter(ts) AND metric = '{metric}' AND hostname IN (${{host:singlequote}}) GROUP BY time, label ORDER BY time")  # fmt: skip


def fleet() -> dict[str, Any]:
    c = CLICKHOUSE
    hosts = {
        "name": "host", "label": "Host", "type": "query", "datasource": c, "refresh": 2, "multi": True, "includeAll": True, "sort": 1,
        "query": "SELECT DISTINCT hostname FROM devices ORDER BY hostname", "current": {},
    }  # fmt: skip
    metric = {
        "name": "metric", "label": "Metric", "type": "query", "datasource": c, "refresh": 2, "sort": 1,
        "query": "SELECT DISTINCT toString(metric) FROM samples WHERE ts > now64(3) - INTERVAL 1 HOUR ORDER BY 1",
        "current": {"text": "DCGM_FI_DEV_GPU_UTIL", "value": "DCGM_FI_DEV_GPU_UTIL"},
    }  # fmt: skip
    count_recent = f"uniqExact(gpu) AS gpus FROM samples WHERE {RECENT} AND {ON_HOSTS}"
    panels = [
        number("GPUs ever seen", c, sql("SELECT uniqExact(gpu) AS gpus FROM devices WHERE hostname IN (${host:singlequote})", table=True)),
        number("Reporting", c, sql(f"SELECT {count_recent}", table=True), help="Seen within a minute."),
        number("Allocated", c, sql(f"SELECT countIf(pod != '') AS gpus FROM {NEWEST} WHERE hostname IN (${{host:singlequote}}) AND gpu IN (SELECT gpu FROM samples WHERE {RECENT})", table=True), help="Reporting and held by a pod."),
        number("Active", c, sql(f"SELECT {count_recent} AND metric = 'DCGM_FI_DEV_GPU_UTIL' AND value > 5", table=True), help="Reporting and above 5 % utilisation."),
        number("Power", c, sql(f"SELECT sum(watts) AS watts FROM (SELECT gpu, argMax(value, ts) AS watts FROM samples WHERE {RECENT} AND metric = 'DCGM_FI_DEV_POWER_USAGE' AND {ON_HOSTS} GROUP BY gpu)", table=True), unit="watt"),
        number("Hottest", c, sql(f"SELECT max(value) AS celsius FROM samples WHERE {RECENT} AND metric = 'DCGM_FI_DEV_GPU_TEMP' AND {ON_HOSTS}", table=True), unit="celsius", steps=((None, GREEN), (83, AMBER), (90, RED))),
        row("Now"),
        table("Every GPU, latest ${metric}", c, sql(f"SELECT hostname, gpu_index, gpu_id, round(argMax(value, ts), 2) AS latest, max(ts) AS measured, any(d.pod) AS holder, any(d.namespace) AS team FROM samples INNER JOIN {NEWEST} AS d USING gpu WHERE ts > now64(3) - INTERVAL 10 MINUTE AND metric = '${{metric}}' AND hostname IN (${{host:singlequote}}) GROUP BY hostname, gpu_index, gpu_id ORDER BY latest DESC LIMIT 1000", table=True), width=14, height=11),
        table("Held and idle for 30 minutes", c, sql(f"SELECT hostname, gpu_index, any(d.namespace) AS team, any(d.pod) AS holder, max(value) AS highest_utilisation FROM samples INNER JOIN {NEWEST} AS d USING gpu WHERE ts > now64(3) - INTERVAL 30 MINUTE AND metric = 'DCGM_FI_DEV_GPU_UTIL' AND pod != '' AND hostname IN (${{host:singlequote}}) GROUP BY hostname, gpu_index HAVING highest_utilisation < 5 ORDER BY hostname, gpu_index LIMIT 500", table=True), width=10, height=11),
        row("Over time"),
        lines("${metric} by host (mean)", c, over_time("avg(value) AS mean", "${metric}", by="hostname"), width=24, height=10),
        lines("Utilisation", c, over_time("avg(value) AS mean, quantile(0.1)(value) AS p10, quantile(0.9)(value) AS p90", "DCGM_FI_DEV_GPU_UTIL"), unit="percent"),
        lines("GPU temperature", c, over_time("avg(value) AS mean, max(value) AS hottest", "DCGM_FI_DEV_GPU_TEMP"), unit="celsius"),
        lines("Power of the fleet", c, sql(f"SELECT time, sum(watts) AS power FROM (SELECT $__timeInterval(ts) AS time, gpu, avg(value) AS watts FROM samples WHERE $__timeFilter(ts) AND metric = 'DCGM_FI_DEV_POWER_USAGE' AND {ON_HOSTS} GROUP BY time, gpu) GROUP BY time ORDER BY time"), unit="watt"),
        lines("Memory used", c, over_time("avg(value) AS mean, max(value) AS most", "DCGM_FI_DEV_FB_USED"), unit="decmbytes", help="In MiB."),
        lines("SM clock", c, over_time("avg(value) AS mean, min(value) AS slowest", "DCGM_FI_DEV_SM_CLOCK"), help="In MHz."),
        lines("GPUs reporting", c, sql(f"SELECT $__timeInterval(ts) AS time, uniqExact(gpu) AS gpus FROM samples WHERE $__timeFilter(ts) AND metric = 'DCGM_FI_DEV_GPU_UTIL' AND {ON_HOSTS} GROUP BY time ORDER BY time")),
        row("Health"),
        table("XIDs in this range", c, sql(f"SELECT time, hostname, gpu_index, code, gpu_id FROM (SELECT gpu, ts AS time, toUInt32(value) AS code, lagInFrame(toUInt32(value)) OVER (PARTITION BY gpu ORDER BY ts ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS before FROM samples WHERE $__timeFilter(ts) AND metric = 'DCGM_FI_DEV_XID_ERRORS') AS x INNER JOIN {NEWEST} AS d USING gpu WHERE code != 0 AND code != before AND hostname IN (${{host:singlequote}}) ORDER BY time DESC LIMIT 500", table=True), help="The gauge keeps its last code, so only changes count."),
        table("GPUs that fell silent", c, sql("SELECT hostname, gpu_index, gpu_id, last_seen FROM (SELECT gpu, max(ts) AS last_seen FROM samples GROUP BY gpu HAVING last_seen < now64(3) - INTERVAL 1 MINUTE) AS s INNER JOIN " + NEWEST + " AS d USING gpu WHERE hostname IN (${host:singlequote}) ORDER BY last_seen DESC LIMIT 500", table=True)),
        lines("Throttled GPUs", c, sql(f"SELECT $__timeInterval(ts) AS time, uniqExactIf(gpu, bitAnd(toUInt64(value), 0xE8) != 0) AS heat_or_hardware, uniqExactIf(gpu, bitAnd(toUInt64(value), 0x4) != 0) AS power_cap FROM samples WHERE $__timeFilter(ts) AND metric = 'DCGM_FI_DEV_CLOCK_THROTTLE_REASONS' AND {ON_HOSTS} GROUP BY time ORDER BY time")),
        lines("Rejected rows", c, sql("SELECT $__timeInterval(appended) AS time, reason AS label, count() AS n FROM rejects WHERE $__timeFilter(appended) GROUP BY time, label ORDER BY time"), unit="short"),
        row("Days"),
        lines("Mean utilisation by the hour (rollup)", c, sql(f"SELECT bucket AS time, sum(total) / sum(count) AS mean, max(high) AS highest FROM samples_1h FINAL WHERE $__timeFilter(bucket) AND metric = 'DCGM_FI_DEV_GPU_UTIL' AND {ON_HOSTS} GROUP BY time ORDER BY time"), unit="percent", width=24),
    ]  # fmt: skip
    return dashboard("gpu-telemetry-fleet", "GPU telemetry: fleet", "Every GPU, from the raw samples in ClickHouse.",
                     [source_variable("clickhouse", "grafana-clickhouse-datasource"), hosts, metric], panels, since="1h")  # fmt: skip


def dashboards() -> dict[str, dict[str, Any]]:
    """File name -> dashboard."""
    return {"pipeline.json": pipeline(), "fleet.json": fleet()}


def text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, found in dashboards().items():
        (FOLDER / name).write_text(text(found), "utf-8")


if __name__ == "__main__":
    main()
