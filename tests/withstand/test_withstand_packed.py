"""Compressed pages that are not what they say, and changes of pages that are not there.

A bomb is a frame that decodes to more than its page table says. Tables are bounded before any of it is there,
frames by what they say of themselves and, since that may be untrue, by what comes out; nothing is allocated
for what is not announced. A change of something else than the memory holds is rejected and harms nobody, as
pages that a guest wrote while they were sent do.

Published bugs of this class: Netty's decoder (CVE-2020-11612) allocated whatever a compressed stream came to.

[PGS-16] [PGS-17] [PGS-18] [PGS-19] [PGS-20] [SEC-11] [RAK-5]
"""

from __future__ import annotations

import functools
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import zstandard
from withstand_judge import judge, judge_accepted
from withstand_support import EPOCH, HERE, LIMITS, PARAMETERS, ROLES, Said, Victim, pair, split
from xxhash import xxh3_64_intdigest

from sterna.core import events as e
from sterna.core.destination import DestinationConfig
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.core.session import Session
from sterna.core.tables import DestinationState
from sterna.limits import CHUNK_BYTES, Limits
from sterna.memory.unpacking import Unpacking
from sterna.registry import Encoding, ErrorCode, Feature, FrameType
from sterna.testing.pair import Pair, source_config_of
from sterna.testing.zstd_frames import zeros
from sterna.wire import records as r
from sterna.wire import unchecked

C = ErrorCode
PAGE = 4096
WINDOW_LOG2 = 18
PACKED = {Feature.ENCODING_ZSTD: WINDOW_LOG2, Feature.ENCODING_DELTA: 1 << 20}
EXPANDS = replace(LIMITS, expansion=16384, bulk_bytes=256 * 1024)
LARGE = replace(PARAMETERS, pages=65)
ZSTD = zstandard.ZstdCompressor(level=1)


class PackedPair(Pair):
    """Two sides that agree on packed pages."""

    async def _destination(self, request: e.Request) -> object:
        answer = await super()._destination(request)
        return Unpacking(answer, WINDOW_LOG2) if isinstance(request, e.Reserve) else answer


def packed_pair(limits: Limits) -> PackedPair:
    plain = pair(limits, LARGE)
    config = source_config_of(
        plain.source_guest.description, epoch=EPOCH, runner=HERE, limits=limits, features=offer(more=PACKED)
    )
    takes = DestinationConfig(limits=limits, features=BASE_FEATURES | PACKED.keys())
    return PackedPair(
        plain.source_guest, plain.destination_guest, source_config=config, destination_config=takes
    )


@functools.cache
def recorded(limits: Limits) -> dict[str, tuple[Said, ...]]:
    """An honest migration of theirs."""
    both, heard = packed_pair(limits), {role: bytearray() for role in ROLES}
    deliver = both.deliver

    def hear(pipe: bytearray, machine: Session, count: int | None = None) -> bool:
        heard["source" if machine is both.source else "destination"].extend(pipe)
        return deliver(pipe, machine, count)

    both.deliver = hear  # type: ignore[method-assign]
    both.run()
    return {role: tuple(split(bytes(data))) for role, data in heard.items()}


class PackedVictim(Victim):
    """A destination that takes packed pages, where they may come."""

    def __init__(self, limits: Limits = EXPANDS) -> None:
        super().__init__("destination", limits=limits, parameters=LARGE)
        self.both = packed_pair(limits)
        self.guest, self.room = self.both.source_guest, self.both.destination_guest  # type: ignore[assignment]
        self.machine, self.recorded = self.both.destination, recorded(limits)
        self._moves = self._live()
        self.until(DestinationState.RECEIVING, FrameType.PAGES)

    def send(self, encoding: Encoding, bulk: bytes, content: bytes, *, count: int | None = None) -> Victim:
        """A run of packed pages, from the first on, of which the table says that they are `content`."""
        pages = len(content) // PAGE if count is None else count
        rows = np.array([(0, pages, len(bulk), encoding, (0,) * 7)], r.RUN_DTYPE)
        hashes = [
            xxh3_64_intdigest(content[at : at + CHUNK_BYTES]) for at in range(0, pages * PAGE, CHUNK_BYTES)
        ]
        return self.attack(self.record(r.Pages(1, 1, 0, rows, np.array(hashes, "<u8")), bulk))

    @property
    def memory(self) -> memoryview:
        return self.room.memory(0)


CONTENT = b"\x11" * (40 * PAGE)
FRAME = ZSTD.compress(CONTENT)


def test_honest_pages_are_taken() -> None:
    """So that what follows is refused for what is wrong with it."""
    victim = PackedVictim()
    victim.send(Encoding.ZSTD, FRAME, CONTENT)
    judge_accepted(victim)


