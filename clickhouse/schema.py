"""What the tables are, once: migrations, inserts, queries and tests read it from here.

    samples   one row a value: GPU, metric, time; sorted so that a question about one GPU reads next to nothing
    devices   what a GPU's key and a label set's key stand for; a row is written again whenever it is met
    rejects   rows that were refused, with the reason and where they came from
    boot      a dictionary of one row: an id that changes with every start of the server (R12)
    boots     starts of the server after which nobody has to look for lost rows any more (R16)

    samples_1m, samples_1h   rollups of samples; gpu_seen, xid_events   what outlives the raw rows of a GPU

Two flavours are rendered from the same text: ``single`` (the embedded server, or one server) and ``cluster``
(Replicated engines, ON CLUSTER, and a second database ``<database>_all`` with a Distributed table of the same name over
each local one). Questions are the same text in either database; collectors insert into and check the local table of one
replica (R18).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal

RETENTION_DAYS: Final = 7
MINUTE_DAYS: Final = 90
HOUR_DAYS: Final = 730

DEDUPLICATION_WINDOW: Final = 20_000
"""Tokens that a table remembers: at least 3 x Z x peak inserts/s (R14), here 111 inserts/s for Z = 60 s."""

SAMPLE_COLUMNS: Final = ("gpu", "metric", "ts", "value", "labels", "_session", "_seq")
DEVICE_COLUMNS: Final = (
    "gpu", "labels", "gpu_id", "uuid", "hostname", "gpu_index", "device", "model", "cluster", "container", "pod",
    "namespace", "job", "extra", "seen",
)  # fmt: skip
REJECT_COLUMNS: Final = (
    "appended", "reason", "detail", "log", "partition", "offset", "_session", "_seq", "row", "gpu_id", "hostname",
    "metric", "timestamp_ns", "value",
)  # fmt: skip

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")


@dataclass(frozen=True)
class Flavour:
    """How the schema is written for one installation."""

    database: str = "telemetry"
    kind: Literal["single", "cluster"] = "single"
    cluster: str = "default"
    """Name of the cluster in the server's ``remote_servers``."""
    keeper_path: str = "/clickhouse/tables/{shard}"
    replica: str = "{replica}"
    user: str = ""
    password: str = field(default="", repr=False)
    """Of whoever the boot dictionary asks the server as; "" = the default user without a password."""

    def __post_init__(self) -> None:
        for name in (self.database, self.cluster):
            if not _NAME.match(name):
                raise ValueError(f"{name!r} is no name of letters, digits and underscores")

    @property
    def is_cluster(self) -> bool:
        return self.kind == "cluster"

    @property
    def on_cluster(self) -> str:
        return f" ON CLUSTER '{self.cluster}'" if self.is_cluster else ""

    def table(self, name: str) -> str:
        return f"{self.database}.{name}"

    @property
    def database_all(self) -> str:
        """Where questions over all shards go."""
        return f"{self.database}_all"

    def engine(self, name: str, family: str = "", *arguments: str) -> str:
        """The engine of a table: ``MergeTree``, or with ``family`` e.g. ``ReplacingMergeTree(version)``."""
        inner = ", ".join(arguments)
        if not self.is_cluster:
            return f"{family}MergeTree({inner})" if inner else f"{family}MergeTree"
        told = ", ".join(filter(None, (f"'{self.keeper_path}/{self.database}/{name}'", f"'{self.replica}'", inner)))
        return f"Replicated{family}MergeTree({told})"

    @property
    def deduplication(self) -> str:
        """Settings of a table that takes the collectors' inserts; both kinds, as one text may meet either engine."""
        return (
            f"non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}, "
            f"replicated_deduplication_window = {DEDUPLICATION_WINDOW}, "
            "replicated_deduplication_window_seconds = 3600, "
            "fsync_after_insert = 1, fsync_part_directory = 1, "
            # An insert's part is one file of columns and half the syncs; merges make wide parts of several.
            f"min_bytes_for_wide_part = {64 << 20}"
        )

    @property
    def ttl(self) -> str:
        """Settings of a table with a TTL: whole parts go, and a new TTL costs no rewriting of the old rows."""
        return "ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1"

    def distributed(self, name: str, sharding: str = "rand()") -> list[str]:
        """The table over all shards, for questions; nothing is inserted through it."""
        if not self.is_cluster:
            return []
        return [
            f"CREATE TABLE IF NOT EXISTS {self.database_all}.{name}{self.on_cluster} AS {self.table(name)}\n"
            f"ENGINE = Distributed('{self.cluster}', '{self.database}', '{name}', {sharding})"
        ]

    def drop(self, name: str, what: str = "TABLE") -> list[str]:
        dropped = [f"DROP {what} IF EXISTS {self.table(name)}{self.on_cluster} SYNC"]
        if what != "TABLE":
            return [dropped[0].removesuffix(" SYNC")]
        if self.is_cluster:
            dropped.insert(0, f"DROP TABLE IF EXISTS {self.database_all}.{name}{self.on_cluster} SYNC")
        return dropped
