"""Names for what is sent to the store: deduplication tokens and query ids, made of the range alone (R2, R12).

Two collectors that hold the same range one after the other come to the same token, so within one boot of the
store their inserts are one; and each can find and end what the other still has running.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from consumers.merge import Address
from consumers.ports import Delivery

_QUERY_ID = re.compile(r"^collector/([0-9a-f-]+)/(\d+)/(\d+)-(\d+)/")


class RangeAddress(NamedTuple):
    """Which range of which log: immutable, never reused (R10, R21)."""

    log_uuid: str
    seal_epoch: int
    partition: int
    first: int
    last: int

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        return cls(delivery.log_uuid, delivery.seal_epoch, delivery.partition, delivery.first, delivery.last)

    def token(self, what: str, boot_id: str, part: Sequence[Address] | None = None) -> str:
        """The deduplication token of one INSERT of this range.

        ``what`` names the block ("2026-01-31", "rejects/2026-01-31"); ``part``: its batches, where they are not all
        of the block: a rest or a half must not meet the token of the whole.
        """
        token = f"{self.log_uuid}/{self.seal_epoch}/{self.partition}/{self.first}-{self.last}/{what}/{boot_id}"
        if part is None:
            return token
        digest = hashlib.blake2b(digest_size=12)
        for address in part:
            digest.update(f"{address.session}/{address.seq};".encode())
        return f"{token}/{digest.hexdigest()}"

    def query_id(self, what: str) -> str:
        """An id of its own for every INSERT sent; its start tells which offsets of which log are on their way."""
        return f"{self.query_prefix}{self.first}-{self.last}/{what}/{secrets.token_hex(6)}"

    @property
    def query_prefix(self) -> str:
        """What the ids of all inserts of this partition start with."""
        return f"collector/{self.log_uuid}/{self.partition}/"

    def overlapping(self, query_ids: Iterable[str]) -> list[str]:
        """Those of the running queries that carry an offset of this range, whatever their bounds (R14)."""
        found = []
        for query_id in query_ids:
            match = _QUERY_ID.match(query_id)
            if match is None or match[1] != self.log_uuid or int(match[2]) != self.partition:
                continue
            if int(match[3]) <= self.last and self.first <= int(match[4]):
                found.append(query_id)
        return found
