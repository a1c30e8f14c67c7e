"""Codes for devices and metric names: what a source has met so far.

A reader turns the columns of a block into codes; a :class:`producers.batcher.Batcher` turns codes into the dictionary
of a batch. A device is made (and its label text parsed) once, when its combination of identity columns is new.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from telemetry.batch import Device

DEVICES_MAX: Final = 1_000_000
"""Devices remembered at a time: ten fleets of 100,000 GPUs. A file whose rows all differ must not fill the memory."""


class Identities:
    """Devices and metrics of one reader, by code; codes hold until :meth:`forget`."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.metrics: list[str] = []
        self._device_code: dict[Device, int] = {}
        self._metric_code: dict[str, int] = {}
        self.generation = 0
        """Grows with every :meth:`forget`: codes of an earlier generation mean nothing any more."""

    def device(self, device: Device) -> int:
        """The code of ``device``, a new one if it was not met yet."""
        code = self._device_code.get(device)
        if code is None:
            code = self._device_code[device] = len(self.devices)
            self.devices.append(device)
        return code

    def metric(self, name: str) -> int:
        """The code of a canonical metric name, a new one if it was not met yet."""
        code = self._metric_code.get(name)
        if code is None:
            code = self._metric_code[name] = len(self.metrics)
            self.metrics.append(name)
        return code

    def full(self) -> bool:
        """Whether it is time to forget."""
        return len(self.devices) > DEVICES_MAX

    def forget(self) -> None:
        """Start anew; whoever keeps codes must drop them."""
        self.devices = []
        self._device_code = {}
        self.generation += 1


class Table:
    """Byte strings of one column to codes, growing; -1 marks a string that is no UTF-8. Space around is not kept."""

    def __init__(self) -> None:
        self.strings: list[str] = []
        self._code: dict[bytes, int] = {}

    def codes(self, values: list[bytes]) -> np.ndarray:
        """int64 codes of ``values``, -1 where one cannot be decoded."""
        get = self._code.get
        found = [get(value) for value in values]
        if None in found:
            found = [self._add(value) if code is None else code for value, code in zip(values, found, strict=True)]
        return np.array(found, dtype=np.int64)

    def _add(self, value: bytes) -> int:
        code = self._code.get(value)
        if code is not None:
            return code
        try:
            text = value.decode("utf-8").strip()
        except UnicodeDecodeError:
            return -1
        code = self._code[value] = len(self.strings)
        self.strings.append(text)
        return code
