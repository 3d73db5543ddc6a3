"""A destination process that dies, and the one that goes on, without an event loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from arrival import completed
from core_support import EPOCH, HERE
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sterna.core.destination import DestinationMachine
from sterna.core.duties import NoRecords, pages_of, reserve
from sterna.core.events import SessionResumed
from sterna.core.image_notes import ImageNotes
from sterna.core.policy import PolicySettings
from sterna.core.records import Complete
from sterna.core.reopening import Opening, pages_left
from sterna.core.tables import DestinationState
from sterna.errors import GuestError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.memory.pages import RegionPages
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Style
from sterna.testing import pair as pairs
from sterna.testing.pair import ADMISSION, RUNNER, Pair, resuming_pair, run_now
from sterna.wire.records import Region

MIB = 1 << 20
SLOW = 4.0 * MIB  # converges in whatever style, after whatever loss
PARAMETERS = WorkloadParameters(seed=7, pages=1024, hot_pages=256, cold_every=4, block_pages=8, zero_pages=64)
BOTH = pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])


def migration(switchover: str, rate_bytes_s: float = 400.0 * MIB) -> Pair:
    """Guests that write while they run."""
    journal: list = []
    source = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=rate_bytes_s)
    source.machine.journal = journal
    destination = SimulatedDestinationGuest(rate_bytes_s=rate_bytes_s, journal=journal)

    def between(pair: Pair) -> None:
        pair.now += 0.01
        source.advance(0.01)
        destination.advance(0.01)

    policy = PolicySettings(switchover=switchover, max_rounds=3)
    return resuming_pair(source, destination, between=between, epoch=EPOCH, runner=HERE, policy=policy)


def opening_of(pair: Pair) -> Opening:
    """What a host notes of the session when there is room for the guest."""
    machine = pair.destination
    assert machine.ticket is not None
    assert machine._guest is not None
    return Opening(machine.ticket.hello, machine.ticket.welcome, machine._guest, machine.runner)


def die(pair: Pair, opening: Opening) -> None:
    """The destination's process is gone; the source has lost the link, and a new process is there."""
    pair.destination = DestinationMachine(pair._configs[1], pair.now)
    pair.linked = False
    pair.to_destination.clear()
    pair.source.connection_lost(None, pair.now)
    guest = pair.destination_guest
    if guest.running:
        pages = pages_of(guest, pair.source_guest.description, pages_left)
        place, missing = run_now(guest.notes()), run_now(guest.missing())
        pair.kept = opening.with_guest(pages, place, missing, pair.now)
    else:
        run_now(guest.discard())
        pages = run_now(reserve(guest, pair.source_guest.description))
        pair.kept = opening.without_round(pages, pair.now)
    assert pair.kept.account.resumable  # whatever becomes of the next connection
    pair.reconnect()


def test_an_opening_is_all_that_was_agreed_on():
    """[RES-2] [LIM-8]"""
    pair = migration("bitmap")
    pair.start()
    while pair.destination.state is not DestinationState.STANDBY:
        assert pair.step(chunk=100_000)
    opening = opening_of(pair)
    assert opening.ticket == pair.destination.ticket
    assert opening.admission == ADMISSION
    assert opening.runner == RUNNER


@BOTH
def test_the_next_process_goes_on_with_a_guest_that_runs(switchover):
    """[RES-13] [PCY-16] [PCY-14] Twice; what was installed is not sent again, and nothing is begun anew."""
    pair = migration(switchover)
    pair.start()
    while pair.destination.state is not DestinationState.FETCHING:
        assert pair.step(chunk=100_000)
    opening, missing = opening_of(pair), []
    for _ in range(2):
        for _ in range(20):
            assert pair.step(chunk=20_000)
        missing.append(sum(each.count() for each in run_now(pair.destination_guest.missing()).values()))
        die(pair, opening)
    assert missing[0] > missing[1] > 0
    pair.run(chunk=100_000, steps=200_000)
    completed(pair)
    here, there = pair.source.result, pair.destination.result
    assert here.resumed == 2
    assert there.style is (Style.BITMAP if switchover == "bitmap" else Style.POST_COPY)
    assert there.after.demanded + there.after.pushed == there.after.stale == here.after.stale
    told = [each.complete_round for each in pair.events["source"] if isinstance(each, SessionResumed)]
    assert told == [len(here.rounds)] * 2


