"""Checksums against published test values."""

import numpy as np
import pytest
import xxhash

from sterna.limits import CHUNK_BYTES
from sterna.wire import DIGEST_BYTES, chunk_hashes, crc32, digest, page_hash


def test_crc32_is_that_of_ieee_802_3():
    """[HDR-2] [HDR-10] The check value of the CRC catalogues."""
    assert crc32(b"123456789") == 0xCBF43926
    assert crc32(b"6789", crc32(b"12345")) == 0xCBF43926


def test_hashes_are_xxh3():
    """[PGS-13] Values of the xxHash specification for empty input."""
    assert page_hash(b"") == 0x2D06800538D394C2
    assert digest(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert len(digest(b"x")) == DIGEST_BYTES


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_run_has_a_hash_for_each_chunk(size):
    """[PGS-12]"""
    data = np.random.default_rng(1).bytes(size)
    hashes = chunk_hashes(memoryview(data))
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [
        xxhash.xxh3_64_intdigest(data[at : at + CHUNK_BYTES]) for at in range(0, size, CHUNK_BYTES)
    ]
