"""What the columns of a CSV mean.

Three shapes are recognised from the header and a few rows:

    long    one row a sample: a metric name column and a value column (DCGM exports; ``_field``/``_value``)
    wide    one row a moment of a GPU: every numeric column that is no identity is a metric

Identity columns are found by the names in :data:`producers.labels.FIELDS`, metrics by the catalogue. A YAML file
(``--map``) says it explicitly where detection cannot know; ``--explain`` prints what was understood.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from producers.errors import HeaderError, MappingError
from producers.labels import FIELDS, field_of
from producers.values import EMPTY_VALUES, parse_number
from telemetry.catalogue import canonical, normalize, unit_in

TIMESTAMP_NAMES: Final = ("timestamp", "time", "_time", "ts", "datetime", "date_time", "collected_at")
METRIC_NAMES: Final = ("metric_name", "metric", "_field", "field", "__name__", "field_name")
VALUE_NAMES: Final = ("value", "_value", "metric_value", "val")
LABELS_NAMES: Final = ("labels_raw", "labels", "tags")
_INFLUX_NAMES: Final = ("result", "table", "_start", "_stop", "_measurement")
# Headings that are numbers in a wide file and yet no measurement.
_NO_METRICS: Final = ("pci_bus_id", "pci_bus", "driver_version", "vbios_version", "serial", "count", "pid", "row", "id")

FIELD_NAMES: Final = tuple(FIELDS)


@dataclass(frozen=True, slots=True)
class MetricColumn:
    """A column of a wide file: its values are ``name`` in canonical units after multiplying by ``factor``."""

    column: int
    name: str
    factor: float


@dataclass(frozen=True, slots=True)
class Mapping:
    """What each column of a file means; columns are counted from 0."""

    shape: Literal["long", "wide"]
    header: tuple[str, ...]
    delimiter: str
    identity: tuple[tuple[str, int], ...]
    """(device field or ``label:NAME``, column), at least one."""
    timestamp: int | None = None
    """None: rows carry no time, each gets the time it is processed."""
    metric: int | None = None
    value: int | None = None
    labels: int | None = None
    """A column of Prometheus label text, read only when a series is new."""
    metrics: tuple[MetricColumn, ...] = ()
    ignored: tuple[str, ...] = ()
    exporter_version: str | None = None
    constants: tuple[tuple[str, str], ...] = ()
    """(device field or label, value) for every row, e.g. the cluster's name."""

    @property
    def digest(self) -> bytes:
        """16 bytes that change when the mapping does: part of a resumed run's identity."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).digest()

    def explain(self) -> str:
        """What was understood, for people: one line a column."""
        meaning = dict.fromkeys(range(len(self.header)), "ignored; a --map file can make it a metric or a label")
        for what, column in self.identity:
            meaning[column] = f"label {what[6:]}" if what.startswith("label:") else f"identity: {what}"
        for column, text in (
            (self.timestamp, "time"),
            (self.metric, "metric name"),
            (self.value, "value"),
            (self.labels, "label text, read when a series is new"),
        ):
            if column is not None:
                meaning[column] = text
        for metric in self.metrics:
            times = "" if metric.factor == 1 else f", times {metric.factor:g}"
            meaning[metric.column] = f"metric {metric.name}{times}"
        width = max(len(name) for name in self.header)
        lines = [f"shape: {self.shape} ({'a row a sample' if self.shape == 'long' else 'a column a metric'})"]
        if self.timestamp is None:
            lines.append("time: no column; rows get the time they are processed")
        lines += [f"  {name:<{width}}  {meaning[column]}" for column, name in enumerate(self.header)]
        lines += [f"  every row: {what} = {value}" for what, value in self.constants]
        return "\n".join(lines)


def split_line(line: str, delimiter: str = ",") -> list[str]:
    """The fields of one line, as Python's csv module sees them."""
    return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])


def guess_delimiter(line: str) -> str:
    """The separator a header line uses: a comma unless another one makes more fields of it."""
    return max(",;\t|", key=lambda candidate: (len(split_line(line, candidate)), candidate == ","))


