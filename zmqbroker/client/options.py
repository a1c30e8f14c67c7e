"""Options about keys, of clients and of who listens, and the keys made of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from telemetry.addresses import may_listen
from telemetry.options import Option, UsageError, path
from zmqbroker.security import ClientKeys, KeyFileError, ServerKeys

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


def listening_keys(
    curve_key: Path | None, allow_list: Path | None, addresses: Iterable[str], *, insecure: bool
) -> ServerKeys | None:
    """The keys of who listens on ``addresses``; None without any. Raises :class:`UsageError`, also for an address that
    needs keys."""
    if (curve_key is None) != (allow_list is None):
        raise UsageError("--curve-key and --allow-list go together: CURVE alone keeps nobody out")
    for address in addresses:
        scheme, _, rest = address.strip().partition("://")
        if scheme == "tcp":
            host = rest.rpartition(":")[0].strip("[]")
            may_listen(host, address, insecure=insecure, keys=curve_key is not None)
    if curve_key is None or allow_list is None:
        return None
    try:
        return ServerKeys.load(curve_key, allow_list)
    except KeyFileError as e:
        raise UsageError(str(e)) from None
