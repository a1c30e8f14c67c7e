"""Ids that have to be unique, and that nobody needs to be kept from guessing."""

from __future__ import annotations

import random


def unique_id() -> str:
    """128 random bits as 32 hex digits.

    Not of ``uuid4`` or ``secrets``: those ask the kernel, and a thread that does so lets go of the interpreter and
    waits for its turn to have it back. Where every request makes an id, that is what the slowest ones waited for.
    """
    return f"{random.getrandbits(128):032x}"
