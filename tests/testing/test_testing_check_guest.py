"""check_guest lets good guests pass and names the law that each of these broken ones breaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sterna.errors import GuestError
from sterna.guest.api import StateSection
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode, StateKind, Transfer
from sterna.testing import check_guest

PARAMETERS = WorkloadParameters(seed=5, pages=256, hot_pages=64, cold_every=4, block_pages=8, zero_pages=16)
RATE_BYTES_S = 1000 * PAGE_BYTES


async def check(source=SimulatedSourceGuest, room=SimulatedDestinationGuest, **arguments):
    """check_guest over a pair of classes, with time that `advance` makes."""
    made = []

    async def make_source():
        made.append(source(PARAMETERS, rate_bytes_s=RATE_BYTES_S, **arguments))
        return made[-1]

    async def make_destination():
        made.append(room(rate_bytes_s=RATE_BYTES_S))
        return made[-1]

    async def run_for(seconds):
        for guest in made:
            guest.advance(seconds)

    async def audit(guest):
        return guest.workload.errors + guest.workload.audit().errors

    await check_guest(make_source, make_destination, run_for=run_for, step_s=0.01, audit=audit)
    return made


@pytest.mark.parametrize("arguments", [{}, {"precise": False}, {"region_pages": (8, 240, 8)}])
async def test_the_simulated_guest_passes(arguments):
    source, *rooms, last, other = await check(**arguments)
    assert source.released
    assert [room.discarded for room in rooms] == [True, True, True, False, True]
    assert not other.running
    for room in (rooms[-2], last):
        assert room.running
        assert room.workload.audit().errors == 0


async def test_a_guest_that_cannot_post_copy_passes_without():
    made = await check(room=lambda **arguments: SimulatedDestinationGuest(can_post_copy=False, **arguments))
    assert [type(guest) for guest in made].count(SimulatedSourceGuest) == 1
    assert [room.discarded for room in made[1:]] == [True, True, True, False, True]


async def test_time_is_trio_s_by_default(autojump_clock):
    import trio

    from sterna.testing import run_workload

    async with trio.open_nursery() as nursery:

        async def make_source():
            guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=RATE_BYTES_S)
            nursery.start_soon(run_workload, guest)
            return guest

        async def make_destination():
            guest = SimulatedDestinationGuest(rate_bytes_s=RATE_BYTES_S)
            nursery.start_soon(run_workload, guest)
            return guest

        await check_guest(make_source, make_destination)
        nursery.cancel_scope.cancel()


class LyingTracker(SimulatedSourceGuest):
    """Loses the last page of every answer."""

    async def collect_dirty(self):
        dirty = dict(await super().collect_dirty())
        starts, counts = dirty[0].runs()
        dirty[0].clear(int(starts[-1] + counts[-1] - 1))
        return dirty


class ForgetfulTracker(SimulatedSourceGuest):
    """Forgets what was written just before a collect, as a tracker that clears after it has read does."""

    async def collect_dirty(self):
        dirty = await super().collect_dirty()
        self.machine.advance(0.004)
        self._collected_at = self.workload.count
        return dirty


class SilentTracker(SimulatedSourceGuest):
    async def collect_dirty(self):
        return {}


class StrangeTracker(SimulatedSourceGuest):
    async def collect_dirty(self):
        return {9: PageBitmap(1)}


class ShortTracker(SimulatedSourceGuest):
    async def collect_dirty(self):
        return {0: PageBitmap(100)}


class LatePause(SimulatedSourceGuest):
    """An I/O that was in flight writes a page after the pause."""

    def advance(self, seconds):
        if not self.running and "pause" in self.calls:
            self.machine.memory[100 * PAGE_BYTES] ^= 1
        return super().advance(seconds)


class PauseThatDoesNot(SimulatedSourceGuest):
    async def pause(self):
        pass

    async def save_state(self):
        return (StateSection(StateKind.WORKLOAD, 1, self.workload.to_state()),)


class StateThatCounts(SimulatedSourceGuest):
    async def save_state(self):
        sections = await super().save_state()
        self.workload.errors += 1
        return sections


class StateThatWrites(SimulatedSourceGuest):
    async def save_state(self):
        self.machine.memory[0] += 1
        return await super().save_state()


class StateThatResumes(SimulatedSourceGuest):
    async def save_state(self):
        sections = await super().save_state()
        self.machine.running = len(self.calls) > 0 and self.calls[-2:] == ["save_state", "save_state"]
        return sections


class StateThatKills(SimulatedSourceGuest):
    """Saving is the last thing that it does."""

    async def resume(self):
        if "save_state" not in self.calls:
            await super().resume()


class StateThatHarms(SimulatedSourceGuest):
    """What save_state breaks shows only to the guest."""

    async def resume(self):
        await super().resume()
        if "save_state" in self.calls:
            self.machine.memory[200 * PAGE_BYTES + 80 : 200 * PAGE_BYTES + 88] = 0


class TicksWhilePaused(SimulatedSourceGuest):
    """The CPU state moves on though memory stands still."""

    def advance(self, seconds):
        if not self.running:
            self.workload.errors += 1
        return super().advance(seconds)


class TooMuchState(SimulatedSourceGuest):
    async def save_state(self):
        return (*await super().save_state(), StateSection(StateKind.OPAQUE, 1, bytes(1000)))


class TwoNames(SimulatedSourceGuest):
    def __init__(self, *args, **arguments):
        super().__init__(*args, **arguments)
        self.description = replace(self.description, state_bytes=1 << 20)

    async def save_state(self):
        return (*await super().save_state(),) * 2


class RunsWhenGranted(SimulatedSourceGuest):
    async def mark_granted(self, epoch):
        await super().mark_granted(epoch)
        self.machine.running = self.calls.count("mark_granted") == 2


class RunsWhenRevoked(SimulatedSourceGuest):
    async def revoke_grant(self, epoch):
        await super().revoke_grant(epoch)
        self.machine.running = True


class RunsAfterwards(SimulatedSourceGuest):
    """Both sides run: writes once the destination does."""

    patience = 0

    def advance(self, seconds):
        if self.granted_epoch is not None:
            self.patience += 1
        if self.patience > 1:
            self.machine.memory[5] ^= 1
        return super().advance(seconds)


class Idle(SimulatedSourceGuest):
    def advance(self, seconds):
        return 0


class Changing(SimulatedSourceGuest):
    async def mark_granted(self, epoch):
        await super().mark_granted(epoch)
        self.description = replace(self.description, name=f"granted {len(self.calls)}")


class ShortMemory(SimulatedSourceGuest):
    def memory(self, region):
        return super().memory(region)[:-PAGE_BYTES]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LyingTracker, r"law 1: \d+ pages of region 0 were written and never reported, first \[\d+\]"),
        (ForgetfulTracker, "law 1: .* never reported"),
        (SilentTracker, "law 1: .* never reported"),
        (StrangeTracker, "law 1: collect_dirty reports region 9"),
        (ShortTracker, "law 1: collect_dirty has 100 bits"),
        (Idle, "law 2: the guest writes nothing"),
        (LatePause, "law 2: memory changed while the guest was paused"),
        (PauseThatDoesNot, "law 2: memory changed while the guest was paused"),
        (TicksWhilePaused, "law 2: the state changed"),
        (StateThatCounts, "law 3: saving the state twice"),
        (StateThatWrites, "law 3: save_state changed memory"),
        (StateThatResumes, "law 3: save_state made the guest run"),
        (StateThatKills, "law 3: after save_state and resume the guest does not run on"),
        (StateThatHarms, "law 3: .* audit finds"),
        (TwoNames, "law 3: two state sections"),
        (TooMuchState, "description: 1120 bytes of state"),
        (RunsWhenGranted, "law 4: memory changed after mark_granted"),
        (RunsWhenRevoked, "law 4: revoke_grant"),
        (RunsAfterwards, "law 4: the source's memory changed after run"),
        (Changing, "description: it changed"),
        (ShortMemory, "description: region 0 has 1044480 bytes"),
    ],
)
async def test_a_broken_source_is_caught(source, message):
    with pytest.raises(AssertionError, match=message):
        await check(source)


class LoadThatRuns(SimulatedDestinationGuest):
    async def load_state(self, sections):
        await super().load_state(sections)
        self.machine.running = True


class LoadThatWrites(SimulatedDestinationGuest):
    async def load_state(self, sections):
        await super().load_state(sections)
        self._memory[77] ^= 1


class RefusalThatWrites(SimulatedDestinationGuest):
    async def load_state(self, sections):
        self._memory[77] ^= 1
        await super().load_state(sections)


class TakesStrangers(SimulatedDestinationGuest):
    """Ignores what it does not know."""

    async def load_state(self, sections):
        known = [section for section in sections if section.kind == StateKind.WORKLOAD]
        await super().load_state(known)


class TakesTwice(SimulatedDestinationGuest):
    async def load_state(self, sections):
        await super().load_state(list(dict.fromkeys(sections)))


class WrongCode(SimulatedDestinationGuest):
    async def load_state(self, sections):
        try:
            await super().load_state(sections)
        except GuestError as error:
            raise GuestError(error.detail, ErrorCode.INTERNAL) from error


class Crashes(SimulatedDestinationGuest):
    async def load_state(self, sections):
        (section,) = sections
        await super().load_state((section,))


class NeverRuns(SimulatedDestinationGuest):
    def advance(self, seconds):
        return 0


class LosesAPage(SimulatedDestinationGuest):
    async def take_storage(self) -> None:
        pass

    async def run(self, epoch, runner):
        await super().run(epoch, runner)
        self._memory[200 * PAGE_BYTES : 201 * PAGE_BYTES] = 0


class ReadOnly(SimulatedDestinationGuest):
    def memory(self, region):
        return super().memory(region).toreadonly()


class Dirty(SimulatedDestinationGuest):
    async def reserve(self, description):
        await super().reserve(description)
        self._memory[-1] = 1


class Elsewhere(SimulatedDestinationGuest):
    """Every call of `memory` gives other bytes."""

    def memory(self, region):
        return memoryview(bytearray(super().memory(region)))


class NoDiscard(SimulatedDestinationGuest):
    when = "prepare"

    async def discard(self):
        if self.calls and self.calls[-1] == self.when:
            raise GuestError("not now")


class NoDiscardAtFirst(NoDiscard):
    async def discard(self):
        self._reserved()


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (LoadThatRuns, "law 5: load_state made the guest run"),
        (LoadThatWrites, "law 5: load_state changed memory"),
        (RefusalThatWrites, "law 5: memory changed by a refused state"),
        (TakesStrangers, "law 5: a section of unknown kind beside the good ones was accepted"),
        (TakesTwice, "law 5: a section twice was accepted"),
        (WrongCode, "law 5: .*: refused with INTERNAL"),
        (Crashes, "law 5: .*: ValueError instead of a GuestError"),
        (NeverRuns, "law 6: after run the guest does not run"),
        (LosesAPage, "law 6: .* audit finds"),
        (ReadOnly, "memory: region 0: not writable"),
        (Dirty, "memory: region 0 does not read as zeros"),
        (Elsewhere, "memory: the destination's reads differently"),
        (NoDiscard, "law 7: discard after prepare"),
        (NoDiscardAtFirst, "law 7: discard after nothing"),
    ],
)
async def test_a_broken_destination_is_caught(room, message):
    with pytest.raises(AssertionError, match=message):
        await check(room=room)


class TellsUnknownFromBad(SimulatedDestinationGuest):
    async def load_state(self, sections):
        if any(section.kind != StateKind.WORKLOAD for section in sections):
            raise GuestError("a section of a kind that is unknown here", ErrorCode.UNKNOWN_STATE)
        await super().load_state(sections)


async def test_unknown_state_is_a_refusal_too():
    """[STA-6] [CON-51]"""
    await check(room=TellsUnknownFromBad)


class RevokesOnlyGrants(SimulatedSourceGuest):
    async def revoke_grant(self, epoch):
        if self.granted_epoch is None:
            raise GuestError("nothing was granted")
        await super().revoke_grant(epoch)


async def test_a_grant_that_was_not_made_can_be_revoked():
    """[ONE-19] An endpoint does not know how far a `mark_granted` came that failed."""
    with pytest.raises(GuestError, match="nothing was granted"):
        await check(RevokesOnlyGrants)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": b"short"}, "the id has 5 bytes"),
        ({"regions": ()}, "there are no regions"),
        ({"granule_log2": 11}, r"granule 2\*\*11"),
        ({"granule_log2": 17}, r"granule 2\*\*17"),
        ({"size_bytes": 0}, "is empty"),
        ({"address": 100}, "not aligned"),
        ({"address": (1 << 64) - 4096}, "ends outside"),
    ],
)
async def test_a_description_that_no_frame_can_carry_is_caught(changes, message):
    class Described(SimulatedSourceGuest):
        def __init__(self, *args, **arguments):
            super().__init__(*args, **arguments)
            whole = {name: value for name, value in changes.items() if name in {"id", "regions"}}
            region = {name: value for name, value in changes.items() if name not in whole}
            if region:
                whole["regions"] = (replace(self.description.regions[0], **region),)
            self.description = replace(self.description, **whole)

    with pytest.raises(AssertionError, match=f"description: .*{message}"):
        await check(Described)


@pytest.mark.parametrize(
    ("number", "address", "message"),
    [(0, 1 << 50, "id appears twice"), (1, 4096, "region 1 overlaps another")],
)
async def test_regions_that_collide_are_caught(number, address, message):
    class Colliding(SimulatedSourceGuest):
        def __init__(self, *args, **arguments):
            super().__init__(*args, **arguments)
            (region,) = self.description.regions
            more = replace(region, id=number, address=address)
            self.description = replace(self.description, regions=(region, more))

    with pytest.raises(AssertionError, match=message):
        await check(Colliding)


async def test_a_tracker_without_a_name_is_caught():
    class Nameless(SimulatedSourceGuest):
        tracker = ""

    with pytest.raises(AssertionError, match="the tracker has no name"):
        await check(Nameless)


class Stateless(SimulatedSourceGuest):
    """A guest that has a device region and keeps its whole state in memory."""

    def __init__(self, *args, **arguments):
        super().__init__(*args, **arguments)
        device = replace(self.description.regions[0], id=7, address=1 << 50, transfer=Transfer.OPAQUE)
        self.description = replace(self.description, regions=(*self.description.regions, device))
        self._first_pages[7] = 0

    async def save_state(self):
        return ()


class StatelessRoom(SimulatedDestinationGuest):
    def _check(self, description):
        self.wanted = description

    async def reserve(self, description):
        await super().reserve(replace(description, regions=description.regions[:1]))

    async def load_state(self, sections):
        if sections:
            raise GuestError("no state is known here", ErrorCode.STATE_REJECTED)

    async def take_storage(self) -> None:
        pass

    async def run(self, epoch, runner):
        self.has_run = True

    def advance(self, seconds):
        if self.has_run:
            np.frombuffer(self._memory, np.uint64)[0] += 1
        return 0


async def test_regions_that_are_not_copied_and_missing_state_are_legal():
    guest, room = Stateless(PARAMETERS, rate_bytes_s=RATE_BYTES_S), []

    async def make_source():
        return guest

    async def make_destination():
        room.append(StatelessRoom(can_post_copy=False))
        return room[-1]

    async def run_for(seconds):
        for each in (guest, *room):
            each.advance(seconds)

    await check_guest(make_source, make_destination, run_for=run_for, step_s=0.01)
    assert guest.released


class Ignorant(SimulatedSourceGuest):
    """Takes its cold pages, of which few are written again, for some that never were."""

    async def unwritten(self):
        bitmap = PageBitmap(PARAMETERS.pages)
        bitmap.set(PARAMETERS.hot_pages, PARAMETERS.cold_pages)
        return {self.description.regions[0].id: bitmap}


class Knowing(SimulatedSourceGuest):
    """Knows its zero pages."""

    async def unwritten(self):
        bitmap = PageBitmap(PARAMETERS.pages)
        bitmap.set(PARAMETERS.pages - PARAMETERS.zero_pages, PARAMETERS.zero_pages)
        return {self.description.regions[0].id: bitmap}


async def test_pages_that_were_never_written_are_rightly_told():
    await check(Knowing)


async def test_pages_that_were_written_and_are_told_as_unwritten():
    with pytest.raises(AssertionError, match="law 1"):
        await check(Ignorant)
