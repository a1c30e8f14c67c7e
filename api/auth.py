"""API keys: who may ask what.

A keys file has a line for each key: ``NAME SCOPES SHA256``, scopes separated by commas (``read``, ``write``,
``admin``; admin may do everything). ``#`` starts a comment. Only hashes are stored; ``telemetry-api new-key NAME``
prints a new key and its line. Keys have 256 random bits, so one round of SHA-256 is as good as a slow hash here.

A key comes as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; browsers' EventSource and WebSocket cannot set
headers, so the live endpoints also take ``?api_key=``.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flask import Request

from api.errors import Problem
from telemetry.options import UsageError

SCOPES: Final = ("read", "write", "admin")
KEY_PREFIX: Final = "gt_"


@dataclass(frozen=True)
class Client:
    """Who asks: the name of the key and what it allows."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


ANYONE: Final = Client("", frozenset(SCOPES))
"""The client where no keys are configured."""


class Keys:
    """The keys of one file. An empty set of keys lets nobody in."""

    def __init__(self, by_hash: dict[bytes, Client]) -> None:
        self._by_hash = by_hash

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Read a keys file; :class:`UsageError` names file and line of what is wrong."""
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--keys-file {path}: cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        keys: dict[bytes, Client] = {}
        for number, line in enumerate(lines, 1):
            fields = line.partition("#")[0].split()
            if not fields:
                continue
            keys.update([_parse(fields, f"--keys-file {path} line {number}")])
        if not keys:
            raise UsageError(f"--keys-file {path}: holds no key; make one with `telemetry-api new-key NAME`")
        return cls(keys)

    def find(self, key: str) -> Client | None:
        """The client of a key. Compares hashes in constant time, with every known key, so that time tells nothing."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, client in self._by_hash.items():
            if hmac.compare_digest(known, digest):
                found = client
        return found


def _parse(fields: list[str], where: str) -> tuple[bytes, Client]:
    if len(fields) != 3:
        raise UsageError(f"{where}: needs three fields, NAME SCOPES SHA256")
    name, scopes_text, digest_text = fields
    scopes = frozenset(scopes_text.split(","))
    if not scopes <= set(SCOPES):
        raise UsageError(f"{where}: scopes are {', '.join(SCOPES)}, not {scopes_text}")
    try:
        digest = bytes.fromhex(digest_text)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise UsageError(
            f"{where}: the third field is no SHA-256 in hexadecimal; `telemetry-api new-key` prints the line"
        )
    return digest, Client(name, scopes)


def new_key(name: str, scopes: str) -> tuple[str, str]:
    """A fresh key, and the line of the keys file that admits it."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {scopes} {hashlib.sha256(key.encode()).hexdigest()}"
    _parse(line.split(), "new-key")
    return key, line


def presented_key(request: Request, *, in_query: bool) -> str:
    """The key that a request carries, "" if none."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.headers.get("X-API-Key", "") or (request.args.get("api_key", "") if in_query else "")


def admit(keys: Keys | None, request: Request, scope: str, *, in_query: bool = False) -> Client:
    """The client of this request, if its key allows ``scope``; else a 401 or 403 problem."""
    if keys is None:
        return ANYONE
    key = presented_key(request, in_query=in_query)
    client = keys.find(key) if key else None
    if client is None:
        detail = "the key is not known" if key else "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
        raise Problem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="gpu-telemetry"'})
    if not client.may(scope):
        raise Problem(403, f"the key {client.name!r} does not have the scope {scope}")
    return client
