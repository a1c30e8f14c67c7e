"""Rollups by minute and by hour, what is known of each GPU over time, and XID events.

Nothing here is filled by a view on the insert path (R3): :mod:`clickhouse.rollup` recomputes buckets from the raw
rows, and the newest version of a bucket replaces the others. All of it may be dropped and made again from raw, but for
what is older than the raw rows' retention.
"""

from clickhouse.schema import HOUR_DAYS, MINUTE_DAYS, Flavour

DESTROYS = True

_VALUES = """    gpu UInt64 CODEC(ZSTD(1)),
    metric LowCardinality(String),
    bucket DateTime('UTC') CODEC(DoubleDelta, ZSTD(1)),
    low Float64 CODEC(ZSTD(1)),
    high Float64 CODEC(ZSTD(1)),
    total Float64 CODEC(ZSTD(1)),
    count UInt64 CODEC(Delta, ZSTD(1)),
    last Float64 CODEC(ZSTD(1)),
    version UInt64 CODEC(Delta, ZSTD(1))"""


def forwards(flavour: Flavour) -> list[str]:
    return [
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("samples_1m")}{flavour.on_cluster}
(
{_VALUES}
)
ENGINE = {flavour.engine("samples_1m", "Replacing", "version")}
PARTITION BY toDate(bucket)
ORDER BY (gpu, metric, bucket)
TTL bucket + toIntervalDay({MINUTE_DAYS})
SETTINGS {flavour.ttl}, do_not_merge_across_partitions_select_final = 1""",
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("samples_1h")}{flavour.on_cluster}
(
{_VALUES}
)
ENGINE = {flavour.engine("samples_1h", "Replacing", "version")}
PARTITION BY toYYYYMM(bucket)
ORDER BY (gpu, metric, bucket)
TTL bucket + toIntervalDay({HOUR_DAYS})
SETTINGS {flavour.ttl}, do_not_merge_across_partitions_select_final = 1""",
        # min, max and argMax may be fed the same rows any number of times.
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("gpu_seen")}{flavour.on_cluster}
(
    gpu UInt64,
    first SimpleAggregateFunction(min, DateTime64(3, 'UTC')),
    last SimpleAggregateFunction(max, DateTime64(3, 'UTC'))
)
ENGINE = {flavour.engine("gpu_seen", "Aggregating")}
ORDER BY gpu""",
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("xid_events")}{flavour.on_cluster}
(
    gpu UInt64,
    ts DateTime64(3, 'UTC'),
    code UInt32,
    before UInt32,
    labels UInt64,
    is_event UInt8,
    version UInt64
)
ENGINE = {flavour.engine("xid_events", "Replacing", "version")}
PARTITION BY toYYYYMM(ts)
ORDER BY (gpu, ts)
TTL toDateTime(ts) + toIntervalDay({HOUR_DAYS})
SETTINGS {flavour.ttl}""",
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("rollup_progress")}{flavour.on_cluster}
(
    name LowCardinality(String),
    upto DateTime('UTC'),
    version UInt64
)
ENGINE = {flavour.engine("rollup_progress", "Replacing", "version")}
ORDER BY name""",
        *flavour.distributed("samples_1m", "gpu"),
        *flavour.distributed("samples_1h", "gpu"),
        *flavour.distributed("gpu_seen", "gpu"),
        *flavour.distributed("xid_events", "gpu"),
        *flavour.distributed("rollup_progress"),
    ]


def backwards(flavour: Flavour) -> list[str]:
    names = ("rollup_progress", "xid_events", "gpu_seen", "samples_1h", "samples_1m")
    return [statement for name in names for statement in flavour.drop(name)]
