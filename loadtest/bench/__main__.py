"""``python -m loadtest.bench NAME… [--json] [--runs N] [--scale X] [--dir DIR]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.bench.frame import Figure, Settings, modules, run_one


def show(figure: Figure) -> str:
    """A figure for people."""
    text = f"{figure.bench:10} {figure.metric:28} {figure.value:>14,.6g} {figure.unit}"
    if figure.ratio is not None:
        text += f"   {figure.ratio:.3g} x {figure.baseline} ({figure.baseline_value:,.6g})"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named; the exit code."""
    known = modules()
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="Run benchmarks.", allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(known)}")
    parser.add_argument("--json", action="store_true", help="one JSON line a figure")
    parser.add_argument("--runs", type=int, default=3, help="runs of which the median is taken (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink the work; results are then not written")
    parser.add_argument(
        "--dir", type=Path, default=Settings().directory, help="where data goes, on the disk that is meant"
    )
    args = parser.parse_args(argv)
    if not args.names:
        for name, module in known.items():
            print(f"{name:10} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    names = list(known) if "all" in args.names else args.names
    for name in names:
        if name not in known:
            print(f"bench: {name!r} is none of {', '.join(known)}", file=sys.stderr)
            return 2
    for name in names:
        settings = Settings(args.dir.resolve(), max(1, args.runs), args.scale)
        for figure in run_one(name, known[name].run, settings):
            print(figure.line() if args.json else show(figure), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
