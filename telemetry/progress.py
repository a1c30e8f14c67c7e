"""Progress of long work: a bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO


class ProgressLine:
    """``with ProgressLine("sending", total=rows, log=log) as line: line.update(done)``.

    ``total`` None means unknown. ``update`` is cheap enough to call for each batch, from one thread.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        unit: str = "rows",
        *,
        log: logging.Logger,
        every_s: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._stream = stream or sys.stderr
        self._done = 0
        self._started = self._logged = clock()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._started = self._logged = self._clock()
        if self._stream.isatty():
            # Imported here: a process without a terminal starts sooner without it.
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f} " + self._unit + " · {task.fields[rate]:,.0f}/s {task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=False,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(self._title, total=self._total, rate=0.0, note="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        else:
            self._write("finished" if kind is None else "ended")

    def update(self, done: int, **fields: object) -> None:
        """``done`` units so far; ``fields`` are shown beside them."""
        self._done = done
        if self._bar is not None:
            note = " ".join(f"{name}={value}" for name, value in fields.items())
            self._bar.update(self._task, completed=done, rate=self._rate(), note=note)
        elif self._clock() - self._logged >= self._every_s:
            self._write("progress", **fields)

    def _rate(self) -> float:
        return self._done / max(self._clock() - self._started, 1e-9)

    def _write(self, state: str, **fields: object) -> None:
        self._logged = self._clock()
        extra: dict[str, object] = {self._unit: self._done, f"{self._unit}_per_s": round(self._rate())}
        if self._total:
            extra["percent"] = round(100 * self._done / self._total, 1)
        self._log.info(f"{self._title}: {state}", extra=extra | fields)