@pytest.mark.parametrize(
    ("bulk", "clause"),
    [
        (zeros(len(CONTENT), 64 << 20), "PGS-17"),
        (zeros(len(CONTENT), 100 * 1024), "PGS-17"),
        (ZSTD.compress(bytes(1 << 30)), "PGS-16"),
        (b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x01\0\0" + bytes(40), "PGS-16"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT), "PGS-16"),
        (FRAME + FRAME, "PGS-17"),
        (FRAME + bytes(1), "PGS-17"),
        (FRAME[:-2], "PGS-17"),
        (b"\x50\x2a\x4d\x18" + (40).to_bytes(4, "little") + bytes(40), "PGS-16"),
        (Random(1).randbytes(60), "PGS-16"),
        (b"\x28" + Random(1).randbytes(59), "PGS-16"),
    ],
    ids=[
        "expands to 64 MiB", "decodes to less", "says a GiB", "says all memory", "says nothing", "two frames",
        "a byte behind", "cut", "skippable", "noise", "nearly noise",
    ],
)  # fmt: skip
def test_a_bomb(bulk: bytes, clause: str) -> None:
    """[PGS-16] [PGS-17] [SEC-11] None takes more memory than an honest run; the judge measures."""
    victim = PackedVictim()
    victim.send(Encoding.ZSTD, bulk, CONTENT)
    judge(victim, C.MALFORMED, clause=clause)


def test_a_table_of_a_bomb() -> None:
    """[PGS-18] Refused before its bytes are there."""
    victim = PackedVictim(replace(EXPANDS, expansion=100))
    victim.send(Encoding.ZSTD, FRAME, CONTENT)
    judge(victim, C.LIMIT_EXPANSION, clause="PGS-18")


def test_a_window_that_is_too_wide() -> None:
    """[PGS-16] [SEC-11] Memory that a decoder would hold for nothing."""
    victim = PackedVictim()
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    # Not a single segment, so that the window counts and not the content.
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(CONTENT))
    frame = bytearray(wide.compress(CONTENT) + wide.flush())
    if frame[4] & 0x20:
        frame[4] &= ~0x20
        frame[5:5] = bytes([(27 - 10) << 3])
    victim.send(Encoding.ZSTD, bytes(frame), CONTENT)
    judge(victim, C.MALFORMED, clause="PGS-16")


def change(base: bytes, new: bytes) -> bytes:
    hashes = [xxh3_64_intdigest(base[at : at + CHUNK_BYTES]) for at in range(0, len(base), CHUNK_BYTES)]
    differs = np.bitwise_xor(np.frombuffer(base, np.uint8), np.frombuffer(new, np.uint8))
    return np.array(hashes, "<u8").tobytes() + ZSTD.compress(differs.tobytes())


def test_a_change_of_what_is_there() -> None:
    """[PGS-19]"""
    victim = PackedVictim()
    victim.send(Encoding.DELTA, change(bytes(len(CONTENT)), CONTENT), CONTENT)
    assert victim.memory[: len(CONTENT)] == CONTENT
    judge_accepted(victim)


def test_a_change_of_what_is_not_there() -> None:
    """[PGS-20] Neither taken nor an end: the pages count as rejected, and the memory is as it was."""
    victim = PackedVictim()
    before = bytes(victim.memory)
    victim.send(Encoding.DELTA, change(b"\x22" * len(CONTENT), CONTENT), CONTENT)
    assert victim.memory == before
    judge_accepted(victim)


@pytest.mark.parametrize("size", [1, 23, 24])
def test_a_change_that_is_none(size: int) -> None:
    """[PGS-19] 40 pages have three bases."""
    victim = PackedVictim(replace(EXPANDS, expansion=1 << 20))
    victim.send(Encoding.DELTA, bytes(size), CONTENT)
    judge(victim, C.MALFORMED, clause="PGS-19")


def test_a_change_with_a_bomb_in_it() -> None:
    """[PGS-17] [PGS-19]"""
    victim = PackedVictim()
    bases = change(bytes(len(CONTENT)), CONTENT)[:24]
    victim.send(Encoding.DELTA, bases + zeros(len(CONTENT), 64 << 20), CONTENT)
    judge(victim, C.MALFORMED, clause="PGS-17")


def test_a_run_of_more_pages_than_its_bytes() -> None:
    """[PGS-12] [PGS-18] What the guest has is the most that a table can name."""
    victim = PackedVictim()
    rows = np.array([(0, 1 << 31, 4096, Encoding.ZSTD, (0,) * 7)], r.RUN_DTYPE)
    body = unchecked.body(r.Pages(1, 1, 0, rows, np.zeros(1, "<u8")))
    victim.attack(victim.frame(FrameType.PAGES, body, bytes(4096)))
    judge(victim, C.OUTSIDE_REGION, clause="PGS-7")
