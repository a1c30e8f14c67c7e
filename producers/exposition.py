"""The text that dcgm-exporter (or any exporter of GPU metrics) serves, to columns.

What comes before the value of a line (name and labels) is the same at every scrape, so it is understood once and then
looked up: a scrape costs one dictionary look-up a sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from producers.columns import Columns
from producers.identities import Identities
from producers.labels import exporter_generation, make_device, parse_labels
from producers.values import parse_number
from telemetry.catalogue import canonical, scale, unit_in

SERIES_MAX: Final = 200_000
GPU_METRICS: Final = r"DCGM_|gpu_|GPU_|hw_gpu_|pcie_|amd_"
"""Names that begin so are taken; an exporter's own go_, process_ and http_ metrics are not the GPU's."""


class Series(NamedTuple):
    """What a line's name and labels mean; codes of the reader's identities."""

    device: int
    metric: int
    factor: float


class Scrape(NamedTuple):
    """One scrape as rows."""

    columns: Columns
    skipped: dict[str, int]
    """Lines that gave no row, by reason: no_gpu, not_a_number, stale, repeated."""


class ExpositionReader:
    """Reads the texts of one target. Not thread-safe; ``identities`` may be shared where calls do not overlap.

    A sample with a time of its own is left out where it is older than ``stale_after_s`` or the one before (the exporter
    repeats what it has until it measures again).
    """

    def __init__(
        self,
        identities: Identities,
        *,
        host: str = "",
        match: str = GPU_METRICS,
        exporter_version: str | None = None,
        stale_after_s: float = 300.0,
        labels: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._identities = identities
        self._generation = identities.generation
        self._host = host
        self._match = re.compile(match)
        self._version = exporter_version
        self._stale_after_ms = stale_after_s * 1000
        self._labels = tuple(labels)
        self._series: dict[str, Series | str | None] = {}
        self._help: dict[str, str] = {}
        self._time_ms: dict[str, int] = {}

    def read(self, text: str, now_ns: int) -> Scrape:
        """The samples of one text; those without a time get ``now_ns``. Never raises for what the text contains."""
        if self._generation != self._identities.generation or len(self._series) > SERIES_MAX:
            self._series.clear()
            self._time_ms.clear()
            self._generation = self._identities.generation
        devices: list[int] = []
        metrics: list[int] = []
        values: list[float] = []
        factors: list[float] = []
        times: list[int] = []
        skipped: dict[str, int] = {}
        now_ms = now_ns // 1_000_000
        known = self._series
        for line in text.split("\n"):
            if not line or line[0] == "#":
                if line.startswith("# HELP "):
                    self._note_help(line)
                continue
            end = line.rfind("}") + 1 or line.find(" ")
            key, rest = line[:end], line[end:].split()
            series = known.get(key, "")
            if series == "":
                series = known[key] = self._new_series(key)
            if series is None:
                continue
            if not isinstance(series, Series):
                skipped[series] = skipped.get(series, 0) + 1
                continue
            value = _number(rest[0]) if rest else None
            if value is None:
                skipped["not_a_number"] = skipped.get("not_a_number", 0) + 1
                continue
            time_ns = now_ns
            if len(rest) > 1 and rest[1].lstrip("-").isdecimal():
                time_ms = int(rest[1])
                reason = self._out_of_time(key, time_ms, now_ms)
                if reason:
                    skipped[reason] = skipped.get(reason, 0) + 1
                    continue
                time_ns = time_ms * 1_000_000
            devices.append(series.device)
            metrics.append(series.metric)
            values.append(value)
            factors.append(series.factor)
            times.append(time_ns)
        value = np.array(values, dtype=np.float64)
        factor = np.array(factors)
        columns = Columns(
            np.array(devices, dtype=np.int32),
            np.array(metrics, dtype=np.int32),
            value if (factor == 1).all() else scale(value, factor),
            np.array(times, dtype=np.int64),
        )
        return Scrape(columns, skipped)

    def _new_series(self, key: str) -> Series | str | None:
        name, _, text = key.partition("{")
        name = name.strip()
        if not self._match.match(name):
            return None
        labels = parse_labels("{" + text) if text else {}
        fields = (
            {} if any(label.lower() in ("hostname", "host", "node") for label in labels) else {"hostname": self._host}
        )
        device = make_device(fields, [*labels.items(), *self._labels])
        if not device.gpu_id:
            return "no_gpu"
        hint = unit_in(self._help.get(name, ""))
        metric, factor = canonical(name, exporter_version=self._version or exporter_generation(labels), unit_hint=hint)
        return Series(self._identities.device(device), self._identities.metric(metric), factor)

    def _note_help(self, line: str) -> None:
        _, _, name, *rest = line.split(" ", 3)
        text = rest[0] if rest else ""
        if self._help.get(name) != text:
            if name in self._help:
                # Another exporter answers at this address now: its units may differ.
                self._series.clear()
            self._help[name] = text

    def _out_of_time(self, key: str, time_ms: int, now_ms: int) -> str:
        if now_ms - time_ms > self._stale_after_ms:
            return "stale"
        if self._time_ms.get(key) == time_ms:
            return "repeated"
        self._time_ms[key] = time_ms
        return ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return parse_number(text)
