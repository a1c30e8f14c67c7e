"""The batch: what goes in comes out, and whatever else arrives is a BatchError without a large allocation."""

from __future__ import annotations

import tracemalloc

import lz4.block
import numpy as np
import pytest
import xxhash
import zstandard
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from telemetry import batch as b
from telemetry.batch import (
    HEADER_BYTES,
    ROWS_MAX,
    BatchDecoder,
    BatchError,
    Device,
    DictionaryEncoder,
    encode,
    read_header,
    rows_as_dicts,
)

COMPRESSIONS = ["none", "lz4", "zstd"]
ALLOCATION_MAX = 8 << 20
"""What decoding a small hostile batch may allocate at most; its header may claim gigabytes."""

text = st.text(max_size=12)
devices = st.builds(
    Device,
    *[text] * 10,
    labels=st.dictionaries(text, text, max_size=3).map(lambda labels: tuple(sorted(labels.items()))),
)
metrics = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5, unique=True)
int64 = st.integers(-(2**63), 2**63 - 1)
uint64 = st.integers(0, 2**64 - 1)


@st.composite
def batches(draw: st.DrawFn) -> tuple[bytes, dict[str, object]]:
    """An encoded batch and what it was made of."""
    some_devices = draw(st.lists(devices, min_size=1, max_size=5))
    some_metrics = draw(metrics)
    rows = draw(st.integers(1, 40))
    compression = draw(st.sampled_from(COMPRESSIONS))

    def column(elements: st.SearchStrategy[object], dtype: str) -> np.ndarray:
        return np.array(draw(st.lists(elements, min_size=rows, max_size=rows)), dtype=dtype)

    made: dict[str, object] = {
        "session": draw(uint64),
        "seq": draw(uint64),
        "timestamp_ns": column(int64, "i8"),
        "device_code": column(st.integers(0, len(some_devices) - 1), "u2"),
        "metric_code": column(st.integers(0, len(some_metrics) - 1), "u2"),
        "value": column(st.floats(), "f8"),
    }
    dictionary = DictionaryEncoder(compression).encode(some_devices, some_metrics)
    created_ns = draw(int64)
    payload = encode(**made, dictionary=dictionary, created_ns=created_ns, compression=compression)  # type: ignore[arg-type]
    return payload, {**made, "created_ns": created_ns, "devices": tuple(some_devices), "metrics": tuple(some_metrics)}


def small(compression: str = "lz4", rows: int = 100) -> bytes:
    """A plausible batch."""
    some_devices = [Device(uuid=f"GPU-{i}", hostname="host", gpu_index=str(i)) for i in range(4)]
    code = np.arange(rows) % 4
    return encode(
        7,
        1,
        np.arange(rows) * 10**9,
        code,
        code % 2,
        code * 1.5,
        DictionaryEncoder(compression).encode(some_devices, ["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_UTIL"]),
        created_ns=1,
        compression=compression,
    )


def reheadered(payload: bytes, **changes: object) -> bytes:
    """``payload`` with other header fields and a header checksum that fits them: a lie that the CRC does not catch."""
    header = b.Header(*b._FIELDS.unpack_from(payload))._replace(**changes)
    packed = b._FIELDS.pack(*header)
    return packed + b._CRC.pack(crc32c(packed)) + payload[HEADER_BYTES:]


def only_batch_error(payload: bytes) -> None:
    """Decoding gives a batch or a BatchError, and allocates little."""
    tracemalloc.start()
    try:
        BatchDecoder().decode(payload)
    except BatchError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < ALLOCATION_MAX, f"{peak} bytes were allocated"


@given(batches())
def test_what_goes_in_comes_out(made: tuple[bytes, dict[str, object]]) -> None:
    payload, expected = made
    batch = BatchDecoder().decode(payload)
    assert (batch.session, batch.seq, batch.created_ns) == tuple(expected[k] for k in ("session", "seq", "created_ns"))
    for column in ("timestamp_ns", "device_code", "metric_code", "value"):
        np.testing.assert_array_equal(getattr(batch, column), expected[column])
    assert batch.dictionary.devices == expected["devices"]
    assert batch.dictionary.metrics == expected["metrics"]
    header = read_header(payload)
    assert header.rows == batch.rows
    assert header.timestamp_min_ns == expected["timestamp_ns"].min()  # type: ignore[attr-defined]
    assert header.timestamp_max_ns == expected["timestamp_ns"].max()  # type: ignore[attr-defined]


@given(batches())
def test_a_warm_decoder_says_the_same_as_a_fresh_one(made: tuple[bytes, dict[str, object]]) -> None:
    decoder = BatchDecoder()
    first, second = decoder.decode(made[0]), decoder.decode(made[0])
    assert first.dictionary is second.dictionary
    np.testing.assert_array_equal(first.value, second.value)


