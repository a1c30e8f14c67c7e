"""Who may ask: users with passwords, one of them read-only. Checked before anything else of a request is read."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from clickhouse.embedded.engine import EngineError


@dataclass(frozen=True)
class User:
    name: str
    password: str = field(default="", repr=False)
    readonly: bool = False


class Users:
    """The users of one server."""

    def __init__(self, *users: User) -> None:
        self._users = {user.name: user for user in users}

    @property
    def protected(self) -> bool:
        """Whether every user needs a password."""
        return all(user.password for user in self._users.values())

    def authenticate(self, headers: Mapping[str, str], params: Mapping[str, str]) -> User:
        """The user of a request: ``X-ClickHouse-User``/``-Key``, HTTP Basic, or ``user``/``password`` in the URL.

        Raises :class:`EngineError` 516, which does not tell a wrong name from a wrong password.
        """
        name, password = _credentials(headers, params)
        user = self._users.get(name)
        # Compare even for unknown names: the time taken must not tell which names exist.
        expected = user.password if user else "\x00"
        matches = hmac.compare_digest(password.encode(), expected.encode())
        if user is None or not (matches or not user.password):
            raise EngineError.of(
                516,
                "AUTHENTICATION_FAILED",
                f"{name}: Authentication failed: password is incorrect, or there is no user with such name",
            )
        return user


def _credentials(headers: Mapping[str, str], params: Mapping[str, str]) -> tuple[str, str]:
    if headers.get("X-ClickHouse-User"):
        return headers["X-ClickHouse-User"], headers.get("X-ClickHouse-Key", "")
    authorization = headers.get("Authorization", "")
    if authorization[:6].lower() == "basic ":
        try:
            name, _, password = base64.b64decode(authorization[6:], validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise EngineError.of(516, "AUTHENTICATION_FAILED", "The Authorization header cannot be read") from None
        return name or "default", password
    if authorization:
        raise EngineError.of(516, "AUTHENTICATION_FAILED", "Only Basic authorization is known here")
    return params.get("user", "default") or "default", params.get("password", "")
