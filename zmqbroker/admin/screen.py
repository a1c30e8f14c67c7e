"""The live screen of ``top``: drawn again each interval; keys: q ends, o sorts by the next column, + and - pace."""

from __future__ import annotations

import select
import sys
import termios
import tty
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from zmqbroker.admin.render import render

if TYPE_CHECKING:
    from zmqbroker.admin.shell import Shell


def live(shell: Shell, tables: Iterator[list[dict[str, Any]]], interval: float, rounds: int | None) -> None:
    """Until q, Ctrl-C, or so many rounds."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    sort = 0
    try:
        tty.setcbreak(fd)
        for number, rows in enumerate(tables, 1):
            status = shell.ask("status").result
            columns = list(rows[0]) if rows else []
            if columns:
                column = columns[sort % len(columns)]
                rows.sort(key=itemgetter(column), reverse=not isinstance(rows[0][column], str))
            head = (
                f"zmqbroker {status['version']}  up {status['uptime_seconds']:.0f} s  "
                f"producers {status['producers']}  consumers {status['consumers']}  "
                f"waiting {status['waiting_rows']:,} rows  disk {status['disk_bytes'] >> 20:,} MiB  "
                f"every {interval:g} s\n"
            )
            foot = (
                f"sorted by {columns[sort % len(columns)]}   q end   o sort   + - pace\n"
                if columns
                else "no topics yet   q end\n"
            )
            shell.write("\x1b[H\x1b[2J" + head + "\n" + render(rows, "table", color=shell.color) + "\n" + foot)
            if rounds is not None and number >= rounds:
                return
            key = _key(interval)
            if key == "q":
                return
            if key == "o":
                sort += 1
            elif key in "+-" and key:
                interval = min(60.0, max(0.2, interval * (0.5 if key == "+" else 2.0)))
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _key(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""
