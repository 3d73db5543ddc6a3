"""Checksums against published test values."""

from dataclasses import fields, replace

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from sterna.limits import CHUNK_BYTES
from sterna.testing.strategies import u16, u32
from sterna.wire import DIGEST_BYTES, StateSection, chunk_hashes, crc32, digest, page_hash, state_digest


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


SECTIONS = st.lists(
    st.builds(StateSection, u16(), u32(), st.binary(max_size=99), u16(), u32(), u32()), max_size=4
)


@given(SECTIONS)
def test_the_state_digest_is_over_names_and_bytes(sections):
    """[MEM-18]"""
    fields = [
        (
            each.architecture,
            2,
            each.kind,
            2,
            each.vcpu,
            4,
            each.version,
            4,
            each.instance,
            4,
            len(each.data),
            8,
        )
        for each in sections
    ]
    hashed = b"".join(
        b"".join(number.to_bytes(size, "little") for number, size in zip(row[::2], row[1::2], strict=True))
        + section.data
        for row, section in zip(fields, sections, strict=True)
    )
    assert state_digest(sections) == digest(hashed)


def test_a_state_digest_tells_sections_apart():
    """[MEM-18] By any field, by their order, and by where one ends and the next begins."""
    one, two = StateSection(2, 1, b"ab", 0, 3, 4), StateSection(2, 1, b"c", 0, 3, 5)
    others = [
        [two, one],
        [one],
        [],
        [replace(one, data=b"a"), replace(two, data=b"bc")],
        [replace(one, data=b"aB"), two],
        *([replace(one, **{field.name: 9}), two] for field in fields(one) if field.name != "data"),
    ]
    digests = {state_digest(each) for each in [[one, two], *others]}
    assert len(digests) == 1 + len(others)
