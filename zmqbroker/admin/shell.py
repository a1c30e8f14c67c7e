"""``zmqbroker admin``: one command, a script on standard input, or a prompt with completion and history.

Exit codes: 0 fine, 1 a problem was found or the command failed, 2 it cannot be understood.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory

from telemetry.options import CommandLine, Option, Positional, UsageError, duration_seconds, flag, path, url
from zmqbroker.admin import local
from zmqbroker.admin.client import AdminClient
from zmqbroker.admin.commands import COMMANDS, Argument, Command, find
from zmqbroker.admin.contexts import Contexts, directory
from zmqbroker.admin.parsing import OUTPUTS, parse
from zmqbroker.admin.protocol import AdminError, Answer
from zmqbroker.admin.render import render
from zmqbroker.admin.rows import decoded
from zmqbroker.core.operating import QUOTAS
from zmqbroker.errors import BrokerError
from zmqbroker.security import ClientKeys

DEFAULT_URL: Final = "tcp://127.0.0.1:5556"
ADMIN_OPTIONS: Final = (
    Option("url", f"address of the admin socket (else the selected context's, else {DEFAULT_URL})", None, url,
           env="ZMQBROKER_ADMIN_URL"),
    Option("output", "how results are printed", "table", choices=OUTPUTS, short="o"),
    Option("key", "own NAME.key_secret file", None, path),
    Option("server-key", "the broker's public key, or the file that holds it"),
    Option("timeout", "how long an answer is waited for", 10.0, duration_seconds, "seconds"),
    Option("no-color", "no colours (so does NO_COLOR)", False, flag),
)  # fmt: skip
_USAGE_CODES: Final = {"bad_argument", "unknown_command", "bad_request"}


class Shell:
    """Runs commands. ``terminal`` says that a person looks on."""

    def __init__(
        self,
        address: str | None = None,
        *,
        output: str = "table",
        color: bool = False,
        key: Path | None = None,
        server_key: str | None = None,
        timeout_s: float = 10.0,
        contexts: Contexts | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
        terminal: bool = False,
        ask_person: Callable[[str], str] = input,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.output = output
        self.color = color
        self.terminal = terminal
        self.contexts = contexts or Contexts()
        self.clock = clock
        self.sleep = sleep
        self.keys: ClientKeys | None = None
        self._given = (address, key, server_key)
        self._timeout_s = timeout_s
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._ask_person = ask_person
        self._client: AdminClient | None = None
        self._format = output

    # -- the broker

    def connect(self) -> AdminClient:
        """By the flags, else the selected context, else the default. Raises :class:`BrokerError`."""
        address, key, server_key = self._given
        chosen = self.contexts.selected() if address is None else None
        if chosen is not None:
            address = chosen["url"]
            key = key or (Path(chosen["key"]) if chosen.get("key") else None)
            server_key = server_key or chosen.get("server_key")
        if (key is None) != (server_key is None):
            raise UsageError("--key and --server-key go together")
        self.keys = ClientKeys.load(key, server_key) if key is not None and server_key is not None else None
        if self._client is not None:
            self._client.close()
        self._client = AdminClient(address or DEFAULT_URL, keys=self.keys, timeout_s=self._timeout_s)
        return self._client

    def ask(self, command: str, **args: Any) -> Answer:
        """Ask the broker. Raises :class:`BrokerError`."""
        slow = command in ("backup", "dlq redrive", "replay", "trace", "topic delete", "topic create")
        client = self._client or self.connect()
        return client.call(
            command, timeout_s=600.0 if slow else None, **{k: v for k, v in args.items() if v is not None}
        )

    # -- output

    def write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def show(self, result: Any) -> None:
        self.write(render(result, self._format, color=self.color))

    def complain(self, text: str) -> None:
        self._err.write(f"zmqbroker admin: {' '.join(text.split())}\n")
        self._err.flush()

    # -- commands

    def run(self, words: list[str]) -> int:
        """One command; its exit code. Raises nothing but KeyboardInterrupt."""
        before = self._format, self.color
        try:
            command, args = parse(words)
            self._format = args.pop("output", None) or self._format
            self.color = self.color and not args.pop("no_color", False)
            return self._run(command, args)
        except UsageError as e:
            self.complain(str(e))
            return 2
        except AdminError as e:
            self.complain(f"{e}" + (f": {e.next_step}" if e.next_step else ""))
            return 2 if e.code in _USAGE_CODES else 1
        except BrokenPipeError:
            return 1
        except (BrokerError, OSError) as e:
            self.complain(str(e))
            return 1
        finally:
            self._format, self.color = before

    def _run(self, command: Command, args: dict[str, Any]) -> int:
        sure = args.pop("yes", False)
        if command.destroys and not args.get("dry_run") and not sure:
            self._confirm(command, args)
        if command.local:
            if "from" in args:
                args["from_"] = args.pop("from")
            result = local.function(command.function)(self, **args)
            answer = result if isinstance(result, Answer) else Answer(result)
        elif args.pop("watch", False):
            return self._watch(command, args)
        else:
            args.pop("interval", None)
            answer = self.ask(command.name, **args)
        if command.name == "peek":
            rows = decoded(answer.result["records"], args.get("decode", "auto"), args.get("filter", []))
            answer = Answer(rows, answer.problem)
        if command.name == "version":
            answer = Answer({"shell": local.version(), **answer.result})
        if answer.result is not None:
            self.show(answer.result)
        return int(answer.problem)

    def _watch(self, command: Command, args: dict[str, Any]) -> int:
        interval = args.pop("interval", 1.0)
        while True:
            answer = self.ask(command.name, **args)
            text = render(answer.result, self._format, color=self.color)
            self.write(("\x1b[H\x1b[2J" if self.terminal else "") + text)
            self.sleep(interval)

    def _confirm(self, command: Command, args: dict[str, Any]) -> None:
        """Show what would be done, and have its name typed."""
        name = str(args.get(command.destroys, ""))
        if not self.terminal:
            raise UsageError(f"{command.name} destroys: say --yes, or look first with --dry-run")
        self.show(self.ask(command.name, **{**args, "dry_run": True}).result)
        typed = self._ask_person(f"{command.name}: type {name} to do it: ")
        if typed.strip() != name:
            raise AdminError("refused", "nothing was done")

    def run_line(self, line: str) -> int | None:
        """One line of a script or of the prompt; None for an empty one."""
        try:
            words = shlex.split(line, comments=True)
        except ValueError as e:
            self.complain(f"{e}: quotes come in pairs")
            return 2
        return self.run(words) if words else None

    def run_script(self, lines: Iterable[str]) -> int:
        """Every line, to the first that fails; its exit code."""
        for line in lines:
            code = self.run_line(line)
            if code:
                return code
        return 0

    def prompt(self) -> int:
        """Until ``exit`` or the end of input; the exit code of the last command."""
        home = directory()
        home.mkdir(parents=True, exist_ok=True)
        session: PromptSession[str] = PromptSession(
            history=FileHistory(str(home / "history")), completer=CommandCompleter(self), complete_while_typing=False
        )
        self.write("zmqbroker: `help` lists the commands, Tab completes, `exit` ends\n")
        code = 0
        while True:
            try:
                line = session.prompt("zmqbroker> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return code
            if line.strip() in ("exit", "quit"):
                return code
            try:
                code = self.run_line(line) or 0
            except KeyboardInterrupt:
                self.write("\n")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


class CommandCompleter(Completer):
    """Commands, flags, choices, and names that the broker knows."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        words = text.split()
        current = "" if not words or text[-1].isspace() else words.pop()
        for candidate, meaning in self._candidates(words, current):
            if candidate.startswith(current):
                yield Completion(candidate, start_position=-len(current), display_meta=meaning)

    def _candidates(self, words: list[str], current: str) -> Iterable[tuple[str, str]]:
        command, given = find(words)
        if len(words) < 2:
            start = f"{words[0]} " if words else ""
            offered = [(c.name[len(start) :].split()[0], c.help) for c in COMMANDS if c.name.startswith(start)]
            yield from dict(reversed(offered)).items()
        if command is None:
            return
        flags = {f"--{a.name}": a for a in command.arguments if a.flag}
        if given and given[-1] in flags and not flags[given[-1]].switch:
            yield from self._values(flags[given[-1]], given)
            return
        if current.startswith("-"):
            yield from ((flag, a.help) for flag, a in flags.items())
            return
        positional = [a for a in command.arguments if not a.flag]
        taken = len([w for w in given if not w.startswith("-")])
        if taken < len(positional):
            yield from self._values(positional[taken], given)

    def _values(self, argument: Argument, given: list[str]) -> Iterable[tuple[str, str]]:
        if argument.choices:
            return [(choice, "") for choice in argument.choices]
        try:
            if argument.complete == "topic":
                return [(t["topic"], f"{t['rows']:,} rows") for t in self._shell.ask("topics").result]
            if argument.complete == "group":
                groups = self._shell.ask("groups", topic=given[0] if given else None).result
                return [(g["group"], f"{g['topic']}, {g['lag_rows']:,} rows behind") for g in groups]
            if argument.complete == "quota":
                return [(name, "") for name in (*QUOTAS, "ingress_pool_bytes")]
            if argument.complete == "context":
                return [(c["name"], c["url"]) for c in self._shell.contexts.ls()]
        except BrokerError:
            pass
        return []


COMMAND_LINE: Final = CommandLine(
    "zmqbroker admin",
    "BROKER_ADMIN",
    "The operator's shell: one command, a script on standard input, or a prompt.",
    ADMIN_OPTIONS,
    positionals=(Positional("words", "command with its arguments (`help` lists them)", "..."),),
)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``zmqbroker admin``; the exit code."""
    args = COMMAND_LINE.parse(argv)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    shell = Shell(
        args.url,
        output=args.output,
        color=sys.stdout.isatty() and not args.no_color and not os.environ.get("NO_COLOR"),
        key=args.key,
        server_key=args.server_key,
        timeout_s=args.timeout,
        terminal=terminal,
    )
    try:
        if args.words:
            return shell.run(args.words)
        return shell.prompt() if terminal else shell.run_script(sys.stdin)
    except KeyboardInterrupt:
        return 0
    finally:
        shell.close()
