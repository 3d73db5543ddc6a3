"""Zstandard frames as no compressor makes them, for those who want to know what a receiver makes of them.

A frame is a magic, a descriptor with what that announces, and blocks (RFC 8878, section 3.1.1).
"""

from __future__ import annotations

from typing import Final

import zstandard

_BLOCK_BYTES: Final = 128 << 10  # a block's content has no more
_RAW, _REPEATED = 0, 1
_WITH_SIZE: Final = b"\xa0"  # one segment, its size in four bytes


def frame(content: bytes, **how: object) -> bytes:
    """A frame of this content, honest but for `how`: arguments of `zstandard.ZstdCompressor`."""
    settings: dict[str, object] = {"write_content_size": True, **how}
    return zstandard.ZstdCompressor(level=1, **settings).compress(content)  # type: ignore[arg-type]


def zeros(says: int, has: int) -> bytes:
    """A frame of `has` zeros that states a size of `says` bytes; four bytes for each 128 KiB."""
    sizes = [_BLOCK_BYTES] * (has // _BLOCK_BYTES) + [has % _BLOCK_BYTES]
    blocks = [_block(_REPEATED, size, last=at == len(sizes) - 1) + b"\0" for at, size in enumerate(sizes)]
    return zstandard.FRAME_HEADER + _WITH_SIZE + says.to_bytes(4, "little") + b"".join(blocks)


def raw_frame(descriptor: int, head: bytes, content: bytes) -> bytes:
    """A frame with this descriptor and what follows it, and one block of this content as it is."""
    return (
        zstandard.FRAME_HEADER + bytes([descriptor]) + head + _block(_RAW, len(content), last=True) + content
    )


def _block(kind: int, size: int, *, last: bool) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little")
