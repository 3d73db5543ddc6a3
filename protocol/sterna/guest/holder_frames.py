"""The holder protocol's frames: u32 length, one JSON object, descriptors beside it; spec/holder.md 2.

No sockets here: bytes and descriptors in, frames out. The other end is a process of this host and still not
trusted: whatever it sends gives a frame or a `FrameError`, and memory stays bounded.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sterna.errors import GuestError
from sterna.registry import ErrorCode

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]

VERSION: Final = 1
LENGTH_BYTES: Final = 4
# The largest object: a description with 64 regions and 1024 CPU features takes some 100 KiB.
FRAME_BYTES: Final = 1 << 20
# Descriptors a frame may carry, a region each at most; a kernel takes 253 at once.
FRAME_DESCRIPTORS: Final = 64
INTEGER_MAX: Final = (1 << 53) - 1  # what every JSON library keeps exactly


class FrameError(GuestError):
    """Bytes that are no frame, or a frame that is no message.

    Attributes:
        fatal: frame boundaries are lost, so the connection ends; otherwise only this frame is lost.
    """

    def __init__(self, detail: str, code: ErrorCode = ErrorCode.MALFORMED, *, fatal: bool = False) -> None:
        super().__init__(detail, code)
        self.fatal = fatal


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. Whoever takes it owns the descriptors."""

    fields: JsonObject
    descriptors: tuple[int, ...] = field(default=())

    def close(self) -> None:
        """Close the descriptors that came along."""
        close_all(self.descriptors)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


def encode_frame(fields: JsonObject, descriptors: Sequence[int] = ()) -> bytes:
    """The bytes of a frame; the descriptors are to be sent with the first of them.

    Raises:
        FrameError: the object is too large.
    """
    if descriptors:
        fields = {**fields, "descriptors": len(descriptors)}
    body = json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    if len(body) > FRAME_BYTES or len(descriptors) > FRAME_DESCRIPTORS:
        raise FrameError("a message is too large", ErrorCode.LIMIT_CONTROL)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


class FrameReader:
    """Cuts a stream of bytes and descriptors into frames.

    Args:
        close: what to do with descriptors that nobody wants.
    """

    def __init__(self, close: Callable[[Iterable[int]], None] = close_all) -> None:
        self._close = close
        self._bytes = bytearray()
        self._descriptors: deque[int] = deque()

    def receive(self, data: bytes, descriptors: Iterable[int] = ()) -> None:
        """Take what one recvmsg(2) gave.

        Raises:
            FrameError: more descriptors than two frames may have; one is being read, and one may follow it.
        """
        self._bytes += data
        self._descriptors.extend(descriptors)
        if len(self._descriptors) > 2 * FRAME_DESCRIPTORS:
            raise FrameError("too many descriptors", fatal=True)

    def next_frame(self) -> Frame | None:
        """The next whole frame, None if more bytes are needed.

        Raises:
            FrameError: the frame is not a message; if not fatal, reading goes on behind it.
        """
        if len(self._bytes) < LENGTH_BYTES:
            return None
        size = int.from_bytes(self._bytes[:LENGTH_BYTES], "little")
        if size > FRAME_BYTES:
            raise FrameError(f"a frame of {size} bytes", ErrorCode.LIMIT_CONTROL, fatal=True)  # [HOL-4]
        if len(self._bytes) < LENGTH_BYTES + size:
            return None
        body = bytes(self._bytes[LENGTH_BYTES : LENGTH_BYTES + size])
        del self._bytes[: LENGTH_BYTES + size]
        try:
            fields = _parse(body)
        except FrameError:
            self._check_left_over()
            raise
        return Frame(fields, self._take(fields))

    @property
    def has_frame(self) -> bool:
        """Whether `next_frame` has something to say without more bytes."""
        if len(self._bytes) < LENGTH_BYTES:
            return False
        size = int.from_bytes(self._bytes[:LENGTH_BYTES], "little")
        return size > FRAME_BYTES or len(self._bytes) >= LENGTH_BYTES + size

    def _take(self, fields: JsonObject) -> tuple[int, ...]:
        count = fields.get("descriptors", 0)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= FRAME_DESCRIPTORS:
            raise FrameError("descriptors: not a count", fatal=True)
        if count > len(self._descriptors):
            raise FrameError(f"{count} descriptors announced, {len(self._descriptors)} came", fatal=True)
        taken = tuple(self._descriptors.popleft() for _ in range(count))
        try:
            self._check_left_over()
        except FrameError:
            self._close(taken)
            raise
        return taken

    def _check_left_over(self) -> None:
        # With no byte of a next frame behind them, they came with a frame that did not announce them. The
        # next one that takes some must not get these. [HOL-6]
        if self._descriptors and not self._bytes:
            raise FrameError("descriptors that no frame announced", fatal=True)

    def close(self) -> None:
        """Close descriptors that nobody has taken."""
        self._close(self._descriptors)
        self._descriptors.clear()
        self._bytes.clear()


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Json]]) -> JsonObject:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name appears twice")
    return fields


def _parse(body: bytes) -> JsonObject:
    try:
        fields: Json = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not a JSON object: {type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise FrameError("not a JSON object")
    return fields