def test_what_is_missing_need_not_be_zero():
    """[RES-13] Memory that another process has begun to fill is overwritten, with zeros too."""
    table, memory = RegionTable((Region(0, 0, 2 * 4096),)), bytearray(b"o" * 8192)
    runs = [RegionPages(table, {0: memoryview(bytes(8192))}).encode(0, [1], [1]).table(1, 1)]
    assert pages_left(table, {0: memoryview(memory)}).commit(*runs) == []
    assert memory == b"o" * 4096 + bytes(4096)


class _DiedError(Exception):
    """The process was killed."""


@BOTH
def test_a_process_that_dies_with_the_last_page_installed(switchover, monkeypatch):
    """[RES-13] [PCY-16] [ONE-39] The next one finds nothing missing, and says COMPLETE."""

    class Dying(NoRecords):
        async def persist(self, record):
            if isinstance(record, Complete):
                raise _DiedError

    pair = migration(switchover)
    pair.start()
    while pair.destination.state is not DestinationState.STANDBY:
        assert pair.step(chunk=100_000)
    opening = opening_of(pair)
    monkeypatch.setattr(pairs, "NO_RECORDS", Dying())
    with pytest.raises(_DiedError):
        pair.run(chunk=100_000, steps=200_000)
    monkeypatch.undo()
    assert run_now(pair.destination_guest.missing()) == {} or not any(
        each.any() for each in run_now(pair.destination_guest.missing()).values()
    )
    die(pair, opening)
    pair.run(steps=200_000)
    completed(pair)
    assert pair.source.result.resumed == 1


@pytest.mark.parametrize("moment", [DestinationState.STANDBY, DestinationState.RECEIVING])
def test_the_next_process_has_no_round(moment):
    """[RES-7] [RES-8] [RES-9] Everything is sent once more, in the session that there is."""
    pair = migration("stop-and-copy", SLOW)
    pair.start()
    while not pair.source._account.rounds or pair.destination.state is not moment:
        assert pair.step(chunk=20_000)
    die(pair, opening_of(pair))
    pair.run(chunk=100_000, steps=200_000)
    completed(pair)
    (told,) = [each for each in pair.events["source"] if isinstance(each, SessionResumed)]
    assert (told.complete_round, told.pages_missing) == (0, PARAMETERS.pages)


def test_notes_of_another_image_are_none():
    pair = migration("post-copy")
    pair.start()
    while pair.destination.state is not DestinationState.FETCHING:
        assert pair.step(chunk=100_000)
    pages = pages_of(pair.destination_guest, pair.source_guest.description)
    with pytest.raises(GuestError, match="notes"):
        opening_of(pair).with_guest(pages, memoryview(bytes(4096)), {}, pair.now)


def test_pages_that_are_missing_and_never_were_stale():
    """[PCY-16] The notes are of another attempt than the bitmap: nobody can tell what such a page is."""
    pair = migration("post-copy")
    pair.start()
    while pair.destination.state is not DestinationState.FETCHING:
        assert pair.step(chunk=100_000)
    pages = pages_of(pair.destination_guest, pair.source_guest.description)
    place, missing = run_now(pair.destination_guest.notes()), run_now(pair.destination_guest.missing())
    opening = opening_of(pair)
    notes = ImageNotes.read(place, RegionTable(opening.guest.regions), hashed=True)
    region = next(iter(missing))
    stale = replace(notes, stale=PageSets(notes.stale.table))
    stale.move_to(place)
    with pytest.raises(GuestError, match="which are missing"):
        opening.with_guest(pages, place, missing, pair.now)
    assert missing[region].any()


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.sampled_from(["bitmap", "post-copy", "stop-and-copy"]),
    st.lists(st.integers(1, 60), max_size=5),
    st.integers(3_000, 60_000),
)
@example("bitmap", [1, 2, 22, 17, 46], 3000)  # behind a small group the push stood still
def test_wherever_it_dies_the_guest_arrives_whole(switchover, steps, chunk):
    """[same-memory] [one-runner] As long as it has room, and the permission has not come, or was used."""
    pair = migration(switchover, SLOW)
    pair.start()
    for count in steps:
        for _ in range(count):
            pair.step(chunk=chunk)
        if pair.source._can_resume and pair.destination._can_resume:
            die(pair, opening_of(pair))
    pair.run(chunk=100_000, steps=200_000)
    completed(pair)
