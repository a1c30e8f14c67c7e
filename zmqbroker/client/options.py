"""Options that every client of a broker with keys has, and the keys made of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from telemetry.options import Option, UsageError, path
from zmqbroker.security import ClientKeys, KeyFileError

CURVE_OPTIONS: Final = (
    Option(
        "curve-key",
        "this client's NAME.key_secret file, for a broker with keys (zmqbroker keygen)",
        None,
        path,
        env="ZMQBROKER_CLIENT_KEY",
    ),
    Option(
        "server-key",
        "the broker's public key, or a file that holds it; needed with --curve-key",
        "",
        env="ZMQBROKER_SERVER_KEY",
    ),
)


def client_keys(curve_key: Path | None, server_key: str) -> ClientKeys | None:
    """The keys to give to Producer and Consumer; None without any. Raises :class:`UsageError`."""
    if curve_key is None and not server_key:
        return None
    if curve_key is None or not server_key:
        raise UsageError("--curve-key and --server-key go together: ours, and the broker's")
    try:
        return ClientKeys.load(curve_key, server_key)
    except KeyFileError as e:
        raise UsageError(str(e)) from None


def keys_from(args: argparse.Namespace) -> ClientKeys | None:
    """:func:`client_keys` of a parsed command line."""
    return client_keys(args.curve_key, args.server_key)
