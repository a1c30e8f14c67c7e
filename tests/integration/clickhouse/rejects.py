"""Rejected rows for tests."""

from __future__ import annotations

import numpy as np

from clickhouse.insert import RejectColumns
from clickhouse.native import Coded
from tests.helpers.store import today_ms


def reject_columns(rows: int, *, session: int = 1, seq: int = 1) -> RejectColumns:
    """``rows`` rejects of one batch."""
    number = np.arange(rows, dtype=np.uint64)
    same = np.zeros(rows, dtype=np.uint64)
    return RejectColumns(
        appended_ms=np.full(rows, today_ms()),
        reason=Coded(number % 2, ["blank", "no_gpu"]),
        detail=Coded.constant("", rows),
        log=Coded.constant("ab" * 16, rows),
        partition=same + 1,
        offset=same + 2,
        session=same + session,
        seq=same + seq,
        row=number,
        gpu_id=Coded.constant("GPU-1", rows),
        hostname=Coded.constant("h1", rows),
        metric=Coded.constant("DCGM_FI_DEV_GPU_UTIL", rows),
        timestamp_ns=number.astype(np.int64),
        value=np.full(rows, np.nan),
    )
