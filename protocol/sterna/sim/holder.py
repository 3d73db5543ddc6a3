"""A holder and the guest in it: a few pages, a count of instructions, and the rules of a holder.

The guest's n-th instruction writes the number n to page n modulo `PAGES`, or zeros if 3 divides n. So its
count tells what its whole memory must be, and whoever compares two counts compares two images: an image with
a lower count is older. With a switchover in which pages follow the guest, it waits before an instruction
whose page is missing.

Memory is the holder's: what endpoints write there outlives them, and is lost with the holder alone. Room is
zero when it is reserved. An endpoint that takes a guest over finds in pages that are missing what the one
before has left [HOL-41]: zeros, what a round before the pause has brought, or the page of the pause already,
if it was not noted as installed. All else is the guest's, and no endpoint reads it. Left out are half of a
group, for which bytes would have to arrive one by one, and early pages, which need a demand connection.

What a holder allows is what `sterna.guest.holder_engine` allows: a paused guest without a mark runs on when
its controller is gone, a marked one does not, a room that was made for a guest never starts by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sterna.memory.bitmap import PageBitmap
from sterna.memory.pages import EncodedBatch, RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import Architecture, StateKind
from sterna.wire.records import NO_RUNNER, Guest, Region, StateSection

PAGES: Final = 4
PAGE_BYTES: Final = 4096
ZERO_EACH: Final = 3
"""One instruction in so many writes zeros."""
REGION: Final = Region(0, 0, PAGES * PAGE_BYTES)
REGIONS: Final = RegionTable((REGION,))
GUEST: Final = Guest("counter", Architecture.SYNTHETIC, 1, 4096, (REGION,))
GUEST_ID: Final = bytes(range(16))


class Stage(Enum):
    """What a holder has of the guest."""

    ROOM = "room, without all of the guest"
    READY = "all of it, and it has never run here"
    RUNS = "a guest that runs"
    STOPPED = "a guest that has run here and is paused"
    FREED = "nothing any more"
    KILLED = "nothing: the holder was killed"


@dataclass(frozen=True, slots=True)
class Remains:
    """What an endpoint finds in the holder of a guest that another one has begun to take in."""

    missing: frozenset[int]
    notes: bytes | None
    memory: bytes = field(default=b"", repr=False)


class Collected(NamedTuple):
    """The pages that the guest has written since the last time, and how many instructions it has executed."""

    pages: tuple[int, ...]
    executed: int


class HolderError(Exception):
    """The holder does not do it."""


@lru_cache(maxsize=4096)
def memory_of(count: int) -> bytes:
    """All of the guest's memory after so many instructions."""
    return b"".join(_version(count, page).to_bytes(8, "little") * (PAGE_BYTES // 8) for page in range(PAGES))


def _version(count: int, page: int) -> int:
    newest = count - (count - page) % PAGES
    return max(newest, 0) if newest % ZERO_EACH else 0


def written(first: int, last: int) -> tuple[int, ...]:
    """The pages that the instructions behind `first`, up to `last`, have written."""
    return tuple(sorted({number % PAGES for number in range(max(first, last - PAGES) + 1, last + 1)}))


def bitmap_of(pages: tuple[int, ...]) -> PageBitmap:
    """These pages, as a collect answers them."""
    found = PageBitmap(PAGES)
    for page in pages:
        found.set(page)
    return found


def state_of(count: int) -> tuple[StateSection, ...]:
    """All state that the guest has besides its memory."""
    return (StateSection(StateKind.OPAQUE, 1, count.to_bytes(8, "little")),)


def count_in(sections: tuple[StateSection, ...]) -> int:
    """What `state_of` was made from."""
    return int.from_bytes(sections[0].data, "little")


class CountingPages:
    """The memory of a guest of which only the count is kept, as a `PageSource`."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder

    def encode(
        self,
        region: int,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        *,
        zeros: bool = True,
        whole: bool = False,
        hashed: bool = True,
    ) -> EncodedBatch:
        """See `sterna.memory.pages.PageSource`."""
        view = memoryview(memory_of(self.holder.count))
        pages = RegionPages(REGIONS, {REGION.id: view})
        return pages.encode(region, starts, counts, zeros=zeros, whole=whole, hashed=hashed)


def new_room() -> tuple[RegionPages, bytearray]:
    """A `PageSink` over fresh memory, and that memory."""
    memory = bytearray(np.zeros(REGION.size_bytes, np.uint8))
    return RegionPages(REGIONS, {REGION.id: memoryview(memory)}), memory


def _page(memory: bytes | bytearray, page: int) -> bytes | bytearray:
    return memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]


_LEFT: Final = b"\xee" * PAGE_BYTES
"""What stands in an endpoint's memory for a page that is the guest's: nobody reads it, or writes there."""


def leave(room: bytearray, pages: Iterable[int]) -> None:
    """Pages are the guest's from now on, in the memory that an endpoint fills."""
    for page in pages:
        room[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = _LEFT


def is_left(room: bytearray, pages: Iterable[int]) -> bool:
    """Whether nobody has written to these pages since."""
    return all(room.startswith(_LEFT, page * PAGE_BYTES) for page in pages)


def pages_in(bitmap: PageBitmap | None) -> frozenset[int]:
    """The pages of a bitmap, none of none."""
    return frozenset(() if bitmap is None else (page for page in range(PAGES) if page in bitmap))


class Holder:
    """One holder.

    Attributes:
        host: where it is.
        image: what it calls the guest that is in it.
        stage: what it has of it.
        count: instructions that the guest in it has executed, here or before it came.
        epoch: under which it has run here last, and `runner` as what; 0 if it never has.
        mark: the epoch that was granted to another host, 0 for none.
        granter: the process that has set the mark.
        controller: the process that is attached, 0 for none.
        intact: whether its memory is what the count says.
        collected: the count up to which writes were collected.
        missing: pages that are to follow the guest and are not there yet.
        paused_at: the count with which the guest came.
        faulted: the page that the guest waits for and the endpoint was told of, -1 for none.
        notes: what an endpoint keeps there for the next one, None for nothing [HOL-45].
        memory: what endpoints have written there, for the next one, with a pattern for what is the guest's.
    """

    __slots__ = (
        "collected", "controller", "count", "epoch", "faulted", "granter", "host", "image", "intact", "mark",
        "memory", "missing", "notes", "paused_at", "runner", "stage",
    )  # fmt: skip

    def __init__(self, host: str, image: bytes, stage: Stage = Stage.ROOM) -> None:
        self.host = host
        self.image = image
        self.stage = stage
        self.count = 0
        self.epoch = 0
        self.runner = NO_RUNNER
        self.mark = 0
        self.granter = 0
        self.controller = 0
        self.intact = True
        self.collected = 0
        self.missing: frozenset[int] = frozenset()
        self.paused_at = 0
        self.faulted = -1
        self.notes: bytearray | bytes | None = None
        self.memory: bytearray | bytes = b""

    def copy(self) -> Holder:
        """One that goes its own way."""
        other = object.__new__(Holder)
        for name in Holder.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def key(self, names: Mapping[int, int]) -> tuple[object, ...]:
        """Equal for holders that behave alike. `names`: of processes that live; the dead are all one."""
        return (
            self.image, self.stage.value, self.count, self.collected, self.paused_at, self.epoch,
            self.runner, self.mark, names.get(self.granter, -1), names.get(self.controller, -1), self.intact,
            self.missing, self.faulted, None if self.notes is None else bytes(self.notes), self._kept_memory,
        )  # fmt: skip

    @property
    def _kept_memory(self) -> tuple[bytes, ...]:
        """What may be read still: all until the guest is sealed, and then what is missing."""
        if self.stage is Stage.ROOM:
            return (bytes(self.memory),)
        read = self.notes is not None and self.stage in {Stage.READY, Stage.RUNS}
        return tuple([bytes(_page(self.memory, page)) for page in sorted(self.missing)]) if read else ()

    @property
    def lives(self) -> bool:
        """Whether it has anything of a guest."""
        return self.stage not in {Stage.FREED, Stage.KILLED}

    @property
    def is_whole(self) -> bool:
        """Whether the guest could be run from it."""
        return self.stage in {Stage.READY, Stage.RUNS, Stage.STOPPED}

    @property
    def waits_for(self) -> int | None:
        """The page that the guest's next instruction writes, if it is missing."""
        page = (self.count + 1) % PAGES
        return page if page in self.missing else None

    # ---- what a controller asks for ----

    def collect(self) -> Collected:
        """The pages written since the last time."""
        pages, self.collected = written(self.collected, self.count), self.count
        return Collected(pages, self.count)

    def set_mark(self, epoch: int, process: int) -> None:
        """Note that `epoch` is granted."""
        if self.mark == epoch:
            return
        if self.stage is not Stage.STOPPED or self.mark or epoch != self.epoch + 1:
            raise HolderError(f"epoch {epoch} cannot be granted")
        self.mark, self.granter = epoch, process

    def take_mark_off(self, process: int) -> None:
        """Only for the process that has set it [HOL-26]."""
        if self.mark and self.granter != process:
            raise HolderError(f"epoch {self.mark} was granted by another")
        self.mark = self.granter = 0

    def may_resume(self) -> None:
        """Whether the guest may run on as before."""
        if self.mark or self.stage not in {Stage.STOPPED, Stage.RUNS}:
            raise HolderError("it is granted, or is no guest that has run here")

    def may_run(self, epoch: int) -> None:
        """Whether it may be run under this epoch."""
        if epoch < max(self.epoch, self.mark):
            raise HolderError(f"the newest epoch is {max(self.epoch, self.mark)}")
        if not self.is_whole or self.stage is Stage.RUNS or (self.stage is Stage.STOPPED and not self.mark):
            raise HolderError(f"run: {self.stage.value}")

    def load(self, count: int, memory: bytes | bytearray) -> None:
        """Take the state of the guest, whose memory is this by now, as far as it is not missing."""
        self.count, self.collected, self.paused_at = count, 0, count
        self.intact = all(self._is_right(page, memory) for page in range(PAGES) if page not in self.missing)
        self.stage = Stage.READY

    def _is_right(self, page: int, memory: bytes | bytearray) -> bool:
        return _page(memory, page) == _page(memory_of(self.paused_at), page)

    def install(self, page: int, memory: bytes | bytearray) -> bool:
        """A missing page is there. Whether it is that of the pause, and was missing: it must be both."""
        right = page in self.missing and self._is_right(page, memory)
        self.missing -= {page}
        return right

    def remains(self) -> Remains:
        """What whoever takes the guest over finds; all that is not missing is the guest's."""
        memory = bytearray(self.memory)
        leave(memory, (page for page in range(PAGES) if page not in self.missing))
        return Remains(self.missing, None if self.notes is None else bytes(self.notes), bytes(memory))

    def free(self, stage: Stage = Stage.FREED) -> None:
        """Let go of all of it, or lose it."""
        self.stage, self.notes, self.memory = stage, None, b""
