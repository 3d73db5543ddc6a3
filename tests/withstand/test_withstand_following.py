"""Peers that misuse what comes after RUNNING: requests without end or outside of memory, pages out of place.

The victim is one of two real machines with real (simulated) guests, led by an honest peer until the guest
runs at the destination and its pages are still at the source. From there on neither side can end the guest:
whatever the peer says, the destination's guest runs on [CON-64], the source keeps its image [ONE-38] [CMP-2].

Published bugs of this class: none that we have found.

[PCY-1] [PCY-7] [PCY-8] [PCY-9] [PCY-15] [PCY-18] [PCY-19] [PCY-21] [CMP-1] [CMP-3] [FRM-17] [FRM-18] [BMP-8]
[MEM-5] [STR-11]
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings
from sterna.core.tables import DestinationState, SourceState
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import BitmapEncoding, Encoding, ErrorCode, Style
from sterna.testing.pair import Pair, source_config_of
from sterna.wire import make_runs, unchecked
from sterna.wire import records as r

PAGES = 256
PARAMETERS = WorkloadParameters(seed=3, pages=PAGES, hot_pages=64, block_pages=8, zero_pages=16)
GROWTH_BYTES = 4 << 20
C = ErrorCode


class Siege:
    """Two machines, of which one is under attack by the other's connection."""

    def __init__(self, role: str, switchover: str = "post-copy") -> None:
        guest = SimulatedSourceGuest(PARAMETERS)
        policy = PolicySettings(switchover=switchover, max_rounds=1)
        config = source_config_of(guest.description, epoch=5, policy=policy)
        self.pair = Pair(guest, SimulatedDestinationGuest(), source_config=config)
        self.pair.start()
        self.role = role
        self.machine = self.pair.source if role == "source" else self.pair.destination
        self.said = bytearray()

    def until(self, state: SourceState | DestinationState, chunk: int = 2000) -> Siege:
        """Honestly; what is still under way then is lost."""
        while self.machine.state is not state:
            assert self.pair.step(chunk=chunk), (self.machine.state, self.machine.result)
        return self

    def attack(self, *records: r.Record, bulk: bytes = b"") -> Siege:
        """Frames that the peer says, and what the victim does about them, measured."""
        tracemalloc.start()
        for record in records:
            if self.machine.result is not None:
                break
            sequence = self.machine._lanes.control.reader.next_sequence
            body = unchecked.body(record)
            self.machine.receive_data(
                unchecked.frame(record.type, body, bulk, sequence=sequence), self.pair.now
            )
            self.settle()
        growth = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert growth < GROWTH_BYTES
        return self

    def settle(self) -> None:
        """It does all that it wants to do, and its words go nowhere."""
        while self.pair.perform(self.role, self.machine):
            pass
        while buffers := self.machine.poll_transmit(self.pair.now):
            data = b"".join(map(bytes, buffers))
            self.machine.transmitted(len(data), self.pair.now)

    def ended(self, code: ErrorCode) -> None:
        """By this code; and the guest is where it has to be."""
        result = self.machine.result
        assert result is not None, self.machine.state
        assert result.code is code, result
        assert not self.pair.source_guest.running
        if self.role == "source":
            assert result.outcome is Outcome.MOVED
            assert not self.pair.source_guest.released
        else:
            assert result.outcome is Outcome.STRANDED
            assert self.pair.destination_guest.running


def serving() -> Siege:
    return Siege("source").until(SourceState.MOVED)


def fetching() -> Siege:
    siege = Siege("destination").until(DestinationState.FETCHING)
    siege.pair.to_destination.clear()
    return siege


# ---- requests ----


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (r.PageRequest(0, PAGES, 1), C.OUTSIDE_REGION),
        (r.PageRequest(0, 0, PAGES + 1), C.OUTSIDE_REGION),
        (r.PageRequest(0, PAGES - 1, 2), C.OUTSIDE_REGION),
        (r.PageRequest(7, 0, 1), C.OUTSIDE_REGION),
        (r.PageRequest((1 << 32) - 1, 0, 1), C.OUTSIDE_REGION),
        (r.PageRequest(0, (1 << 64) - 1, 2), C.BAD_VALUE),
        (r.PageRequest(0, 0, (1 << 64) - 1), C.BAD_VALUE),
        (r.PageRequest(0, 1 << 52, 1), C.BAD_VALUE),
        (r.PageRequest(0, 0, 0), C.BAD_VALUE),
    ],
)
def test_pages_outside_of_memory_are_asked_for(request_, code) -> None:
    serving().attack(request_).ended(code)


