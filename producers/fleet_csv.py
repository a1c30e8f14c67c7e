"""A simulated fleet as a DCGM CSV, written at about a million rows a second."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import chain
from typing import BinaryIO

import numpy as np

from producers.fleet import BLANK, Fleet, FleetSpec
from telemetry.batch import Device

HEADER = b"timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,namespace,value,labels_raw\n"


def write_csv(out: BinaryIO, spec: FleetSpec, rows: int, start: datetime) -> int:
    """Write ``rows`` rows, tick after tick from ``start`` on; bytes written."""
    fleet = Fleet(spec)
    devices = fleet.devices()
    # Everything of a row but its time and value is the same at every tick.
    before = [_before(metric, device) for metric in spec.metrics for device in devices]
    after = [_after(metric, device) for metric in spec.metrics for device in devices]
    written = out.write(HEADER)
    left = rows
    tick = 0
    while left > 0:
        time = start.timestamp() + tick * spec.interval_s
        stamp = f'"{_iso(time, spec.interval_s)}",'.encode()
        values = list(chain.from_iterable(_texts(row) for row in fleet.tick()))
        count = min(left, len(values))
        parts: list[bytes] = [b""] * (4 * count)
        parts[0::4] = [stamp] * count
        parts[1::4] = before[:count]
        parts[2::4] = values[:count]
        parts[3::4] = after[:count]
        written += out.write(b"".join(parts))
        left -= count
        tick += 1
    return written


def _iso(time: float, interval_s: float) -> str:
    precision = "seconds" if float(interval_s).is_integer() else "milliseconds"
    return datetime.fromtimestamp(time, UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def _texts(values: np.ndarray) -> list[bytes]:
    whole = values == np.floor(values)
    if whole.all():
        texts = np.where(values == BLANK, 9223372036854775794, values.astype(np.uint64)).tolist()
        return [b"%d" % value for value in texts]
    return [
        b"9223372036854775794" if value == BLANK else (b"%d" % value if value.is_integer() else repr(value).encode())
        for value in values.tolist()
    ]


def _before(metric: str, device: Device) -> bytes:
    cells = (
        metric, device.gpu_index, device.device, device.uuid, device.model, device.hostname,
        device.container, device.pod, device.namespace,
    )  # fmt: skip
    return ("".join(f'"{cell}",' for cell in cells) + '"').encode()


def _after(metric: str, device: Device) -> bytes:
    labels = {
        "DCGM_FI_DRIVER_VERSION": dict(device.labels)["DCGM_FI_DRIVER_VERSION"],
        "Hostname": device.hostname,
        "UUID": device.uuid,
        "__name__": metric,
        "device": device.device,
        "gpu": device.gpu_index,
        "instance": dict(device.labels)["instance"],
        "job": device.job,
        "modelName": device.model,
    }
    text = ",".join(f'{name}=""{value}""' for name, value in labels.items())
    return f'","{text}"\n'.encode()