@given(batches(), st.data())
def test_a_cut_batch_is_a_batch_error(made: tuple[bytes, dict[str, object]], data: st.DataObject) -> None:
    payload = made[0]
    with pytest.raises(BatchError):
        BatchDecoder().decode(payload[: data.draw(st.integers(0, len(payload) - 1))])
    with pytest.raises(BatchError):
        BatchDecoder().decode(payload + data.draw(st.binary(min_size=1, max_size=9)))


@given(batches(), st.data())
def test_one_flipped_bit_anywhere_is_a_batch_error(made: tuple[bytes, dict[str, object]], data: st.DataObject) -> None:
    payload = bytearray(made[0])
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BatchError):
        BatchDecoder().decode(bytes(payload))


@given(st.binary(max_size=2000))
def test_noise_is_a_batch_error(noise: bytes) -> None:
    with pytest.raises(BatchError):
        BatchDecoder().decode(noise)
    with pytest.raises(BatchError):
        BatchDecoder().decode(b"GTB1" + noise)


LIES = st.fixed_dictionaries(
    {},
    optional={
        "columns_compression": st.integers(0, 255),
        "dictionary_compression": st.integers(0, 255),
        "rows": st.integers(0, 2**32 - 1) | st.just(ROWS_MAX),
        "devices": st.integers(0, 2**32 - 1) | st.integers(0, 10),
        "metrics": st.integers(0, 2**32 - 1) | st.integers(0, 10),
        "dictionary_raw_bytes": st.integers(0, 2**32 - 1) | st.just(b.DICTIONARY_BYTES_MAX),
        "dictionary_stored_bytes": st.integers(0, 2**32 - 1) | st.integers(0, 400),
        "columns_raw_bytes": st.integers(0, 2**32 - 1) | st.just(ROWS_MAX * b.COLUMN_BYTES_A_ROW),
        "columns_stored_bytes": st.integers(0, 2**32 - 1) | st.integers(0, 2000),
        "digest": st.binary(min_size=16, max_size=16),
    },
)


@given(st.sampled_from(COMPRESSIONS), LIES)
def test_a_lying_header_with_a_right_checksum_never_gives_another_error_or_a_large_allocation(
    compression: str, lies: dict[str, object]
) -> None:
    payload = reheadered(small(compression), **lies)
    if lies.get("dictionary_raw_bytes") == b.DICTIONARY_BYTES_MAX:
        return  # allowed by the limit itself; the next test is about it
    only_batch_error(payload)


@given(st.sampled_from(COMPRESSIONS), st.sampled_from(COMPRESSIONS), st.binary(max_size=600), st.integers(0, 200))
def test_a_hostile_body_with_right_checksums_never_gives_another_error(
    of_dictionary: str, of_columns: str, body: bytes, cut: int
) -> None:
    """The sender has a valid header for whatever bytes it likes: every length inside the dictionary may lie."""
    cut = min(cut, len(body))
    payload = small("none")[:HEADER_BYTES] + body
    only_batch_error(
        reheadered(
            payload,
            dictionary_compression=b.COMPRESSIONS[of_dictionary],
            columns_compression=b.COMPRESSIONS[of_columns],
            dictionary_raw_bytes=cut,
            dictionary_stored_bytes=cut,
            columns_stored_bytes=len(body) - cut,
            devices=1,
            metrics=1,
            body_crc=crc32c(body),
            digest=b.hashlib.blake2b(body[:cut], digest_size=16).digest(),
        )
    )


@given(st.data())
def test_a_hostile_dictionary_that_matches_its_digest_never_gives_another_error(data: st.DataObject) -> None:
    """Here everything fits but the inside of the dictionary, so the parser itself meets the noise."""
    raw = bytearray(b.encode_device(Device(uuid="GPU-0", labels=(("a", "b"),))) + b"\x01\x00m")
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    columns = small("none", 3)[-60:]
    body = bytes(raw) + columns
    payload = reheadered(
        small("none", 3)[:HEADER_BYTES] + body,
        dictionary_raw_bytes=len(raw),
        dictionary_stored_bytes=len(raw),
        devices=1,
        metrics=1,
        body_crc=crc32c(body),
        digest=b.hashlib.blake2b(raw, digest_size=16).digest(),
    )
    only_batch_error(payload)


@pytest.mark.parametrize("method", ["lz4", "zstd"])
def test_a_decompression_bomb_is_stopped_by_the_headers_size(method: str) -> None:
    bomb = bytes(1 << 28)
    packed = lz4.block.compress(bomb, store_size=False) if method == "lz4" else zstandard.compress(bomb, 1)
    payload = small("none")
    body = payload[HEADER_BYTES : HEADER_BYTES + read_header(payload).dictionary_stored_bytes] + packed
    hostile = reheadered(
        payload[:HEADER_BYTES] + body,
        columns_compression=b.COMPRESSIONS[method],
        columns_stored_bytes=len(packed),
        body_crc=crc32c(body),
    )
    with pytest.raises(BatchError):
        BatchDecoder().decode(hostile)
    only_batch_error(hostile)


