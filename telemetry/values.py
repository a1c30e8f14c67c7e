"""How the text of an option becomes a value: each function takes text and raises ``ValueError`` with the rest of the
sentence ("'x' is not ...")."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_DURATION_UNITS: Final = {"": 1.0, "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NUMBER_AND_UNIT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def positive_int(text: str) -> int:
    """A whole number of at least 1; underscores may group digits."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError("is not a whole number above 0")
    return value


def non_negative_int(text: str) -> int:
    """A whole number of at least 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise ValueError("is not a whole number of 0 or more")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ValueError("is not a number above 0")
    return value


def non_negative_float(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError("is not a number of 0 or more")
    return value


def duration_seconds(text: str) -> float:
    """Seconds: "250ms", "30s", "5m", "1h", "7d", or plain seconds."""
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if not match or match[2].lower() not in _DURATION_UNITS:
        raise ValueError("is not a time such as 250ms, 30s, 5m, 1h, 7d or plain seconds")
    return float(match[1]) * _DURATION_UNITS[match[2].lower()]


def size_bytes(text: str) -> int:
    """Bytes: "64MB" is 64,000,000 and "64MiB" is 67,108,864; plain bytes without a unit."""
    match = _NUMBER_AND_UNIT.fullmatch(text)
    unit = match[2].lower().removesuffix("b") if match else "?"
    base = 1024 if unit.endswith("i") else 1000
    power = _SIZE_POWERS.get(unit.removesuffix("i"))
    if match is None or power is None or unit == "i":
        raise ValueError("is not a size such as 512kB, 64MB, 64MiB, 10GiB or plain bytes")
    return int(float(match[1]) * base**power)


def flag(text: str) -> bool:
    """A switch: true/false, yes/no, on/off, 1/0."""
    lowered = text.strip().lower()
    if lowered in ("true", "yes", "on", "1"):
        return True
    if lowered in ("false", "no", "off", "0"):
        return False
    raise ValueError("is neither true nor false")


def path(text: str) -> Path:
    """A path; ``~`` is the home directory. Whether it exists is for its user to say."""
    return Path(text).expanduser()


def directory(text: str) -> Path:
    """A path that is a directory or does not exist yet."""
    value = path(text)
    if value.exists() and not value.is_dir():
        raise ValueError("is not a directory")
    return value


def url(text: str) -> str:
    """A URL with a scheme and an address: ``tcp://127.0.0.1:5555``, ``http://store:8123``, ``ipc:///run/x``."""
    try:
        parts = urlsplit(text)
    except ValueError:
        parts = urlsplit("")
    if not parts.scheme or "://" not in text or not (parts.netloc or parts.path):
        raise ValueError("is not a URL such as tcp://127.0.0.1:5555 or http://127.0.0.1:8123")
    port = parts.netloc.rpartition(":")[2] if ":" in parts.netloc.rpartition("]")[2] else ""
    if port and port != "*" and not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError("has no port between 0 and 65535")
    if parts.scheme == "tcp" and not port:
        raise ValueError("has no port; add one, as in tcp://127.0.0.1:5555")
    return text


def host_port(text: str) -> str:
    """``HOST:PORT``, ``[IPV6]:PORT`` or ``:PORT`` (loopback); "off" gives "" (nothing listens)."""
    if text.lower() in ("off", "none"):
        return ""
    host, port = split_host_port(text)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, int]:
    """``"127.0.0.1:80"`` to ``("127.0.0.1", 80)``; without a host it is loopback."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError("is not HOST:PORT with a port between 0 and 65535")
    return (host[1:-1] if bracketed else host) or "127.0.0.1", int(port)
