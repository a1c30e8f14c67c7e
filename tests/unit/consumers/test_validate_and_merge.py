"""Decode, validate and merge against a slow and obvious implementation of the same rules."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickhouse.insert import sample_block
from clickhouse.native import flat
from consumers.decode import decode
from consumers.dictionary import DictionaryCache
from consumers.merge import Address, merge
from consumers.rows import lay_out
from consumers.validate import REASONS, Rules, validate
from telemetry.batch import BatchDecoder, Device
from tests.helpers.collector_fakes import row_by_row
from tests.helpers.deliveries import NOON_MS, FakeDelivery, Row, batch_of, delivery_of, gpu, simple_rows

DAY_MS = 86_400_000
BLANK = 9223372036854775794.0
RENAMED = {"SM_CLOCK_HZ": ("DCGM_FI_DEV_SM_CLOCK", 1e-6), "GPU_TEMP_CELSIUS": ("DCGM_FI_DEV_GPU_TEMP", 1.0)}


def canonical(name: str) -> tuple[str, float]:
    return RENAMED.get(name, (name, 1.0))


def is_blank(values: np.ndarray) -> np.ndarray:
    return values >= 9.2233720368547e18


RULES = Rules(past_ms=2 * DAY_MS, future_ms=60_000, retention_ms=5 * DAY_MS)


def run(delivery, rules: Rules = RULES):
    decoded = decode(delivery.records, delivery.payloads(), BatchDecoder())
    rows = lay_out(decoded, DictionaryCache(canonical))
    return merge(rows, validate(rows, rules, is_blank))


def slow_reason(row: Row, appended_ms: int, rules: Rules) -> str:
    """The rules as one would say them."""
    age_ms = appended_ms - row.ts_ms
    if not row.device.gpu_id:
        return "no_gpu_identity"
    if not math.isfinite(row.value * canonical(row.metric)[1]):
        return "not_finite"
    if row.value >= 9.2233720368547e18:
        return "blank"
    if age_ms > rules.retention_ms:
        return "older_than_retention"
    if age_ms > rules.past_ms:
        return "too_far_past"
    if age_ms < -rules.future_ms:
        return "too_far_future"
    return "accepted"


devices = st.sampled_from(
    [gpu(0), gpu(1), gpu(2, pod="train-7"), Device(hostname="h", gpu_index="3"), Device(hostname="h")]
)
values = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, BLANK, 0.0, 1.7e308]))
ages = st.one_of(st.integers(-120_000, 120_000), st.integers(-DAY_MS, 7 * DAY_MS))
a_row = st.builds(
    lambda age, device, metric, value: Row(NOON_MS - age, device, metric, value),
    ages,
    devices,
    st.sampled_from(["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_SM_CLOCK", "SM_CLOCK_HZ", "GPU_TEMP_CELSIUS", "my_metric"]),
    values,
)
a_batch = st.lists(a_row, min_size=1, max_size=12)


@given(st.lists(a_batch, min_size=1, max_size=6), st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_validation_and_merging_agree_with_a_slow_obvious_implementation(batches, jitter):
    delivery = delivery_of([(7, seq, rows) for seq, rows in enumerate(batches)], appended_ms=NOON_MS + jitter)
    merged = run(delivery)

    stored, rejected = Counter(), Counter()
    for seq, rows in enumerate(batches):
        for index, row in enumerate(rows):
            reason = slow_reason(row, NOON_MS + jitter, RULES)
            if reason == "accepted":
                name, factor = canonical(row.metric)
                day = row.ts_ms // DAY_MS
                keys = (row.device.gpu_key, row.device.labels_key)
                stored[(day, *keys, name, row.ts_ms, row.value * factor, 7, seq)] += 1
            else:
                rejected[(seq, index, reason)] += 1

    got = Counter()
    for block in merged.days:
        c = row_by_row(block.columns)
        for i in range(block.rows):
            got[
                (
                    block.day, int(c.gpu[i]), int(c.labels[i]), c.metric_names[int(c.metric_code[i])],
                    int(c.ts_ms[i]), float(c.value[i]), int(c.session[i]), int(c.seq[i]),
                )
            ] += 1  # fmt: skip
    assert got == stored
    assert [block.day for block in merged.days] == sorted({key[0] for key in stored})

    got_rejected = Counter()
    if merged.rejected is not None:
        batch_of_row = merged.rejected.rows.batch_of_row()
        starts = np.concatenate(([0], np.cumsum(merged.rejected.rows.sizes)[:-1]))
        for index, reason in zip(merged.rejected.index.tolist(), merged.rejected.reason.tolist()):
            batch = int(batch_of_row[index])
            got_rejected[(batch, index - int(starts[batch]), REASONS[reason])] += 1
    assert got_rejected == rejected


@given(st.lists(a_batch, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_probe_names_a_row_of_its_batch_and_counts_its_rows(batches):
    merged = run(delivery_of([(7, seq, rows) for seq, rows in enumerate(batches)], appended_ms=NOON_MS))
    for block in merged.days:
        c = row_by_row(block.columns)
        counts = Counter(c.seq.tolist())
        for probe in block.probes():
            i = c.seq.tolist().index(probe.seq)
            assert (probe.gpu, probe.ts_ms) == (int(c.gpu[i]), int(c.ts_ms[i]))
            assert probe.metric == c.metric_names[int(c.metric_code[i])]
            assert probe.rows == counts.pop(probe.seq)
        assert not counts


def test_r17_validation_does_not_depend_on_the_present():
    """The same range, met again a year later, must be cut into the same rows: only the time of append counts."""
    rows = [Row(NOON_MS - DAY_MS, gpu(0), "m", 1.0), Row(NOON_MS - 3 * DAY_MS, gpu(0), "m", 2.0)]
    for _ in range(2):
        merged = run(delivery_of([(1, 1, rows)], appended_ms=NOON_MS))
        assert [block.columns.value.tolist() for block in merged.days] == [[1.0]]
        assert merged.rejected is not None
        assert [REASONS[code] for code in merged.rejected.reason] == ["too_far_past"]


def test_r17_rows_older_than_retention_are_rejected_by_that_name():
    rows = [Row(NOON_MS - 6 * DAY_MS, gpu(0), "m", 1.0)]
    merged = run(delivery_of([(1, 1, rows)], appended_ms=NOON_MS))
    assert merged.days == []
    assert [REASONS[code] for code in merged.rejected.reason] == ["older_than_retention"]


def test_each_batch_is_judged_by_its_own_time_of_append():
    rows = [Row(NOON_MS, gpu(0), "m", 1.0)]
    bodies = [batch_of(rows, 1, 1), batch_of(rows, 1, 2)]
    delivery = FakeDelivery(bodies, [(1, 1), (1, 2)], [NOON_MS, NOON_MS + 3 * DAY_MS])
    merged = run(delivery)
    assert flat(merged.days[0].columns.seq).tolist() == [1]
    assert merged.rejected.index.tolist() == [1]


def test_r15_a_range_over_midnight_gives_one_block_a_day():
    midnight = (NOON_MS // DAY_MS + 1) * DAY_MS
    merged = run(delivery_of([(1, 1, simple_rows(100, start_ms=midnight - 50))], appended_ms=midnight))
    today = midnight // DAY_MS
    assert [(block.day, block.rows) for block in merged.days] == [(today - 1, 50), (today, 50)]


def test_r02_the_same_range_gives_the_same_blocks_on_every_attempt():
    """A repeat must be the same block byte for byte, whoever makes it and whatever it decoded before."""
    delivery = delivery_of([(1, seq, simple_rows(50, gpus=3 + seq)) for seq in range(5)])
    warm, decoder = DictionaryCache(canonical), BatchDecoder()
    other = delivery_of([(9, 9, simple_rows(500, gpus=200))])
    lay_out(decode(other.records, other.payloads(), decoder), warm)

    def block_bytes(cache: DictionaryCache, one: BatchDecoder) -> bytes:
        rows = lay_out(decode(delivery.records, delivery.payloads(), one), cache)
        (block,) = merge(rows, validate(rows, RULES, is_blank)).days
        return sample_block(block.columns)

    assert block_bytes(warm, decoder) == block_bytes(DictionaryCache(canonical), BatchDecoder())


def test_an_undecodable_batch_is_named_and_the_others_go_on():
    delivery = delivery_of([(1, seq, simple_rows(10)) for seq in range(3)])
    delivery.bodies[1] = delivery.bodies[1][:-1] + b"\x00" * 5
    decoded = decode(delivery.records, delivery.payloads(), BatchDecoder())
    assert decoded.offsets == [0, 2]
    assert [record.offset for record in decoded.dead] == [1]
    assert "undecodable batch" in decoded.dead[0].reason


def test_r01_a_batch_that_stands_twice_in_one_range_is_taken_once():
    """A broker that lost a session's state may log a resend again; the address tells."""
    rows = simple_rows(10)
    delivery = delivery_of([(1, 1, rows), (1, 2, rows), (1, 1, rows)])
    decoded = decode(delivery.records, delivery.payloads(), BatchDecoder())
    assert [(batch.session, batch.seq) for batch in decoded.batches] == [(1, 1), (1, 2)]
    assert decoded.repeats == 1


