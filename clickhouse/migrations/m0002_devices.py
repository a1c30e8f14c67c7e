"""What the keys in ``samples`` stand for. A row repeats whenever a collector starts; only one a key is kept."""

from clickhouse.schema import Flavour

DESTROYS = True


def forwards(flavour: Flavour) -> list[str]:
    return [
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("devices")}{flavour.on_cluster}
(
    gpu UInt64,
    labels UInt64,
    gpu_id String,
    uuid String,
    hostname LowCardinality(String),
    gpu_index LowCardinality(String),
    device LowCardinality(String),
    model LowCardinality(String),
    cluster LowCardinality(String),
    container String,
    pod String,
    namespace LowCardinality(String),
    job String,
    extra Map(String, String),
    seen DateTime64(3, 'UTC')
)
ENGINE = {flavour.engine("devices", "Replacing", "seen")}
ORDER BY (gpu, labels)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1""",
        *flavour.distributed("devices", "gpu"),
    ]


def backwards(flavour: Flavour) -> list[str]:
    return flavour.drop("devices")
