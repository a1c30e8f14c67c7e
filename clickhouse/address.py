"""Where a store is, and as whom to speak to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

DEFAULT_URL: Final = "http://127.0.0.1:8123"
DEFAULT_DATABASE: Final = "telemetry"

Z_SECONDS: Final = 60
"""Z of GUARANTEES: the longest time for which an insert that was sent may still commit. Bounds every request."""


@dataclass(frozen=True)
class StoreAddress:
    """Where the store is and as whom to speak to it."""

    url: str = DEFAULT_URL
    user: str = "default"
    password: str = field(default="", repr=False)
    database: str = DEFAULT_DATABASE
    ca_file: str = ""
    """PEM file of the CA that signed the server's certificate; "" = the system's."""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    connect_timeout_s: float = 5.0
    timeout_s: float = Z_SECONDS
    """Longest wait for the server within one request, in seconds."""
    compression: str = "none"
    """Of insert bodies: none (loopback), lz4."""

    def driver_arguments(self) -> dict[str, Any]:
        """The keyword arguments of ``clickhouse_connect.get_client``. Raises ``ValueError`` for a URL that is none."""
        parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"store address {self.url!r} is no http:// or https:// URL")
        return {
            "interface": parts.scheme,
            "host": parts.hostname,
            "port": parts.port or (8443 if parts.scheme == "https" else 8123),
            "proxy_path": parts.path.strip("/"),
            "username": unquote(parts.username) if parts.username else self.user,
            "password": unquote(parts.password) if parts.password else self.password,
            # Writers name the database in each statement: it may not exist yet.
            "database": None,
            "connect_timeout": max(1, round(self.connect_timeout_s)),
            "send_receive_timeout": max(1, round(self.timeout_s)),
            "client_name": "gpu-telemetry",
            "autogenerate_session_id": False,
        }

    @property
    def shown(self) -> str:
        """The URL without credentials, for messages."""
        parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
        return f"{parts.scheme}://{parts.hostname}:{parts.port or 8123}"