def test_r01_every_row_carries_the_address_of_its_batch():
    merged = run(delivery_of([(2**64 - 1, 2**63, simple_rows(3)), (5, 0, simple_rows(2))]))
    (block,) = merged.days
    assert flat(block.columns.session).tolist() == [2**64 - 1] * 3 + [5] * 2
    assert flat(block.columns.seq).tolist() == [2**63] * 3 + [0] * 2


def test_a_part_of_a_block_holds_exactly_the_named_batches():
    (block,) = run(delivery_of([(1, seq, simple_rows(seq + 1)) for seq in range(6)])).days
    part = block.only([Address(1, 2), Address(1, 5)])
    assert flat(part.columns.seq).tolist() == [2] * 3 + [5] * 6
    assert part.rows == 9


def test_metric_codes_of_different_dictionaries_meet_under_one_name():
    rows_a = [Row(NOON_MS, gpu(0), "DCGM_FI_DEV_GPU_TEMP", 1.0), Row(NOON_MS, gpu(0), "other", 2.0)]
    rows_b = [Row(NOON_MS, gpu(1), "other", 3.0), Row(NOON_MS, gpu(1), "GPU_TEMP_CELSIUS", 4.0)]
    (block,) = run(delivery_of([(1, 1, rows_a), (1, 2, rows_b)])).days
    names = [block.columns.metric_names[code] for code in block.columns.metric_code.tolist()]
    assert names == ["DCGM_FI_DEV_GPU_TEMP", "other", "other", "DCGM_FI_DEV_GPU_TEMP"]
    assert flat(block.columns.gpu).tolist() == [gpu(0).gpu_key] * 2 + [gpu(1).gpu_key] * 2


