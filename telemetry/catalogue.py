"""The metric catalogue: one name, one unit, one meaning for every GPU metric, whoever exported it.

``catalogue.csv`` is the table; this module reads it and answers three questions: what is this metric
(:data:`CATALOGUE`), what is it called and in which unit here (:func:`canonical`), and is this value one of
DCGM's blanks (:func:`is_blank`).

Canonical are the classic DCGM names and units, those of exporters before 4.9. Exporter 4.9 kept some names and
changed their unit (MHz to Hz, mJ to J, per cent to a ratio, MiB to bytes, MB/s to B/s), so a name alone never
decides the unit: the pair (name, exporter version) does, or the unit that the exporter's help text states.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final, Literal

import numpy as np

UNITS_CHANGED_IN: Final = (4, 9)
"""The exporter version that changed units and renamed fields."""

_PREFIXES: Final = ("DCGM_FI_", "DCGM_EXP_")
_MIB: Final = 1 / 1048576

# What one unit of the first is in the second; identity and unknown pairs are handled by _conversion.
_CONVERSIONS: Final[Mapping[tuple[str, str], float]] = {
    ("Hz", "MHz"): 1e-6,
    ("MHz", "Hz"): 1e6,
    ("J", "mJ"): 1e3,
    ("ratio", "%"): 100.0,
    ("bytes", "MiB"): _MIB,
    ("B/s", "MB/s"): 1e-6,
    ("mW", "W"): 1e-3,
    ("KB/s", "B/s"): 1e3,
    ("MB/s", "B/s"): 1e6,
    ("us", "ns"): 1e3,
    ("s", "ns"): 1e9,
}

_UNIT_SPELLINGS: Final[Mapping[str, str]] = {
    "mhz": "MHz",
    "hz": "Hz",
    "hertz": "Hz",
    "mj": "mJ",
    "millijoules": "mJ",
    "j": "J",
    "joules": "J",
    "%": "%",
    "percent": "%",
    "ratio": "ratio",
    "ratio 0..1": "ratio",
    "mib": "MiB",
    "mb": "MiB",
    "bytes": "bytes",
    "b": "bytes",
    "mb/s": "MB/s",
    "b/s": "B/s",
    "bytes/s": "B/s",
    "bytes per second": "B/s",
    "w": "W",
    "watts": "W",
    "mw": "mW",
    "c": "C",
    "celsius": "C",
    "ns": "ns",
    "us": "us",
    "s": "s",
    "kb/s": "KB/s",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, in its canonical name and unit."""

    name: str
    unit: str
    kind: Literal["gauge", "counter"]
    help: str
    field_id: int | None = None
    """DCGM field number; None for what the exporter itself computes."""
    unit_4_9: str = ""
    """Unit since exporter 4.9 where it changed, else ""."""
    factor_4_9: float = 1.0
    """What a value in ``unit_4_9`` is multiplied by to be in ``unit``."""
    renamed_to: tuple[str, ...] = ()
    """Full names that newer DCGM headers give the same field."""
    aliases: tuple[tuple[str, float], ...] = ()
    """(other name, factor to the canonical unit): wide CSV columns, other vendors, OpenTelemetry."""
    nvml: str = ""
    """The NVML call that gives this value, "" if none does."""


def _read() -> dict[str, Metric]:
    table = {}
    text = (files(__package__) / "catalogue.csv").read_text("utf-8")
    with io.StringIO(text, newline="") as lines:
        for row in csv.DictReader(lines):
            aliases = []
            for alias in row["aliases"].split():
                name, _, factor = alias.partition("*")
                aliases.append((name, float(factor or 1)))
            table[row["name"]] = Metric(
                name=row["name"],
                unit=row["unit"],
                kind="counter" if row["kind"] == "counter" else "gauge",
                help=row["help"],
                field_id=int(row["field_id"]) if row["field_id"] else None,
                unit_4_9=row["unit_4_9"],
                factor_4_9=float(row["factor_4_9"] or 1),
                renamed_to=tuple("DCGM_FI_" + name for name in row["renamed_to"].split()),
                aliases=tuple(aliases),
                nvml=row["nvml"],
            )
    return table


CATALOGUE: Final[Mapping[str, Metric]] = MappingProxyType(_read())

