"""A delivery's accepted rows as an Arrow table with everything about them in words: for cold copies."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from consumers.rows import Rows
from telemetry.batch import Device

_WORDS = (
    "gpu_id",
    "hostname",
    "gpu_index",
    "device",
    "model",
    "cluster",
    "container",
    "pod",
    "namespace",
    "job",
    "labels",
)
_WORD = pa.dictionary(pa.int32(), pa.string())

SCHEMA = pa.schema(
    [
        pa.field("timestamp", pa.timestamp("ms", tz="UTC")),
        pa.field("metric_name", _WORD),
        pa.field("value", pa.float64()),
        *(pa.field(name, _WORD) for name in _WORDS),
        pa.field("_session", pa.uint64()),
        pa.field("_seq", pa.uint64()),
    ]
)


def to_table(rows: Rows, reasons: np.ndarray | None) -> pa.Table:
    """The rows that validation accepts, in the order of the log."""
    keep = np.arange(len(rows.value)) if reasons is None else np.flatnonzero(reasons == 0)
    devices = rows.devices()
    device = pa.array(rows.device[keep].astype(np.int32))
    metric = rows.metric[keep]
    value = rows.value[keep]
    if rows.scale is not None:
        value = value * rows.scale[metric]
    code = metric if rows.metric_code is None else rows.metric_code[metric]
    session = np.repeat(np.array([batch.session for batch in rows.batches], dtype=np.uint64), rows.sizes)
    seq = np.repeat(np.array([batch.seq for batch in rows.batches], dtype=np.uint64), rows.sizes)
    columns = [
        pa.array(rows.ts_ms[keep], pa.timestamp("ms", tz="UTC")),
        _words(pa.array(code.astype(np.int32)), list(rows.metric_names)),
        pa.array(value),
        *(_words(device, [_word(one, name) for one in devices]) for name in _WORDS),
        pa.array(session[keep]),
        pa.array(seq[keep]),
    ]
    return pa.table(columns, schema=SCHEMA)


def _words(codes: pa.Array, words: list[str]) -> pa.DictionaryArray:
    """Codes into ``words`` as codes into the distinct words: many devices share a host or a model."""
    distinct: dict[str, int] = {}
    remap = np.array([distinct.setdefault(word, len(distinct)) for word in words], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(remap[codes.to_numpy()], pa.array(list(distinct), pa.string()))


def _word(device: Device, name: str) -> str:
    if name == "labels":
        return json.dumps(dict(device.labels), ensure_ascii=False) if device.labels else ""
    return str(getattr(device, name))
