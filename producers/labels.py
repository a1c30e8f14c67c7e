"""Prometheus label text (``name="value",…``) and what its labels say about a GPU.

The same vocabulary serves the ``labels_raw`` column of a DCGM CSV, the labels of an exporter's samples and the
headings of a CSV: :data:`FIELDS` is its one table. Both label generations of dcgm-exporter are in it, and the
``exported_*`` spellings a Prometheus server leaves behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from telemetry.batch import Device

FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "uuid": ("uuid", "UUID", "gpu_uuid", "GPU_UUID", "gpuuuid", "serial_uuid"),
    "hostname": ("hostname", "Hostname", "host", "node", "node_name", "nodename", "host_name", "kubernetes_node"),
    "gpu_index": ("gpu_id", "gpu", "index", "gpu_index", "gpuid", "gpu_number"),
    "device": ("device", "device_name", "nvidia_device"),
    "model": ("modelName", "modelname", "model_name", "model", "gpu_model", "card_model", "gpu_name", "name"),
    "cluster": ("cluster", "cluster_name", "cluster_id"),
    "container": ("container", "exported_container", "container_name"),
    "pod": ("pod", "exported_pod", "pod_name"),
    "namespace": ("namespace", "exported_namespace", "pod_namespace"),
    "job": ("hpc_job", "slurm_job_id", "slurm_job", "job_id", "job"),
}
"""Device field -> names of it, most telling first: a pod label wins over the scraper's own."""

_FIELD_OF: Final = {name: (field, rank) for field, names in FIELDS.items() for rank, name in enumerate(names)}
_FIELD_OF_LOWER: Final = {name.lower(): found for name, found in _FIELD_OF.items()}

_PAIR: Final = re.compile(r'\s*,?\s*([a-zA-Z_][a-zA-Z0-9_.]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


def field_of(name: str) -> tuple[str, int] | None:
    """(device field, rank) that a label or heading names; a lower rank is more telling. None for any other name."""
    return _FIELD_OF.get(name) or _FIELD_OF_LOWER.get(name.lower())


def parse_labels(text: str) -> dict[str, str]:
    """``a="x",b="y"`` (braces around it are fine) as a dictionary; what follows the first broken pair is left out."""
    labels = {}
    text = text.strip()
    if text.startswith("{"):
        text = text[1:].removesuffix("}")
    at = 0
    while at < len(text) and (found := _PAIR.match(text, at)):
        value = found[2]
        if "\\" in value:
            value = _ESCAPE.sub(lambda escaped: "\n" if escaped[1] == "n" else escaped[1], value)
        labels[found[1]] = value
        at = found.end()
    return labels


def make_device(fields: Mapping[str, str], labels: Iterable[tuple[str, str]] = ()) -> Device:
    """A device from its own columns (``fields``, by device field) and further ``labels`` (by their own names).

    A label that names a device field fills it where no column did; every other one, and one that says something
    else than the column, is kept as a label. ``__name__`` is the metric's and no label.
    """
    known = {field: value for field, value in fields.items() if value}
    rank_of: dict[str, int] = dict.fromkeys(known, -1)
    rest = {}
    ranked = sorted(
        ((field_of(name) or ("", 0), name, value) for name, value in labels if value and name != "__name__"),
        key=lambda item: item[0][1],
    )
    for (field, rank), name, value in ranked:
        if field and field not in known:
            known[field] = value
            rank_of[field] = rank
        elif not field or known[field] != value:
            rest[name] = value
    return Device(**known, labels=tuple(sorted(rest.items())))


def exporter_generation(labels: Iterable[str]) -> str | None:
    """The exporter version that a set of label names gives away, None if it does not.

    4.9 renamed the driver label; since 4.8.3 the host label is lower case.
    """
    names = set(labels)
    if any(name.startswith("DCGM_FI_SYSTEM_") for name in names):
        return "4.9.0"
    if "DCGM_FI_DRIVER_VERSION" in names:
        return "4.8.0"
    return None