def test_sizes_above_the_limits_are_refused_before_anything_is_decompressed() -> None:
    with pytest.raises(BatchError, match=r"65536 are allowed|rows"):
        read_header(reheadered(small(), rows=ROWS_MAX + 1))
    with pytest.raises(BatchError, match="is above"):
        read_header(reheadered(small(), dictionary_raw_bytes=b.DICTIONARY_BYTES_MAX + 1))
    with pytest.raises(BatchError, match="too small for its entries"):
        read_header(reheadered(small(), devices=60_000))
    with pytest.raises(BatchError, match="more than 65536 devices"):
        read_header(reheadered(small(), devices=1_500_000, dictionary_raw_bytes=b.DICTIONARY_BYTES_MAX))
    with pytest.raises(BatchError, match="version 2 is not 1"):
        read_header(reheadered(small(), version=2))


def test_the_largest_batch_goes_through_and_one_row_more_is_refused() -> None:
    rows = ROWS_MAX
    dictionary = DictionaryEncoder().encode([Device(uuid=f"GPU-{i}") for i in range(rows)], ["m"])
    code, zero = np.arange(rows), np.zeros(rows)
    batch = BatchDecoder().decode(encode(1, 1, code, code, zero, code, dictionary, created_ns=0))
    assert batch.rows == rows
    assert batch.dictionary.devices[int(batch.device_code[-1])].uuid == f"GPU-{rows - 1}"
    one_more = np.zeros(rows + 1)
    with pytest.raises(BatchError, match="1 to 65536 rows"):
        encode(1, 1, one_more, one_more, one_more, one_more, dictionary, created_ns=0)


def test_a_dictionary_with_more_entries_than_codes_is_refused() -> None:
    with pytest.raises(BatchError, match="at most 65536 devices"):
        DictionaryEncoder().encode([Device()] * (b.CODES_MAX + 1), ["m"])


def test_columns_that_do_not_fit_each_other_or_the_dictionary_are_refused() -> None:
    dictionary = DictionaryEncoder().encode([Device(uuid="GPU-0")], ["m"])
    zero, one = np.zeros(3), np.ones(3)
    with pytest.raises(BatchError, match="one length"):
        encode(1, 1, zero[:2], zero, zero, zero, dictionary, created_ns=0)
    with pytest.raises(BatchError, match="outside the dictionary"):
        encode(1, 1, zero, one, zero, zero, dictionary, created_ns=0)
    with pytest.raises(BatchError, match="outside the dictionary"):
        encode(1, 1, zero, zero, one, zero, dictionary, created_ns=0)


def test_decoded_columns_are_views_that_cannot_be_written() -> None:
    batch = BatchDecoder().decode(small())
    with pytest.raises(ValueError, match="read-only"):
        batch.value[0] = 1


def test_the_decoders_memory_of_dictionaries_is_bounded() -> None:
    decoder = BatchDecoder(cache_bytes_max=1000)
    for i in range(100):
        dictionary = DictionaryEncoder().encode([Device(uuid=f"GPU-{i}")], ["m"])
        decoder.decode(encode(1, i, np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), dictionary, created_ns=0))
    assert decoder._cache_bytes <= 1000
    assert sum(size for _, size in decoder._cache.values()) == decoder._cache_bytes


def test_a_known_digest_with_other_counts_is_refused() -> None:
    decoder = BatchDecoder()
    decoder.decode(small())
    with pytest.raises(BatchError, match="another size"):
        decoder.decode(reheadered(small(), metrics=1))


@pytest.mark.parametrize(
    ("device", "gpu_id"),
    [
        (Device(uuid="GPU-1", hostname="h", gpu_index="0"), "GPU-1"),
        (Device(hostname="h", gpu_index="0"), "h:0"),
        (Device(gpu_index="0"), "0"),
        (Device(hostname="h"), ""),
    ],
)
def test_identity_is_the_uuid_else_host_and_index_else_the_index(device: Device, gpu_id: str) -> None:
    assert device.gpu_id == gpu_id
    assert device.gpu_key == xxhash.xxh64_intdigest(gpu_id.encode())


def test_the_key_of_a_label_set_is_stable_and_tells_attribution_apart() -> None:
    device = Device(uuid="GPU-1", pod="a", labels=(("rack", "7"),))
    assert device.labels_key == Device(uuid="GPU-1", pod="a", labels=(("rack", "7"),)).labels_key
    assert device.labels_key != device._replace(pod="b").labels_key


def test_rows_for_people_have_names_and_times() -> None:
    rows = list(rows_as_dicts(BatchDecoder().decode(small()), limit=2))
    assert rows[1] == {
        "timestamp": "1970-01-01T00:00:01.000Z",
        "metric_name": "DCGM_FI_DEV_GPU_UTIL",
        "gpu_id": "GPU-1",
        "hostname": "host",
        "device": "",
        "value": 1.5,
    }
