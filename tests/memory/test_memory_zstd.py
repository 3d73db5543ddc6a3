"""Frames, and what may stand in their place."""

from random import Random

import pytest
import zstandard

from sterna.errors import RemoteProtocolError
from sterna.memory.zstd import WINDOW_LOG2, WINDOW_LOG2_MAX, Compressor, Decompressor
from sterna.registry import ErrorCode, FrameType

CONTENT = bytes(range(256)) * 256
FRAME = Compressor(1).frame(memoryview(CONTENT))


def frame(content: bytes = CONTENT, *, window_log2: int = 18, **flags: object) -> bytes:
    """A frame of another maker."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log2, **flags)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def refused(bad: bytes, clause: str, size: int = len(CONTENT), window_log2: int = WINDOW_LOG2) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Decompressor(window_log2).content(memoryview(bad), size)
    error = caught.value
    assert (error.code, error.clause, error.frame) == (ErrorCode.MALFORMED, clause, FrameType.PAGES)


@pytest.mark.parametrize("level", [-5, 1, 3])
def test_what_goes_in_comes_out(level):
    """[PGS-16] Of every level, and with a small window, too."""
    decompressor = Decompressor()
    for window_log2 in (10, WINDOW_LOG2):
        compressor = Compressor(level, window_log2)
        for content in (CONTENT, Random(1).randbytes(4096), bytes(1 << 18), b"x"):
            made = compressor.frame(memoryview(content))
            assert decompressor.content(memoryview(made), len(content)) == content
            says = zstandard.get_frame_parameters(made)
            assert (says.content_size, says.dict_id, says.has_checksum) == (len(content), 0, False)
            assert says.window_size <= max(1 << window_log2, len(content) if window_log2 > 10 else 0)


@pytest.mark.parametrize(
    "bad", [b"", b"\x28", FRAME[:4], FRAME[:5], Random(1).randbytes(64), bytes(64), CONTENT[:99]]
)
def test_no_frame(bad):
    """[PGS-16]"""
    refused(bad, "PGS-16")


def test_a_frame_that_may_be_skipped():
    """[PGS-16] The library reads its length as if it were a content's."""
    content = bytes(100)
    refused(b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content, "PGS-16", len(content))


@pytest.mark.parametrize("behind", [b"\0", FRAME, FRAME[:7], b"\x50\x2a\x4d\x18\0\0\0\0"])
def test_bytes_behind_the_frame(behind):
    """[PGS-16] A second frame is not one frame."""
    refused(FRAME + behind, "PGS-17")


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1, 1 << 40])
def test_a_frame_of_another_size(size):
    """[PGS-16] [PGS-17] [SEC-11] Refused for what it says; nothing of that size is ever allocated."""
    refused(FRAME, "PGS-16", size)


def test_a_frame_that_does_not_say_its_size():
    """[PGS-16]"""
    refused(frame(write_content_size=0), "PGS-16")


def test_a_frame_that_claims_all_memory():
    """[PGS-16] [SEC-11] Content sizes have eight bytes."""
    bomb = bytearray(b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\x7f" + b"\x01\0\0")
    assert zstandard.get_frame_parameters(bytes(bomb)).content_size == (1 << 63) - 1
    refused(bytes(bomb), "PGS-16")


@pytest.mark.parametrize("lie", [1, 4096, 200 * 1024])
def test_a_frame_that_lies_about_its_size(lie):
    """[PGS-17] [SEC-11] It says what the table says, and decodes to more, or to less."""
    honest = frame(bytes(100 * 1024))
    assert honest[4] >> 6 == 2  # the size has four bytes
    liar = honest[:5] + lie.to_bytes(4, "little") + honest[9:]
    assert zstandard.get_frame_parameters(liar).content_size == lie
    refused(liar, "PGS-17", lie)


def test_a_window_that_is_too_large():
    """[PGS-16] [SEC-11] As wide as was selected and no wider."""
    content = bytes(1 << 20)
    wide = frame(content, window_log2=19)
    assert zstandard.get_frame_parameters(wide).window_size == 1 << 19
    assert Decompressor(19).content(memoryview(wide), len(content)) == content
    refused(wide, "PGS-16", len(content), 18)


def test_a_dictionary():
    """[PGS-16]"""
    samples = [Random(number).randbytes(64) + bytes(range(number, number + 64)) for number in range(100)]
    dictionary = zstandard.train_dictionary(1024, samples * 10)
    made = zstandard.ZstdCompressor(dict_data=dictionary).compress(CONTENT)
    assert zstandard.get_frame_parameters(made).dict_id
    refused(made, "PGS-16")


def test_a_checksum_has_to_be_right():
    """[PGS-16] It may be there."""
    made = frame(write_checksum=1)
    assert Decompressor().content(memoryview(made), len(CONTENT)) == CONTENT
    refused(made[:-1] + bytes([made[-1] ^ 1]), "PGS-17")


def test_the_frame_is_cut():
    """[PGS-17]"""
    for end in range(10, len(FRAME) - 1, 7):
        with pytest.raises(RemoteProtocolError):
            Decompressor().content(memoryview(FRAME[:end]), len(CONTENT))
    refused(FRAME[:-1], "PGS-17")


def test_what_is_offered_is_taken():
    assert WINDOW_LOG2 <= WINDOW_LOG2_MAX