def test_a_fleet_of_old_and_new_exporters_meets_in_one_unit():
    """Both dictionaries mean the same canonical metric, and only one of them needs a factor."""
    old = [Row(NOON_MS, gpu(0), "DCGM_FI_DEV_SM_CLOCK", 1500.0)]
    new = [Row(NOON_MS, gpu(1), "SM_CLOCK_HZ", 1500e6)]
    for batches in ((old, new), (new, old)):
        (block,) = run(delivery_of([(1, seq, rows) for seq, rows in enumerate(batches)])).days
        assert block.columns.value.tolist() == [pytest.approx(1500.0)] * 2


def test_newer_units_are_brought_to_the_classic_ones():
    (block,) = run(delivery_of([(1, 1, [Row(NOON_MS, gpu(0), "SM_CLOCK_HZ", 1_980e6)])])).days
    assert block.columns.metric_names[int(block.columns.metric_code[0])] == "DCGM_FI_DEV_SM_CLOCK"
    assert block.columns.value[0] == pytest.approx(1980.0)


def test_the_dictionary_cache_is_bounded_and_still_right_after_an_entry_went():
    cache = DictionaryCache(canonical, entries_max=50)
    for round_ in range(3):
        for n in range(20):
            delivery = delivery_of([(1, 1, simple_rows(5, gpus=5, metric=f"m{n}"))])
            rows = lay_out(decode(delivery.records, delivery.payloads(), BatchDecoder()), cache)
            assert rows.metric_names == (f"m{n}",), round_
            assert cache._entries <= 50
