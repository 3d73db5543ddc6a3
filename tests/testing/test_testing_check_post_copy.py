"""check_guest, where pages come later: every broken room is caught, and the message names the law."""

from __future__ import annotations

import pytest
import trio

from sterna.errors import GuestError
from sterna.guest.api import WithoutPostCopy
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.testing.check_post_copy import PostCopyCheck, refuses_post_copy
from sterna.wire.records import PageRange

PARAMETERS = WorkloadParameters(seed=5, pages=256, hot_pages=64, cold_every=4, block_pages=8, zero_pages=16)
RATE_BYTES_S = 1000 * PAGE_BYTES


async def check(room: SimulatedDestinationGuest, **arguments: object) -> SimulatedDestinationGuest:
    source = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=RATE_BYTES_S, **arguments)
    source.advance(0.3)
    room.rate_bytes_s = RATE_BYTES_S

    async def run_for(seconds: float) -> None:
        source.advance(seconds)
        room.advance(seconds)

    await PostCopyCheck(source, room, run_for, 0.01).run()
    return room


@pytest.mark.parametrize("region_pages", [(), (8, 240, 8)])
async def test_the_simulated_guest_passes(region_pages: tuple[int, ...]) -> None:
    """[PCY-5] [PCY-12]"""
    room = await check(SimulatedDestinationGuest(), region_pages=region_pages)
    assert room.running
    assert room.workload.errors + room.workload.audit().errors == 0


class HoldsNothing(SimulatedDestinationGuest):
    async def load_state(self, sections):
        await super().load_state(sections)
        self.machine.stale = None


class ForgetsTheLastSet(SimulatedDestinationGuest):
    async def expect(self, stale):
        if self.calls.count("expect") == 5:  # after two bad ones and three that were given up
            self.calls.append("expect")
        else:
            await super().expect(stale)


class TakesAnySet(SimulatedDestinationGuest):
    async def expect(self, stale):
        if 0 in stale and stale[0].bits == 256:
            await super().expect(stale)


class WrongRefusal(SimulatedDestinationGuest):
    async def expect(self, stale):
        try:
            await super().expect(stale)
        except GuestError as error:
            raise GuestError(error.detail) from error


class ExpectWrites(SimulatedDestinationGuest):
    async def expect(self, stale):
        await super().expect(stale)
        self._memory[5] += 1


class Hides(SimulatedDestinationGuest):
    async def missing(self):
        return {0: PageBitmap(256)}


class Silent(SimulatedDestinationGuest):
    async def faults(self):
        await trio.sleep_forever()


class TellsNothing(SimulatedDestinationGuest):
    async def faults(self):
        await super().faults()
        return []


class TellsWhatIsThere(SimulatedDestinationGuest):
    async def faults(self):
        return [*await super().faults(), PageRange(0, 255, 2)]


class TellsAnotherRegion(SimulatedDestinationGuest):
    async def faults(self):
        return [*await super().faults(), PageRange(9, 0, 1)]


class DoesNotLetGo(SimulatedDestinationGuest):
    async def installed(self, region, first, count):
        if "installed" in self.calls:
            await super().installed(region, first, count)
        self.calls.append("installed")
        self.machine.running = False


class StopsInTheEnd(SimulatedDestinationGuest):
    async def installed(self, region, first, count):
        await super().installed(region, first, count)
        if not self._stale.any:
            self.machine.running = False


class KeepsOne(SimulatedDestinationGuest):
    async def missing(self):
        left = await super().missing()
        left[0].set(200)
        return left


class DirtyNotes(SimulatedDestinationGuest):
    async def notes(self, size_bytes=None):
        view = await super().notes(size_bytes)
        if size_bytes:
            view[0] = 1
        return view


class LosesNotes(SimulatedDestinationGuest):
    async def take_storage(self) -> None:
        pass

    async def run(self, epoch, runner):
        await super().run(epoch, runner)
        self._notes = bytearray(len(self._notes))


class KeepsNotes(SimulatedDestinationGuest):
    async def notes(self, size_bytes=None):
        return await super().notes(size_bytes or None)


class ForgetsNotesLate(SimulatedDestinationGuest):
    async def notes(self, size_bytes=None):
        return memoryview(b"") if size_bytes == 0 else await super().notes(size_bytes)


@pytest.mark.parametrize(
    ("room", "message"),
    [
        (HoldsNothing, "law 8: .* missing pages of region 0 were written"),
        (ForgetsTheLastSet, "law 8: missing does not tell"),
        (TakesAnySet, "law 8: bitmaps that do not fit the regions were taken"),
        (WrongRefusal, "law 8: bad bitmaps give GUEST_FAILED"),
        (ExpectWrites, "law 8: expect or load_state changed memory"),
        (Hides, "law 8: missing does not tell what is expected"),
        (Silent, "law 9: it does not go on"),
        (TellsNothing, "law 9: faults returned without one"),
        (TellsWhatIsThere, "law 9: faults tells PageRange.*, which is not missing"),
        (TellsAnotherRegion, "law 9: faults tells PageRange.*, which is not missing"),
        (DoesNotLetGo, "law 9: it does not go on"),
        (StopsInTheEnd, "law 9: with all of its pages there it does not run on"),
        (KeepsOne, "law 9: pages are missing after the last one"),
        (DirtyNotes, "notes: they are not full of zeros"),
        (LosesNotes, "notes: they have changed"),
        (KeepsNotes, "notes: they are there after they were given up"),
        (ForgetsNotesLate, "notes: they are there after they were given up"),
    ],
)
async def test_a_broken_room_is_caught(room: type[SimulatedDestinationGuest], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await check(room())


async def test_rooms_that_do_not_agree() -> None:
    with pytest.raises(AssertionError, match="not the same in every room"):
        await check(SimulatedDestinationGuest(can_post_copy=False))


class Pretends(WithoutPostCopy):
    async def installed(self, region, first, count):
        pass


class SaysItOtherwise(WithoutPostCopy):
    async def faults(self):
        raise GuestError("no", ErrorCode.REFUSED)


async def test_who_cannot_has_to_say_so() -> None:
    await refuses_post_copy(WithoutPostCopy())
    with pytest.raises(AssertionError, match="does not refuse"):
        await refuses_post_copy(Pretends())
    with pytest.raises(AssertionError, match="says REFUSED"):
        await refuses_post_copy(SaysItOtherwise())