def detect(
    header_line: str, sample_lines: Sequence[str], *, source: str, exporter_version: str | None = None
) -> Mapping:
    """Understand a file from its header and a few rows.

    Raises :class:`HeaderError` naming ``source`` and the columns.
    """
    delimiter = guess_delimiter(header_line)
    header = tuple(name.strip() for name in split_line(header_line.lstrip("\ufeff"), delimiter))
    if not any(header):
        raise HeaderError(f"{source}: line 1 is empty, a header with column names is needed")
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise HeaderError(f"{source}: line 1 names the column {doubled[0]!r} twice")
    rows = [split_line(line, delimiter) for line in sample_lines]
    taken: set[int] = set()

    def find(names: Iterable[str]) -> int | None:
        for wanted in names:
            for column, name in enumerate(header):
                if column not in taken and wanted in (name, name.lower()):
                    taken.add(column)
                    return column
        return None

    timestamp = find(TIMESTAMP_NAMES)
    metric = find(METRIC_NAMES)
    value = find(VALUE_NAMES)
    labels = find(LABELS_NAMES)
    identity = _identity(header, taken)
    if metric is not None and value is None:
        raise HeaderError(f"{source}: line 1 has {header[metric]!r} but no value column ({', '.join(VALUE_NAMES)})")
    if value is not None and metric is None:
        # "value" alone may be a measurement of a wide file.
        taken.discard(value)
        value = None
    if not any(field in ("uuid", "hostname", "gpu_index") for field, _ in identity):
        raise HeaderError(
            f"{source}: line 1 has no column that identifies a GPU (uuid, gpu_id or hostname); "
            f"it has: {', '.join(header[:12])}; name one with --map"
        )
    shape: Literal["long", "wide"] = "long" if metric is not None else "wide"
    metrics: tuple[MetricColumn, ...] = ()
    if shape == "wide":
        metrics = _metric_columns(header, rows, taken, exporter_version)
        if not metrics:
            raise HeaderError(
                f"{source}: line 1 has neither metric and value columns ({METRIC_NAMES[0]}, {VALUE_NAMES[0]}) "
                f"nor a numeric column; it has: {', '.join(header[:12])}"
            )
    used = taken | {column.column for column in metrics}
    ignored = tuple(name for column, name in enumerate(header) if column not in used)
    return Mapping(
        shape, header, delimiter, tuple(identity), timestamp, metric, value, labels, metrics, ignored, exporter_version
    )


def _identity(header: tuple[str, ...], taken: set[int]) -> list[tuple[str, int]]:
    """The identity columns; of several for one field the most telling is it, the others are labels."""
    best: dict[str, tuple[int, int]] = {}
    others = []
    for column, name in enumerate(header):
        if column in taken or (found := field_of(name) or field_of(normalize(name))) is None:
            continue
        field, rank = found
        taken.add(column)
        if field not in best or rank < best[field][0]:
            if field in best:
                others.append(best[field][1])
            best[field] = (rank, column)
        else:
            others.append(column)
    identity = [(field, best[field][1]) for field in FIELD_NAMES if field in best]
    return identity + [(f"label:{header[column]}", column) for column in sorted(others)]


def _metric_columns(
    header: tuple[str, ...], rows: list[list[str]], taken: set[int], exporter_version: str | None
) -> tuple[MetricColumn, ...]:
    columns = []
    for column, name in enumerate(header):
        if column in taken or not name or name in _INFLUX_NAMES:
            continue
        canonical_name, factor = canonical(name, exporter_version=exporter_version, unit_hint=unit_in(name))
        known = canonical_name != name or name.startswith("DCGM_")
        cells = [row[column].strip() for row in rows if column < len(row)]
        told = [cell for cell in cells if cell not in EMPTY_VALUES]
        numeric = bool(told) and all(parse_number(cell) is not None for cell in told)
        if numeric or (known and not told):
            if not known and normalize(name) in _NO_METRICS:
                continue
            columns.append(MetricColumn(column, canonical_name, factor))
    return tuple(columns)


