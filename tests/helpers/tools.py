"""Programs that tests need and pip does not bring: skipped by name where one is missing, but never in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(program: str, package: str) -> str:
    """Path of a program (a name, or a path itself) of this Debian package; in CI a missing one fails the test."""
    found = shutil.which(program)
    if found is not None:
        return found
    reason = f"{program} is not installed (Debian: {package})"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}: .ci/packages is to name it")
    pytest.skip(reason)
