"""What a dictionary's codes mean to the store, worked out once a dictionary and looked up by digest afterwards.

A row names its device and metric by small codes. The store wants keys: ``gpu`` (xxHash64 of the GPU's id) and
``labels`` (the key of this very label set), and canonical metric names in classic units. All of that depends on
the dictionary alone, so a row costs one ``take`` from a cached array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from telemetry.batch import Device, Dictionary

Canonical = Callable[[str], tuple[str, float]]
"""(metric name) -> (canonical name, factor that brings its values to the canonical unit)."""


class DictionaryKeys(NamedTuple):
    """Arrays over the devices (``gpu``, ``labels`` uint64, ``nameless`` bool) and over the metrics of a dictionary."""

    digest: bytes
    gpu: np.ndarray
    labels: np.ndarray
    nameless: np.ndarray
    """True where a device tells nothing that identifies a GPU."""
    any_nameless: bool
    devices: tuple[Device, ...]
    metrics: tuple[str, ...]
    """Canonical names; two codes may have the same."""
    raw_metrics: tuple[str, ...]
    scale: np.ndarray | None
    """float64 factor a metric; None where all are 1."""


class DictionaryCache:
    """Keys by dictionary digest, at most ``entries_max`` devices and metrics in all; the oldest go first.

    The default holds the label sets of 200,000 GPUs, some 200 MB at worst; a dictionary that comes again after
    it went is worked out again.
    """

    def __init__(self, canonical: Canonical, entries_max: int = 200_000) -> None:
        self._canonical = canonical
        self._entries_max = entries_max
        self._entries = 0
        self._cache: dict[bytes, DictionaryKeys] = {}

    def keys(self, dictionary: Dictionary) -> DictionaryKeys:
        found = self._cache.get(dictionary.digest)
        if found is not None:
            return found
        made = self._make(dictionary)
        size = len(dictionary.devices) + len(dictionary.metrics)
        while self._cache and self._entries + size > self._entries_max:
            gone = self._cache.pop(next(iter(self._cache)))
            self._entries -= len(gone.devices) + len(gone.metrics)
        self._cache[dictionary.digest] = made
        self._entries += size
        return made

    def _make(self, dictionary: Dictionary) -> DictionaryKeys:
        devices = dictionary.devices
        canonical = [self._canonical(name) for name in dictionary.metrics]
        scale = np.array([factor for _, factor in canonical], dtype=np.float64)
        nameless = np.array([not device.gpu_id for device in devices], dtype=bool)
        return DictionaryKeys(
            digest=dictionary.digest,
            gpu=np.array([device.gpu_key for device in devices], dtype=np.uint64),
            labels=np.array([device.labels_key for device in devices], dtype=np.uint64),
            nameless=nameless,
            any_nameless=bool(nameless.any()),
            devices=devices,
            metrics=tuple(name for name, _ in canonical),
            raw_metrics=dictionary.metrics,
            scale=None if bool((scale == 1.0).all()) else scale,
        )
