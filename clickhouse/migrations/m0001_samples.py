"""The raw table. Figures behind codecs and order: docs/adr/0010-samples-table.md."""

from clickhouse.schema import RETENTION_DAYS, Flavour

DESTROYS = True


def forwards(flavour: Flavour) -> list[str]:
    return [
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("samples")}{flavour.on_cluster}
(
    gpu UInt64 CODEC(ZSTD(1)),
    metric LowCardinality(String),
    ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    value Float64 CODEC(ZSTD(1)),
    labels UInt64 CODEC(ZSTD(1)),
    _session UInt64 CODEC(Delta, ZSTD(1)),
    _seq UInt64 CODEC(Delta, ZSTD(1))
)
ENGINE = {flavour.engine("samples")}
PARTITION BY toDate(ts)
ORDER BY (gpu, metric, ts)
TTL toDateTime(ts) + toIntervalDay({RETENTION_DAYS})
SETTINGS {flavour.deduplication}, {flavour.ttl}""",
        *flavour.distributed("samples", "gpu"),
    ]


def backwards(flavour: Flavour) -> list[str]:
    return flavour.drop("samples")
