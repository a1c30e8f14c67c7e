"""What every simulated history has round it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A history logs thousands of disasters that are none."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
