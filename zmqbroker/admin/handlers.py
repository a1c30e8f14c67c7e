"""From a request to an answer: look up the command, check its arguments, run its function, write down who changed what.

Functions live in the ``handlers_*`` modules under the command's own name (``group pause`` is ``group_pause``) and take
the :class:`Admin` and the arguments by keyword. They run in the admin thread: what concerns the core goes through
``admin.core(...)``, a turn of the loop; what concerns files uses logs that any thread may read (R29).
"""

from __future__ import annotations

import difflib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from zmqbroker.admin import handlers_change, handlers_dead, handlers_health, handlers_look, handlers_records
from zmqbroker.admin.commands import BY_NAME, COMMANDS, Command
from zmqbroker.admin.protocol import AdminError, Answer, Request
from zmqbroker.core.broker import Core
from zmqbroker.core.group import Group
from zmqbroker.core.topic import Topic
from zmqbroker.errors import BrokerError
from zmqbroker.storage.interface import TopicLog

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from zmqbroker.server import Broker

audit_log = logging.getLogger("zmqbroker.audit")
_log = logging.getLogger(__name__)

AUDIT_MAX: Final = 1000
EVENTS_MAX: Final = 1000


class Admin:
    """What the handlers work with."""

    def __init__(
        self,
        broker: Broker,
        *,
        registry: CollectorRegistry | None = None,
        now_s: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.broker = broker
        self.registry = registry
        self.now_s = now_s
        self.sleep = sleep
        self.endpoint = ""
        self.audit: deque[dict[str, Any]] = deque(maxlen=AUDIT_MAX)
        self.events = _Events()

    def core(self, what: Callable[[Core], Any]) -> Any:
        """Run in the broker's loop."""
        return self.broker.call(what)

    def topic(self, core: Core, name: str) -> Topic:
        """In the loop: the topic, or an error that names the nearest."""
        found = core.topics.get(name)
        if found is None:
            raise AdminError("not_found", f"there is no topic {name}", _nearest(name, core.topics, "topics"))
        return found

    def group(self, core: Core, topic: str, name: str) -> tuple[Topic, Group]:
        found = self.topic(core, topic)
        group = found.groups.get(name)
        if group is None:
            raise AdminError(
                "not_found", f"topic {topic} has no group {name}", _nearest(name, found.groups, f"groups {topic}")
            )
        return found, group

    def log(self, name: str) -> TopicLog:
        """The topic's log, for reading."""
        self.core(lambda core: self.topic(core, name))
        found = self.broker.log_of(name)
        if found is None:
            raise AdminError("refused", f"topic {name} is not open yet", "try again in a moment")
        return found

    def iso(self, time_ms: float | None) -> str | None:
        if time_ms is None:
            return None
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Events(logging.Handler):
    """The latest log lines of the broker, for ``events``."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[tuple[float, str, str]] = deque(maxlen=EVENTS_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        extra = {
            k: v for k, v in vars(record).items() if k in ("topic", "group", "reason", "segments", "bytes", "gaps")
        }
        told = " ".join(f"{k}={v}" for k, v in extra.items())
        self.lines.append((record.created, record.levelname.lower(), f"{record.getMessage()} {told}".strip()))


def _nearest(name: str, known: Mapping[str, object], command: str) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {close[0]}?" if close else f"`{command}` lists what there is"


_MODULES: Final = (handlers_look, handlers_records, handlers_health, handlers_change, handlers_dead)
HANDLERS: Final[dict[str, Callable[..., Any]]] = {
    command.name: function
    for command in COMMANDS
    for module in _MODULES
    if not command.local and (function := getattr(module, command.function, None)) is not None
}


def answer(admin: Admin, request: Request, who: str = "") -> Answer:
    """Run one request. Raises :class:`AdminError`, and nothing else."""
    command = BY_NAME.get(request.command)
    function = HANDLERS.get(request.command)
    if command is None or function is None:
        raise AdminError("unknown_command", f"there is no command {request.command!r}", "`help` lists them")
    args = checked(command, request.args)
    started = admin.now_s()
    outcome = "done"
    try:
        result = function(admin, **args)
        return result if isinstance(result, Answer) else Answer(result)
    except AdminError as e:
        outcome = str(e)
        raise
    except BrokerError as e:
        outcome = str(e)
        raise AdminError("failed", str(e)) from e
    except Exception as e:
        outcome = repr(e)
        _log.exception("an admin command failed: %s", request.command)
        raise AdminError("failed", f"{request.command} failed: {e!r}", "the broker's log tells more") from e
    finally:
        if command.changes and not args.get("dry_run"):
            entry = {
                "time": admin.iso(started * 1000),
                "who": who,
                "command": command.name,
                "args": request.args,
                "outcome": outcome,
            }
            admin.audit.append(entry)
            audit_log.info("%s", command.name, extra={"who": who, "args_given": str(request.args), "outcome": outcome})


def checked(command: Command, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the command's own list, by the names of Python. Raises :class:`AdminError`."""
    args: dict[str, Any] = {}
    left = {str(name).replace("_", "-"): value for name, value in given.items()}
    for argument in command.arguments:
        value = left.pop(argument.name, None)
        if argument.name in ("yes", "watch", "interval") and not command.local:
            continue  # of the shell alone
        if value is None:
            if argument.required:
                raise AdminError("bad_argument", f"{command.name} needs {argument.name}: {argument.help}")
            value = [] if argument.many else False if argument.switch else argument.default
        elif argument.switch:
            value = bool(value)
        elif argument.many:
            value = [str(v) for v in value] if isinstance(value, list) else [str(value)]
        else:
            try:
                value = argument.type(str(value))
            except ValueError as e:
                raise AdminError("bad_argument", f"{argument.name}: {str(value)!r:.100} {e}") from None
            if argument.choices and value not in argument.choices:
                raise AdminError("bad_argument", f"{argument.name}: {value!r} is none of {', '.join(argument.choices)}")
        name = argument.name.replace("-", "_")
        args[name + "_" if name == "from" else name] = value
    if left:
        raise AdminError(
            "bad_argument", f"{command.name} has no argument {', '.join(sorted(left))}", f"`help {command.name}`"
        )
    return args
