from __future__ import annotations

import pytest
import zstandard

from sterna.testing.zstd_frames import frame, raw_frame, zeros

CONTENT = bytes(range(256)) * 16


def unpacked(packed: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(packed)


def test_a_frame_is_honest_unless_it_is_told_otherwise():
    assert unpacked(frame(CONTENT)) == CONTENT
    assert zstandard.frame_content_size(frame(CONTENT)) == len(CONTENT)
    assert zstandard.frame_content_size(frame(CONTENT, write_content_size=False)) == -1


@pytest.mark.parametrize("has", [0, 1, 128 << 10, (1 << 20) + 5])
def test_zeros_are_as_many_as_they_are(has: int):
    assert unpacked(zeros(has, has)) == bytes(has)


def test_zeros_may_state_another_number():
    packed = zeros(9, 1 << 20)
    assert zstandard.frame_content_size(packed) == 9
    assert len(packed) < 60
    with pytest.raises(zstandard.ZstdError):
        unpacked(packed)


def test_a_raw_frame_has_the_header_that_it_is_given():
    assert unpacked(raw_frame(0xA0, len(CONTENT).to_bytes(4, "little"), CONTENT)) == CONTENT
    named = raw_frame(0xA1, b"\x07" + len(CONTENT).to_bytes(4, "little"), CONTENT)
    assert zstandard.get_frame_parameters(named).dict_id == 7
