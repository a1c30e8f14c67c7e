"""Starts of the server after which nothing is looked for any more (R16); see :mod:`clickhouse.queries.boots`."""

from clickhouse.schema import Flavour


def forwards(flavour: Flavour) -> list[str]:
    return [
        f"""CREATE TABLE IF NOT EXISTS {flavour.table("boots")}{flavour.on_cluster}
(
    id UUID,
    why LowCardinality(String),
    at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {flavour.engine("boots")}
ORDER BY id""",
        *flavour.distributed("boots"),
    ]


def backwards(flavour: Flavour) -> list[str]:
    return flavour.drop("boots")
