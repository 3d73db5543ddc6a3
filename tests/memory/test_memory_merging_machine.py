"""A pager, an endpoint and a guest in any order: what the guest has seen of a page is never taken back.

Over real memory files and locks. Whatever comes, is lost, comes damaged or dies, in the end every page has
the content of the source, or what the guest has made of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xxhash import xxh3_64_intdigest

from late_support import Bitmaps
from sterna.guest.early_pages import EarlyPages
from sterna.guest.holder_bitmaps import bits_of, set_bits
from sterna.linux.memfd import MemoryFile
from sterna.memory.groups import Groups
from sterna.memory.merging import Merging
from sterna.memory.pages import RegionPages
from sterna.memory.regions import PageSets, RegionTable
from sterna.memory.unpacking import Unpacking
from sterna.registry import Encoding
from sterna.wire.records import RUN_DTYPE, Pages, Region

PAGE = 4096
PAGES = 40
REGION = Region(5, 0, PAGES * PAGE)
TABLE = RegionTable((REGION,))
# Some chunks are zero, and the others have a zero page in them.
SOURCE = [
    bytes(PAGE) if page % 7 == 3 or page // 16 % 3 == 1 else Random(page).randbytes(PAGE)
    for page in range(PAGES)
]
PAGE_NUMBERS = st.integers(0, PAGES - 1)


class KilledError(Exception):
    """The pager dies here."""


class Deadly:
    """Where a page belongs, at which its writer dies when half of it is written."""

    def __init__(self, place: memoryview) -> None:
        self.place = place

    def __setitem__(self, part: slice, data: memoryview) -> None:
        self.place[: PAGE // 2] = data[: PAGE // 2]
        raise KilledError


@dataclass
class Coming:
    """A table that was announced."""

    table: Pages
    groups: list[int]
    targets: list[memoryview]


class Machine(RuleBasedStateMachine):
    """A region of which some pages are stale, while its guest runs."""

    @initialize(pages=st.sets(PAGE_NUMBERS, min_size=1), all_=st.booleans())
    def begin(self, pages: set[int], all_: bool) -> None:
        stale = PageSets(TABLE)
        for page in range(PAGES) if all_ else pages:
            stale[5].set(page)
        self.groups = Groups(stale)
        self.missing = set(range(len(self.groups)))
        self.file = MemoryFile("test", REGION.size_bytes)
        self.memory = self.file.map().view
        self.memory[:] = b"o" * len(self.memory)
        self.content = {page: b"o" * PAGE for page in range(PAGES) if page not in stale[5]}
        runs = zip(*(part.tolist() for part in stale[5].runs()), strict=True)
        self.bitmaps = Bitmaps((REGION,), *((5, first, count) for first, count in runs))
        self.coming: list[Coming] = []
        self.arrived: set[int] = set()
        self.pager: EarlyPages | None = None
        self.attach()

    def attach(self) -> None:
        pages = RegionPages(TABLE, {5: self.memory}, fresh=False)
        self.merging = Merging(pages, self.bitmaps.endpoint)
        self.sink = Unpacking(self.merging)

    def place(self, page: int) -> memoryview:
        return self.memory[page * PAGE : (page + 1) * PAGE]

    # ---- the endpoint ----

    @rule(data=st.data(), many=st.booleans())
    def announce(self, data: st.DataObject, many: bool) -> None:
        """Bytes of some groups begin to come."""
        if free := sorted(self.missing - {group for each in self.coming for group in each.groups}):
            chosen = (
                free if many else sorted(data.draw(st.sets(st.sampled_from(free), min_size=1, max_size=3)))
            )
            self.start(chosen)

    def start(self, groups: Iterable[int]) -> None:
        groups = list(groups)
        table = self.table(groups)
        targets = self.sink.targets(table) if table.bulk_bytes else []
        for target in targets:
            target[: len(target) // 2] = b"?" * (len(target) // 2)
        self.coming.append(Coming(table, groups, targets))

    def table(self, groups: list[int]) -> Pages:
        runs, hashes = np.zeros(len(groups), RUN_DTYPE), []
        for row, group in enumerate(groups):
            first, count = self.groups.run(group)
            content = b"".join(SOURCE[first : first + count])
            if any(content):
                runs[row] = first, count, len(content), Encoding.RAW, (0,) * 7
                hashes.append(xxh3_64_intdigest(content))
            else:
                runs[row] = first, count, 0, Encoding.ZERO, (0,) * 7
        return Pages(1, 1, 5, runs, np.array(hashes, np.uint64))

    @precondition(lambda self: self.coming)
    @rule(data=st.data(), damaged=st.booleans())
    def arrive(self, data: st.DataObject, damaged: bool) -> None:
        """The bytes of a table are there."""
        self.finish(self.coming.pop(data.draw(st.integers(0, len(self.coming) - 1))), damaged=damaged)

    def finish(self, coming: Coming, *, damaged: bool) -> None:
        bulk = [
            b"".join(SOURCE[first : first + count]) for first, count, size, _ in coming.table.rows if size
        ]
        for target, content in zip(coming.targets, bulk, strict=True):
            target[:] = content
        if damaged and coming.targets:
            coming.targets[0][-1] ^= 1
        rejected = {
            page
            for each in self.sink.commit(coming.table)
            for page in range(each.first, each.first + each.count)
        }
        assert bool(rejected) == (damaged and bool(coming.targets))
        good = {group for group in coming.groups if self.groups.run(group)[0] not in rejected}
        self.missing -= good
        self.arrived |= good

    @rule()
    def install(self) -> None:
        """What has arrived is noted, and the guest may touch it."""
        for first, count in map(self.groups.run, self.arrived):
            set_bits(self.bitmaps.file.words(5), first, count)
            for page in range(first, first + count):
                self.content.setdefault(page, SOURCE[page])
        self.arrived.clear()

    @precondition(lambda self: self.coming)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A connection is gone with what was under way on it."""
        self.coming.pop(data.draw(st.integers(0, len(self.coming) - 1)))

    @rule()
    def take_over(self) -> None:
        """The endpoint dies, and its pager with it; another goes on."""
        self.kill()
        self.coming.clear()
        self.missing |= self.arrived
        self.arrived.clear()
        self.bitmaps.endpoint.close()
        self.bitmaps.endpoint = self.bitmaps.attach()
        self.attach()

    # ---- the pager ----

    @rule(page=PAGE_NUMBERS, dies=st.booleans())
    def bring(self, page: int, dies: bool) -> None:
        """A page that was asked for comes; the pager may die when half of it is written."""
        self.pager = self.pager or self.bitmaps.fork()
        place, data = self.place(page), memoryview(SOURCE[page])
        note = xxh3_64_intdigest(data)
        was_there = page in self.content
        try:
            done = self.pager.install(5, page, data, note, Deadly(place) if dies else place)  # type: ignore[arg-type]
        except KilledError:
            assert not was_there
            self.kill()
            return
        here = {group for group in self.arrived if group in self.groups.covering(5, page, 1)}
        assert not (done and (was_there or here))  # [PCY-33]
        if done:
            assert self.place(page) == SOURCE[page]
            self.content[page] = SOURCE[page]
            self.write(page, b"g")

    @rule()
    def kill(self) -> None:
        """The pager dies."""
        if self.pager is not None:
            self.pager.close()
            self.pager = None

    # ---- the guest ----

    @rule(page=PAGE_NUMBERS, value=st.binary(min_size=1, max_size=1))
    def write(self, page: int, value: bytes) -> None:
        """The guest writes a page that it may touch."""
        if page in self.content:
            self.content[page] = value * PAGE
            self.place(page)[:] = self.content[page]

    @invariant()
    def what_the_guest_may_touch_is_as_it_knows_it(self) -> None:
        """[PCY-32]"""
        for page, content in self.content.items():
            assert self.place(page) == content
            assert bits_of(self.bitmaps.file.words(5), page, 1) or bits_of(
                self.bitmaps.file.words(5, 1), page, 1
            )

    def teardown(self) -> None:
        """Everything comes."""
        if not hasattr(self, "bitmaps"):
            return
        self.kill()
        for coming in self.coming:
            self.finish(coming, damaged=False)
        if self.missing:
            self.start(sorted(self.missing))
            self.finish(self.coming[-1], damaged=False)
        self.install()
        assert self.content.keys() == set(range(PAGES))
        self.what_the_guest_may_touch_is_as_it_knows_it()
        self.bitmaps.close()
        self.file.close()


TestMachine = pytest.mark.slow(Machine.TestCase)
TestMachine.settings = settings(deadline=None)
