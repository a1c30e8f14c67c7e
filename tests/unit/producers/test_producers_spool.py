"""The spool: oldest first, bounded, the same after any end."""

import pytest

from producers.spool import Spool
from zmqbroker.errors import DirectoryLocked


def fill(spool, count, size=100, start=0):
    for i in range(start, start + count):
        spool.append_new(lambda session, seq, i=i: b"%08d" % i + bytes(size), 10)


def numbers(spool):
    found, after = [], -1
    while batches := spool.oldest(after, 1 << 20):
        found += [int(batch.payload[:8]) for batch in batches]
        after = batches[-1].offset
    return found


def test_batches_come_back_oldest_first_under_their_address(tmp_path):
    spool = Spool(tmp_path, 64 << 20)
    fill(spool, 5)
    spool.append_sent([(77, 9, 3, b"00000099")])
    assert numbers(spool) == [0, 1, 2, 3, 4, 99]
    batches = spool.oldest(-1, 1 << 20)
    assert [(b.session, b.seq) for b in batches[:2]] == [(spool.session, 1), (spool.session, 2)]
    assert (batches[-1].session, batches[-1].seq, batches[-1].rows) == (77, 9, 3)
    assert (spool.batches, spool.rows) == (6, 53)
    spool.close()


def test_what_is_done_is_gone_also_after_a_restart(tmp_path):
    spool = Spool(tmp_path, 64 << 20)
    fill(spool, 10)
    spool.done(spool.oldest(-1, 1 << 20)[3].offset)
    assert numbers(spool) == [4, 5, 6, 7, 8, 9]
    spool.close()
    again = Spool(tmp_path, 64 << 20)
    assert numbers(again) == [4, 5, 6, 7, 8, 9]
    assert again.rows == 60
    fill(again, 2, start=10)
    assert numbers(again) == [4, 5, 6, 7, 8, 9, 10, 11]
    again.close()


def test_a_kill_loses_no_batch(tmp_path):
    spool = Spool(tmp_path, 64 << 20)
    fill(spool, 10)
    spool.done(spool.oldest(-1, 1 << 20)[3].offset)
    spool._log.release()
    again = Spool(tmp_path, 64 << 20)
    # The floor may lag: what had been sent is sent again under its address. Nothing is missing.
    assert numbers(again)[-6:] == [4, 5, 6, 7, 8, 9]
    again.close()


def test_a_full_spool_drops_the_oldest_and_counts_them(tmp_path):
    spool = Spool(tmp_path, 8 << 20)
    fill(spool, 300, size=100_000)
    held = numbers(spool)
    assert spool.bytes <= 8 << 20
    assert held == list(range(held[0], 300))
    assert len(held) >= 10
    assert spool.batches_dropped == held[0]
    assert spool.rows_dropped == 10 * held[0]
    spool.close()


def test_two_streamers_do_not_share_a_spool(tmp_path):
    spool = Spool(tmp_path, 8 << 20)
    with pytest.raises(DirectoryLocked):
        Spool(tmp_path, 8 << 20)
    spool.close()
