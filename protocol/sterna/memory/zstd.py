"""One zstd frame for a run of pages, and what a peer may have put in its place [PGS-16] [PGS-17].

A frame says at its beginning how large its content is and how far back it looks. Both are read first, and
one that says anything but what the page table says is refused before a byte is allocated for it. Whatever it
then does, its content has that many bytes or it is refused: a bomb is not larger than the run that it claims
to be, and a run not larger than a batch [PGS-21].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import zstandard

from sterna.errors import RemoteProtocolError, remote_error
from sterna.registry import ErrorCode, FrameType

WINDOW_LOG2_MIN: Final = 10  # the smallest of the format
# What a destination selects at most: what RFC 8878 asks of decoders, and less than a batch may have.
WINDOW_LOG2_MAX: Final = 23
# What a source offers: to look back over a whole batch of the usual size. It costs its destination nothing,
# which has the whole content of a frame in any case.
WINDOW_LOG2: Final = 23

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_CLAUSE: Final = "PGS-16"


class Compressor:
    """Makes frames of one level. Not to be shared between threads."""

    def __init__(self, level: int, window_log2: int = WINDOW_LOG2) -> None:
        """`window_log2`: how far back a frame looks at most."""
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=window_log2, write_content_size=1, write_checksum=0, write_dict_id=0
        )
        self._zstd: Final = zstandard.ZstdCompressor(compression_params=parameters)

    def frame(self, content: memoryview) -> bytes:
        """The frame of a run, which is not empty."""
        return self._zstd.compress(content)

    def frames(self, contents: Sequence[memoryview]) -> list[memoryview]:
        """Those of several runs. Others have the interpreter until the last one is done."""
        if not contents:
            return []
        made = self._zstd.multi_compress_to_buffer(list(contents), threads=1)
        # Views, not copies; that segments are buffers is not in the library's annotations.
        return [memoryview(made[number]) for number in range(len(made))]  # type: ignore[arg-type]


class Decompressor:
    """Takes frames apart. Not to be shared between threads."""

    def __init__(self, window_log2: int = WINDOW_LOG2_MAX) -> None:
        """`window_log2`: how far back a frame may look."""
        self._window_bytes: Final = 1 << window_log2
        self._zstd: Final = zstandard.ZstdDecompressor(max_window_size=self._window_bytes)

    def content(self, frame: memoryview, size_bytes: int) -> bytes:
        """What a frame stands for, which has to have `size_bytes` bytes.

        Raises:
            RemoteProtocolError: MALFORMED, it is not one frame, not of this size, or not one for this side.
        """
        self._check(frame, size_bytes)
        try:
            content = self._zstd.decompress(
                frame, max_output_size=size_bytes, read_across_frames=False, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise malformed(str(error), "PGS-17") from None
        if len(content) != size_bytes:  # the library holds a frame to what it says; this does not rely on it
            raise malformed(f"{len(content)} bytes of {size_bytes}", "PGS-17")
        return content

    def _check(self, frame: memoryview, size_bytes: int) -> None:
        """See what a frame says of itself."""
        if bytes(frame[: len(_MAGIC)]) != _MAGIC:
            raise malformed("no zstd frame", _CLAUSE)
        try:
            says = zstandard.get_frame_parameters(frame)
        except zstandard.ZstdError as error:
            raise malformed(str(error), _CLAUSE) from None
        if says.content_size != size_bytes:
            raise malformed(f"a frame of {says.content_size} bytes for {size_bytes}", _CLAUSE)
        if says.window_size > self._window_bytes:
            raise malformed(f"a window of {says.window_size} bytes", _CLAUSE)
        if says.dict_id:
            raise malformed(f"dictionary {says.dict_id}", _CLAUSE)


def malformed(detail: str, clause: str) -> RemoteProtocolError:
    """What is wrong with the bytes of a run."""
    return remote_error(ErrorCode.MALFORMED, detail, clause=clause, frame=FrameType.PAGES)
