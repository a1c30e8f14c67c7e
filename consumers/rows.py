"""A delivery's batches laid out as long columns: the ground on which validation and merging work.

A delivery may hold two batches of 65,536 rows or 2,500 of 100. So that the second costs little more than the
first, the batches' columns are strung together once, and everything after that is one NumPy call a delivery:
codes become indices into tables that span all dictionaries of the delivery. No Python object is made for a row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from consumers.decode import Decoded
from consumers.dictionary import DictionaryCache, DictionaryKeys
from telemetry.batch import Batch, Device

NS_A_MS = 1_000_000


class Rows(NamedTuple):
    """All rows of a delivery in the order of the log. The row arrays have one length; tables are indexed by code."""

    batches: list[Batch]
    sizes: np.ndarray
    """int64, rows of each batch."""
    appended_ms: np.ndarray
    """int64, when each batch was appended, ms since the epoch."""
    ts_ns: np.ndarray
    """int64 a row, as sent."""
    ts_ms: np.ndarray
    """int64 a row, as stored: rounded down to the millisecond."""
    value: np.ndarray
    """float64 a row, as sent: neither checked nor scaled."""
    device: np.ndarray
    """integer a row, into ``gpu``, ``labels``, ``nameless`` and :meth:`devices`."""
    metric: np.ndarray
    """integer a row, into ``raw_metrics``, ``metric_code`` and ``scale``."""
    dictionaries: list[DictionaryKeys]
    """The distinct dictionaries of the delivery, in order of appearance."""
    gpu: np.ndarray
    labels: np.ndarray
    nameless: np.ndarray | None
    """bool a device; None where every device has an identity."""
    raw_metrics: list[str]
    """The name of each metric as it was sent."""
    metric_names: tuple[str, ...]
    """The distinct canonical names of the delivery."""
    metric_code: np.ndarray | None
    """int64 a metric, into ``metric_names``; None where it is the metric's own code."""
    scale: np.ndarray | None
    """float64 a metric; None where every factor is 1."""

    def batch_of_row(self) -> np.ndarray:
        """Unsigned integers a row: the index of its batch; never decreasing."""
        count = len(self.batches)
        return np.repeat(np.arange(count, dtype=np.min_scalar_type(count)), self.sizes)

    def devices(self) -> list[Device]:
        """The devices by code: made for the few places where words are needed."""
        return [device for keys in self.dictionaries for device in keys.devices]


def lay_out(decoded: Decoded, cache: DictionaryCache) -> Rows:
    """String the batches of one delivery (at least one) together."""
    batches = decoded.batches
    sizes = np.array([batch.rows for batch in batches], dtype=np.int64)
    dictionaries: list[DictionaryKeys] = []
    place: dict[bytes, int] = {}
    of_batch: list[int] = []
    for batch in batches:
        digest = batch.dictionary.digest
        index = place.get(digest)
        if index is None:
            index = place[digest] = len(dictionaries)
            dictionaries.append(cache.keys(batch.dictionary))
        of_batch.append(index)
    device_base = _starts([len(keys.devices) for keys in dictionaries])
    metric_base = _starts([len(keys.metrics) for keys in dictionaries])
    device = _concatenate([batch.device_code for batch in batches])
    metric = _concatenate([batch.metric_code for batch in batches])
    if len(dictionaries) > 1:
        dictionary_of_batch = np.array(of_batch, dtype=np.int64)
        device = np.repeat(device_base[dictionary_of_batch], sizes) + device
        if any(keys.raw_metrics != dictionaries[0].raw_metrics for keys in dictionaries):
            metric = np.repeat(metric_base[dictionary_of_batch], sizes) + metric
        else:  # a fleet: every agent sends the same metrics, so codes mean the same, factors too, in all dictionaries
            metric_base = np.zeros(len(dictionaries), dtype=np.uint32)
    # Without distinct bases the first dictionary's metrics speak for all.
    metric_tables = dictionaries if metric_base.any() else dictionaries[:1]
    metric_names, metric_code, scale = _metric_tables(metric_tables)
    ts_ns = _concatenate([batch.timestamp_ns for batch in batches])
    return Rows(
        batches=batches,
        sizes=sizes,
        appended_ms=np.array(decoded.appended_ms, dtype=np.int64),
        ts_ns=ts_ns,
        ts_ms=ts_ns // NS_A_MS,
        value=_concatenate([batch.value for batch in batches]),
        device=device,
        metric=metric,
        dictionaries=dictionaries,
        gpu=_concatenate([keys.gpu for keys in dictionaries]),
        labels=_concatenate([keys.labels for keys in dictionaries]),
        nameless=_concatenate([keys.nameless for keys in dictionaries])
        if any(keys.any_nameless for keys in dictionaries)
        else None,
        raw_metrics=[name for keys in metric_tables for name in keys.raw_metrics],
        metric_names=metric_names,
        metric_code=metric_code,
        scale=scale,
    )


def _metric_tables(tables: list[DictionaryKeys]) -> tuple[tuple[str, ...], np.ndarray | None, np.ndarray | None]:
    codes: dict[str, int] = {}
    metric_code = [codes.setdefault(name, len(codes)) for keys in tables for name in keys.metrics]
    identity = len(codes) == len(metric_code)
    scale = None
    if any(keys.scale is not None for keys in tables):
        ones = [keys.scale if keys.scale is not None else np.ones(len(keys.metrics)) for keys in tables]
        scale = _concatenate(ones)
    return tuple(codes), None if identity else np.array(metric_code, dtype=np.int64), scale


def _starts(sizes: list[int]) -> np.ndarray:
    starts = np.zeros(len(sizes), dtype=np.uint32)
    np.cumsum(sizes[:-1], out=starts[1:])
    return starts


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
