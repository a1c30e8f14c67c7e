"""Benchmarks: one file each, every figure a median that stands beside a baseline measured in the same run.

    python -m loadtest.bench                  what there is
    python -m loadtest.bench relay --json     run one; a JSON line a figure
    python -m loadtest.bench all              run all; results go to loadtest/results/

A benchmark is a module of this package with ``run(settings) -> Iterator[Figure]``; the first line of its docstring says
what it measures. Method and caveats: docs/performance.md.
"""