def test_the_same_page_is_asked_for_a_million_times() -> None:
    """It is answered some times, and then that is enough: nothing grows with it."""
    serving().attack(*[r.PageRequest(0, 5, 1)] * 1000).ended(C.LIMIT_RATE)


def test_everything_is_asked_for_without_reading_an_answer() -> None:
    """Requests that nobody has answered yet are bounded by what this side has announced."""
    siege = serving()
    requests = [r.PageRequest(0, page % PAGES, 1, urgent=page % 2 == 0) for page in range(1000)]
    for request in requests:
        if siege.machine.result is not None:
            break
        sequence = siege.machine._lanes.control.reader.next_sequence
        frame = unchecked.frame(request.type, unchecked.body(request), sequence=sequence)
        siege.machine.receive_data(frame, siege.pair.now)
    siege.settle()
    siege.ended(C.LIMIT_RATE)


def test_all_memory_is_asked_for_at_once() -> None:
    """One request, in as many small batches as it takes; and then once more."""
    siege = serving().attack(*[r.PageRequest(0, 0, PAGES)] * 3)
    assert siege.machine.state is SourceState.MOVED
    assert siege.machine._serving.stats().repeated <= 3 * PAGES


@pytest.mark.parametrize("digest", [b"\0" * 16, b"\xff" * 16])
def test_complete_is_said_before_it_is_true(digest) -> None:
    """A source that believed it would free the only copy of pages that a guest needs."""
    siege = serving()
    siege.attack(r.Complete(6, digest)).ended(C.MEMORY_MISMATCH)


def test_complete_with_the_digest_of_seal() -> None:
    """[CMP-1] The one digest that its peer knows already."""
    siege = Siege("source").until(SourceState.MOVED)
    siege.attack(r.Complete(6, siege.machine._sealed)).ended(C.MEMORY_MISMATCH)


# ---- pages ----


def pages(
    *runs: tuple[int, int], attempt: int = 1, round_: int = 2, damage: bool = False
) -> tuple[r.Pages, bytes]:
    """A PAGES frame with these runs of bytes that are nobody's."""
    memory = memoryview(bytearray(b"\xee") * (PAGES * 4096))

    source = RegionPages(RegionTable([r.Region(0, 0, PAGES * 4096)]), {0: memory})
    starts, counts = zip(*runs, strict=True)
    batch = source.encode(0, starts, counts, whole=True)
    bulk = bytearray(b"".join(map(bytes, batch.buffers)))
    if damage:
        bulk[0] ^= 1
    return batch.table(attempt, round_), bytes(bulk)


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        (((0, 15),), C.BAD_VALUE),
        (((0, 17),), C.BAD_VALUE),
        (((1, 15),), C.BAD_VALUE),
        (((0, 32),), C.BAD_VALUE),
        (((0, 16), (16, 8)), C.BAD_VALUE),
        (((0, PAGES),), C.BAD_VALUE),
    ],
)
def test_groups_that_are_not_whole(runs, code) -> None:
    table, bulk = pages(*runs)
    fetching().attack(table, bulk=bulk).ended(code)


@pytest.mark.parametrize(
    ("attempt", "round_", "code"),
    [(1, 1, C.BAD_ROUND), (1, 3, C.BAD_ROUND), (2, 2, C.BAD_ATTEMPT), (0, 2, C.BAD_ATTEMPT)],
)
def test_pages_of_another_round_or_attempt(attempt, round_, code) -> None:
    table, bulk = pages((0, 16), attempt=attempt, round_=round_)
    fetching().attack(table, bulk=bulk).ended(code)