def from_file(path: Path, header_line: str, sample_lines: Sequence[str], *, source: str) -> Mapping:
    """A mapping said explicitly in YAML; what it does not say is detected. Raises :class:`MappingError`.

    Keys, all optional: ``delimiter``, ``timestamp``, ``metric``, ``value``, ``labels_raw`` (headings),
    ``identity`` (device field: heading), ``labels`` (a list of headings), ``metrics`` (heading: name, or heading:
    {name, factor}), ``ignore`` (a list of headings), ``constants`` (device field or label: text),
    ``exporter_version``.
    """
    import yaml

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise MappingError(f"{path}: cannot be read: {e.strerror or e}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as e:
        raise MappingError(f"{path}: is no YAML: {' '.join(str(e).split())}") from None
    if not isinstance(told, dict):
        raise MappingError(f"{path}: must be a YAML mapping such as 'timestamp: time'")
    allowed = {
        *("delimiter", "timestamp", "metric", "value", "labels_raw", "identity", "labels", "metrics"),
        *("ignore", "constants", "exporter_version"),
    }
    if unknown := sorted(str(key) for key in set(told) - allowed):
        raise MappingError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(allowed))}")
    for key, kind in {"identity": dict, "labels": list, "ignore": list, "constants": dict}.items():
        if key in told and not isinstance(told[key], kind):
            raise MappingError(f"{path}: {key} must be a {'list' if kind is list else 'mapping'}")

    delimiter = told.get("delimiter") or guess_delimiter(header_line)
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise MappingError(f"{path}: delimiter must be one character")
    header = tuple(name.strip() for name in split_line(header_line.lstrip("\ufeff"), delimiter))

    def column_of(name: object) -> int:
        if name not in header:
            raise MappingError(f"{path}: {source} has no column {name!r}; it has: {', '.join(header[:12])}")
        return header.index(str(name))

    version = str(told["exporter_version"]) if told.get("exporter_version") else None
    identity = []
    for field, name in (told.get("identity") or {}).items():
        if field not in FIELD_NAMES:
            raise MappingError(f"{path}: identity {field!r} is none of {', '.join(FIELD_NAMES)}")
        identity.append((field, column_of(name)))
    identity += [(f"label:{name}", column_of(name)) for name in told.get("labels") or ()]
    constants = tuple(
        (field if field in FIELD_NAMES else f"label:{field}", str(value))
        for field, value in (told.get("constants") or {}).items()
    )
    timestamp, metric, value, labels_raw = (
        column_of(told[key]) if told.get(key) else None for key in ("timestamp", "metric", "value", "labels_raw")
    )
    if (metric is None) != (value is None):
        raise MappingError(f"{path}: metric and value go together: name both, or neither for a wide file")
    taken = {column for _, column in identity}
    taken |= {column for column in (timestamp, metric, value, labels_raw) if column is not None}
    taken |= {column_of(name) for name in told.get("ignore") or ()}
    if not identity:
        identity = _identity(header, taken)
    elif not any(field in ("uuid", "hostname", "gpu_index") for field, _ in identity):
        identity = [item for item in _identity(header, set(taken)) if item[0] in FIELD_NAMES] + identity
    if not any(field in ("uuid", "hostname", "gpu_index") for field, _ in (*identity, *constants)):
        raise MappingError(f"{path}: identity must name uuid, hostname or gpu_index")
    taken |= {column for _, column in identity}
    metrics: tuple[MetricColumn, ...] = ()
    if metric is None:
        metrics = _told_metrics(path, told.get("metrics"), column_of, version)
        if not metrics:
            rows = [split_line(line, delimiter) for line in sample_lines]
            metrics = _metric_columns(header, rows, taken, version)
        if not metrics:
            raise MappingError(f"{path}: names no metric column, and {source} has no numeric one")
    used = taken | {column.column for column in metrics}
    ignored = tuple(name for column, name in enumerate(header) if column not in used)
    return Mapping(
        "wide" if metric is None else "long",
        header,
        delimiter,
        tuple(identity),
        timestamp,
        metric,
        value,
        labels_raw,
        metrics,
        ignored,
        version,
        constants,
    )


def _told_metrics(
    path: Path, told: object, column_of: Callable[[object], int], version: str | None
) -> tuple[MetricColumn, ...]:
    if told is None:
        return ()
    if not isinstance(told, dict):
        raise MappingError(f"{path}: metrics must be a mapping of heading to metric name")
    columns = []
    for name, what in told.items():
        if isinstance(what, dict):
            try:
                columns.append(MetricColumn(column_of(name), str(what["name"]), float(what.get("factor", 1))))
            except (KeyError, TypeError, ValueError):
                raise MappingError(f"{path}: metrics: {name}: needs a name, and a number as factor") from None
        else:
            known, factor = canonical(str(what), exporter_version=version, unit_hint=unit_in(str(name)))
            columns.append(MetricColumn(column_of(name), known, factor))
    return tuple(columns)
