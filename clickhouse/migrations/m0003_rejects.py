"""Rows that were refused: why, and where they came from."""

from clickhouse.schema import RETENTION_DAYS, Flavour

DESTROYS = True


def forwards(flavour: Flavour) -> list[str]:
    return [
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("rejects")}{flavour.on_cluster}
(
    appended DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    reason LowCardinality(String),
    detail LowCardinality(String),
    log LowCardinality(String),
    partition UInt32,
    offset UInt64 CODEC(Delta, ZSTD(1)),
    _session UInt64 CODEC(Delta, ZSTD(1)),
    _seq UInt64 CODEC(Delta, ZSTD(1)),
    row UInt32 CODEC(Delta, ZSTD(1)),
    gpu_id LowCardinality(String),
    hostname LowCardinality(String),
    metric LowCardinality(String),
    timestamp_ns Int64 CODEC(Delta, ZSTD(1)),
    value Float64 CODEC(ZSTD(1))
)
ENGINE = {flavour.engine("rejects")}
PARTITION BY toDate(appended)
ORDER BY (appended, _session, _seq, row)
TTL toDateTime(appended) + toIntervalDay({RETENTION_DAYS})
SETTINGS {flavour.deduplication}, {flavour.ttl}""",
        *flavour.distributed("rejects"),
    ]


def backwards(flavour: Flavour) -> list[str]:
    return flavour.drop("rejects")