_RENAMED: Final = {name: metric for metric in CATALOGUE.values() for name in metric.renamed_to}
_ALIASES: Final = {name.lower(): (metric, factor) for metric in CATALOGUE.values() for name, factor in metric.aliases}


def normalize(name: str) -> str:
    """A column heading as the aliases are written: lower case, words joined by ``_``, without a unit in brackets.

    ``"utilization.gpu [%]"`` becomes ``utilization_gpu``.
    """
    bare = re.sub(r"[\[(].*?[\])]", "", name)
    return re.sub(r"[^a-z0-9]+", "_", bare.lower()).strip("_")


def unit_in(text: str) -> str | None:
    """The unit that a help text or heading states in its last brackets ("(in MHz)", "[MiB]"), None if none is known."""
    found = re.findall(r"[\[(]\s*(?:in\s+)?([^\[\]()]*?)\s*[\])]", text)
    return _UNIT_SPELLINGS.get(found[-1].lower()) if found else None


def parse_version(text: str | None) -> tuple[int, ...] | None:
    """``"4.8.3-rc1"`` as (4, 8, 3); None where no number leads."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text or "")
    return tuple(int(part) for part in found[1].split(".")) if found else None


def _conversion(unit_from: str, unit_to: str) -> float | None:
    return 1.0 if unit_from == unit_to else _CONVERSIONS.get((unit_from, unit_to))


@lru_cache(maxsize=65_536)
def canonical(name: str, *, exporter_version: str | None = None, unit_hint: str | None = None) -> tuple[str, float]:
    """(canonical name, factor): what ``name`` is called here, and what its values are multiplied by.

    ``exporter_version`` such as ``"4.9.0"``: decides the unit of the fields whose unit changed. Where it is not
    known, a classic name is taken in its classic unit, and a renamed one in the unit its new name states.
    ``unit_hint``: the unit itself, where the source states it (a help text, a heading); it wins.
    Unknown metrics pass under their own name with factor 1.
    """
    version = parse_version(exporter_version)
    metric = CATALOGUE.get(name)
    if metric is not None:
        factor = metric.factor_4_9 if version is not None and version >= UNITS_CHANGED_IN else 1.0
    elif (metric := _RENAMED.get(name)) is not None:
        factor = 1.0 if version is not None and version < UNITS_CHANGED_IN else metric.factor_4_9
    else:
        found = _ALIASES.get(name.lower()) or (None if name.startswith(_PREFIXES) else _ALIASES.get(normalize(name)))
        if found is None:
            return name, 1.0
        metric, factor = found
    if unit_hint is not None:
        stated = _conversion(_UNIT_SPELLINGS.get(unit_hint.lower(), unit_hint), metric.unit)
        if stated is not None:
            factor = stated
    return metric.name, factor


# DCGM's "no value" numbers: blank, not found, not supported, not permitted, and room for a few more of each family.
# They are exact ranges, not "everything above": an energy counter passes 2^31 mJ within the hour.
_INT32_BLANK: Final = (2147483632.0, 2147483647.0)
_FP64_BLANK: Final = (140737488355328.0, 140737488355343.0)
_INT64_BLANK: Final = (9.2233720368547e18, 9.2233720368547759e18)
"""All int64 blanks round to 2^63 as float64."""


def is_blank(values: np.ndarray) -> np.ndarray:
    """Mask (bool, shape of ``values``) of DCGM's blank sentinels, which mean "no value" and are never data."""
    values = np.asarray(values, dtype=np.float64)
    # One pass settles the usual case: nothing in the array is large enough to be a blank.
    if values.size == 0 or not (suspects := values >= _INT32_BLANK[0]).any():
        return np.zeros(values.shape, dtype=bool)
    return suspects & (
        ((values >= _INT64_BLANK[0]) & (values <= _INT64_BLANK[1]))
        | ((values <= _INT32_BLANK[1]) & (values == np.floor(values)))
        | ((values >= _FP64_BLANK[0]) & (values <= _FP64_BLANK[1]))
    )


def scale(values: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    """``values * factor``, but blanks stay as they are: scaled, they could no longer be told from data."""
    return np.where(is_blank(values), values, values * factor)
