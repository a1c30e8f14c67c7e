"""The admin socket's messages: one JSON object there, one back, over DEALER and ROUTER.

    request   {"v": 1, "id": any, "command": "group pause", "args": {"topic": "t", "group": "g"}}
    answer    {"v": 1, "id": same, "ok": true, "result": ..., "problem": false}
              {"v": 1, "id": same, "ok": false, "error": {"code": "not_found", "message": "...", "next": "..."}}

``problem`` is true where the question was answered and the answer is bad news (a failed check): exit code 1 in the
shell. Unknown keys are ignored on both sides; ``error.next`` says what to do.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from zmqbroker.errors import BrokerError

VERSION: Final = 1
REQUEST_BYTES_MAX: Final = 1 << 20
ANSWER_BYTES_MAX: Final = 64 << 20

CODES: Final = ("bad_request", "unknown_command", "bad_argument", "not_found", "refused", "failed")


class AdminError(BrokerError):
    """A command could not be done. ``code`` is one of :data:`CODES`; ``next_step`` says what to do."""

    def __init__(self, code: str, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.next_step = next_step


class Request(NamedTuple):
    id: Any
    command: str
    args: dict[str, Any]


class Answer(NamedTuple):
    result: Any
    problem: bool = False


def pack_request(id: Any, command: str, args: dict[str, Any]) -> bytes:
    return json.dumps({"v": VERSION, "id": id, "command": command, "args": args}, separators=(",", ":")).encode()


def unpack_request(frame: bytes) -> Request:
    """Raises :class:`AdminError` for anything that is no request."""
    if len(frame) > REQUEST_BYTES_MAX:
        raise AdminError("bad_request", f"a request of {len(frame)} bytes is above {REQUEST_BYTES_MAX}")
    try:
        found = json.loads(frame)
    except (ValueError, RecursionError):
        raise AdminError("bad_request", "the request is not JSON") from None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise AdminError("bad_request", f'the request is no JSON object with "v": {VERSION}', "update the client")
    command, args = found.get("command"), found.get("args", {})
    if not isinstance(command, str) or not isinstance(args, dict):
        raise AdminError("bad_request", "a request needs a command (text) and args (an object)")
    return Request(found.get("id"), command, args)


def pack_answer(id: Any, answer: Answer | AdminError) -> bytes:
    body: dict[str, Any] = {"v": VERSION, "id": id, "ok": isinstance(answer, Answer)}
    if isinstance(answer, Answer):
        body["result"] = answer.result
        body["problem"] = answer.problem
    else:
        body["error"] = {"code": answer.code, "message": str(answer), "next": answer.next_step}
    return json.dumps(body, separators=(",", ":"), default=str).encode()


def unpack_answer(frame: bytes) -> tuple[Any, Answer]:
    """(id, answer); raises the :class:`AdminError` that the broker answered with."""
    try:
        found = json.loads(frame)
        if found["ok"]:
            return found["id"], Answer(found["result"], found.get("problem", False))
        error = found["error"]
    except (ValueError, KeyError, TypeError):
        raise AdminError("bad_request", "the answer is not one of this protocol") from None
    raise AdminError(error.get("code", "failed"), error.get("message", ""), error.get("next", ""))
