"""Errors, migrations and blocks, without a server."""

from __future__ import annotations

import numpy as np
import pytest

from clickhouse.errors import ERROR_CODES, Outcome, OutcomeUnknown, StoreRefused, from_code, outcome_of
from clickhouse.insert import SampleColumns, in_table_order, sample_block
from clickhouse.migrate import UnknownMigration, plan
from clickhouse.migrations import all_migrations
from clickhouse.native import Coded, Keys, flat, keys, low_cardinality, varint
from clickhouse.schema import Flavour


def test_only_codes_that_blame_the_data_are_permanent() -> None:
    for code in (60, 81, 115, 241, 243, 252, 497, 516):
        error = from_code("x", code)
        assert isinstance(error, StoreRefused), ERROR_CODES[code]
        assert not error.permanent
    assert from_code("x", 27).permanent  # type: ignore[union-attr, attr-defined]


def test_a_code_that_nobody_knows_says_nothing_for_certain() -> None:
    assert outcome_of(4711) is Outcome.UNKNOWN
    assert isinstance(from_code("x", 4711), OutcomeUnknown)


def test_plans_go_to_any_version_from_any_version() -> None:
    newest = all_migrations()[-1].number
    up = plan(set(), Flavour())
    assert [step.migration.number for step in up] == list(range(1, newest + 1))
    down = plan(set(range(1, newest + 1)), Flavour(), 1)
    assert [step.migration.number for step in down] == list(range(newest, 1, -1))
    assert not any(step.forwards for step in down)
    assert plan(set(range(1, newest + 1)), Flavour()) == []


def test_a_database_from_the_future_is_refused() -> None:
    with pytest.raises(UnknownMigration, match="update"):
        plan({1, 2, 999}, Flavour())


def test_names_of_databases_are_names() -> None:
    with pytest.raises(ValueError, match="no name"):
        Flavour(database="a; DROP")


def test_a_block_without_rows_is_refused() -> None:
    empty = np.array([], dtype=np.uint64)
    with pytest.raises(ValueError, match="without rows"):
        sample_block(SampleColumns(empty, empty, empty, [], empty, empty, empty, empty))


@pytest.mark.parametrize(("values", "width"), [(3, 1), (255, 1), (256, 2), (70_000, 4)])
def test_keys_of_a_text_column_are_as_narrow_as_its_values_allow(values: int, width: int) -> None:
    data = low_cardinality(Coded(np.array([0, values - 1]), [f"m{i}" for i in range(values)]))
    assert len(data[-1]) == 2 * width


@pytest.mark.parametrize(("values", "rows", "kind"), [(4, 8, "LowCardinality(UInt64)"), (5, 8, "UInt64")])
def test_keys_travel_as_codes_where_that_is_shorter(values: int, rows: int, kind: str) -> None:
    column = Keys(np.arange(rows) % values, np.arange(values, dtype=np.uint64) + np.uint64(2**63))
    told, data = keys(column)
    assert told == kind
    assert sum(map(len, data)) == (24 + 8 * values + 8 + rows if kind != "UInt64" else 8 * rows)
    assert flat(column[np.array([1, 0])]).tolist() == [2**63 + 1, 2**63]


def test_sizes_are_leb128() -> None:
    assert [varint(n) for n in (0, 127, 128, 300)] == [b"\0", b"\x7f", b"\x80\x01", b"\xac\x02"]


@pytest.mark.parametrize("gpus", [1, 5, 40_000])
def test_rows_in_the_tables_order_are_the_same_rows_and_a_series_keeps_its_own(gpus: int) -> None:
    """Two codes of one GPU (two label sets) are one series; 40,000 GPUs are more series than are sorted here."""
    random = np.random.default_rng(gpus)
    rows, names = 3000, ["b", "c", "a"]
    keys = random.integers(0, 2**63, gpus).astype(np.uint64)
    keys[-1] = keys[0]
    device = random.integers(0, gpus, rows)
    columns = SampleColumns(
        gpu=Keys(device, keys),
        labels=Keys(device, np.arange(gpus, dtype=np.uint64)),
        metric_code=random.integers(0, 3, rows).astype(np.uint8),
        metric_names=names,
        ts_ms=np.arange(rows),
        value=random.random(rows),
        session=np.full(rows, 7, dtype=np.uint64),
        seq=np.arange(rows, dtype=np.uint64),
    )

    def told(given: SampleColumns) -> list[tuple]:
        metric = [names[code] for code in given.metric_code.tolist()]
        others = (given.ts_ms, given.value, flat(given.labels), given.session, given.seq)
        return list(zip(flat(given.gpu).tolist(), metric, *(column.tolist() for column in others), strict=True))

    expected = told(columns) if gpus == 40_000 else sorted(told(columns), key=lambda row: row[:3])
    assert told(in_table_order(columns)) == expected