def test_damaged_pages_without_end() -> None:
    """They are asked for again a few times. None of them is ever the guest's to read."""
    siege = fetching()
    table, bulk = pages((0, 16), damage=True)
    siege.attack(*[table] * 20, bulk=bulk).ended(C.PAGE_HASH)
    assert siege.pair.destination_guest._stale.missing()[0].count() == PAGES


def test_an_installed_page_is_not_overwritten() -> None:
    """[STR-11] However often, and with whatever content."""
    siege = fetching()
    table, bulk = pages((0, 16))
    siege.attack(table, bulk=bulk)
    memory = siege.pair.destination_guest.memory(0)
    memory[:4] = b"mine"
    siege.attack(*[table] * 50, bulk=bulk)
    assert bytes(memory[:4]) == b"mine"
    assert siege.machine.state is DestinationState.FETCHING


def test_pages_where_nothing_was_stale() -> None:
    """[PCY-21] The guest has written nothing, so nothing follows."""
    siege = Siege("destination", "bitmap").until(DestinationState.READY).until(DestinationState.RUNNING, 40)
    table, bulk = pages((32, 16), round_=3)
    siege.attack(table, bulk=bulk)
    assert siege.machine.result.code is C.UNEXPECTED_FRAME
    assert siege.pair.destination_guest.running


def test_a_run_of_zeros_for_a_part_of_a_group() -> None:
    runs = make_runs([(0, 3, Encoding.ZERO)], 12)
    table = r.Pages(1, 2, 0, runs, np.empty(0, dtype=np.uint64))
    fetching().attack(table).ended(C.BAD_VALUE)


# ---- bitmaps ----


def ready() -> Siege:
    """In a bitmap switchover, before the blackout's round."""
    return Siege("destination", "bitmap").until(DestinationState.READY)


BITMAP = r.DirtyBitmap(1, 0, 8, 8, BitmapEncoding.PLAIN, b"\xff")


@pytest.mark.parametrize(
    ("bitmaps", "code"),
    [
        ((BITMAP, BITMAP), C.OVERLAPPING_RUNS),
        ((BITMAP, r.DirtyBitmap(1, 0, 0, 8, BitmapEncoding.PLAIN, b"\xff")), C.OVERLAPPING_RUNS),
        ((BITMAP, r.DirtyBitmap(1, 0, 15, 8, BitmapEncoding.PLAIN, b"\xff")), C.OVERLAPPING_RUNS),
        ((r.DirtyBitmap(1, 0, PAGES - 4, 8, BitmapEncoding.PLAIN, b"\xff"),), C.OUTSIDE_REGION),
        ((r.DirtyBitmap(1, 9, 0, 8, BitmapEncoding.PLAIN, b"\xff"),), C.OUTSIDE_REGION),
        ((r.DirtyBitmap(2, 0, 0, 8, BitmapEncoding.PLAIN, b"\xff"),), C.BAD_ATTEMPT),
        ((r.DirtyBitmap(1, 0, 0, 1 << 60, BitmapEncoding.RUNS, b""),), C.BAD_VALUE),
    ],
    ids=["twice", "backwards", "overlapping", "beyond", "no-region", "attempt", "endless"],
)
def test_bitmaps_that_contradict_each_other(bitmaps, code) -> None:
    """Before LOADED everything is freed, and the guest runs on at the source."""
    siege = ready().attack(r.Round(1, 2, 0), r.RoundEnd(1, 2, 0, 0), *bitmaps)
    assert siege.machine.result.code is code
    assert siege.machine.result.outcome is Outcome.ROLLED_BACK
    assert siege.pair.destination_guest.discarded


def test_a_style_that_changes_behind_the_destination_s_back() -> None:
    """[PCY-21] SWITCHOVER for stop-and-copy, and then a bitmap."""
    siege = Siege("destination", "bitmap").until(DestinationState.RECEIVING).until(DestinationState.STANDBY)
    siege.attack(r.Switchover(1, Style.STOP_AND_COPY), r.Round(1, 2, 0), r.RoundEnd(1, 2, 0, 0), BITMAP)
    assert siege.machine.result.code is C.UNEXPECTED_FRAME
    assert siege.pair.destination_guest.discarded
