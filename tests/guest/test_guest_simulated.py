from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.errors import GuestError
from sterna.guest.simulated import JournalEntry, SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Architecture, ErrorCode, RegionKind, StateKind, Transfer
from sterna.wire.records import NO_RUNNER, Runner

PARAMETERS = WorkloadParameters(seed=11, pages=200, hot_pages=64, cold_every=4, block_pages=8, zero_pages=8)
RUNNER = Runner("b", b"r" * 16)
PAGES_A_SECOND = 100 * PAGE_BYTES


def source(parameters=PARAMETERS, **arguments):
    return SimulatedSourceGuest(parameters, rate_bytes_s=PAGES_A_SECOND, **arguments)


async def moved(guest, room):
    """Stop and copy by hand."""
    await guest.pause()
    await room.reserve(guest.description)
    await room.prepare()
    for region in guest.description.regions:
        room.memory(region.id)[:] = guest.memory(region.id)
    await room.load_state(await guest.save_state())


async def test_time_moves_only_by_advance_and_not_while_paused():
    guest = source()
    assert [guest.advance(0.005) for _ in range(4)] == [0, 1, 0, 1]
    await guest.pause()
    await guest.pause()
    assert guest.advance(10) == 0
    await guest.resume()
    assert guest.advance(1) == 100
    assert guest.workload.count == 102
    assert guest.workload.errors == 0


async def test_throttling_takes_its_share():
    guest = source()
    await guest.throttle(0.75)
    assert guest.advance(1) == 25
    await guest.throttle(0.0)
    assert guest.advance(1) == 100
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(GuestError):
            await guest.throttle(share)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 150), max_size=6), st.sampled_from([(), (8, 192), (100, 37, 63)]))
def test_collect_reports_exactly_the_pages_that_changed(steps, region_pages):
    import trio

    async def main():
        guest = source(region_pages=region_pages)
        guest.advance(0.33)
        await guest.start_tracking()
        for pages in steps:
            before = {r.id: bytes(guest.memory(r.id)) for r in guest.description.regions}
            guest.advance(pages / 100 + 1e-9)
            dirty = await guest.collect_dirty()
            for region in guest.description.regions:
                now = guest.memory(region.id)
                changed = [
                    page
                    for page in range(region.pages)
                    if now[page * 4096 : page * 4096 + 4096]
                    != before[region.id][page * 4096 : page * 4096 + 4096]
                ]
                assert [page for page in range(region.pages) if page in dirty[region.id]] == changed

    trio.run(main)


async def test_an_imprecise_tracker_answers_all_and_says_so():
    guest = source(precise=False)
    await guest.start_tracking()
    (dirty,) = (await guest.collect_dirty()).values()
    assert dirty.count() == PARAMETERS.pages
    assert guest.tracker != source().tracker


async def test_tracking_must_have_been_started():
    guest = source()
    await guest.stop_tracking()
    with pytest.raises(GuestError):
        await guest.collect_dirty()
    await guest.start_tracking()
    await guest.stop_tracking()
    with pytest.raises(GuestError):
        await guest.collect_dirty()


@pytest.mark.parametrize("heads_only", [False, True])
async def test_the_guest_runs_on_at_the_destination_and_its_journal_shows_no_fork(heads_only):
    guest = source(replace(PARAMETERS, heads_only=heads_only), region_pages=(8, 192))
    guest.advance(1)
    room = SimulatedDestinationGuest(rate_bytes_s=PAGES_A_SECOND, journal=guest.machine.journal)
    await moved(guest, room)
    assert room.advance(1) == 0
    await guest.mark_granted(2)
    await room.run(2, RUNNER)
    assert room.advance(3) == 300
    assert room.workload.parameters.heads_only is heads_only
    await guest.release()
    audit = room.workload.audit()
    assert (audit.errors, room.workload.errors, audit.pages_checked) == (0, 0, 200)
    assert room.journal == [JournalEntry(100, 1, NO_RUNNER), JournalEntry(400, 2, RUNNER)]
    assert guest.granted_epoch == 2
    with pytest.raises(GuestError):
        guest.memory(0)
    with pytest.raises(GuestError):
        await guest.resume()


async def test_it_can_be_migrated_again_from_where_it_arrived():
    guest, room, next_room = (
        source(),
        SimulatedDestinationGuest(rate_bytes_s=1e6),
        SimulatedDestinationGuest(),
    )
    await moved(guest, room)
    await room.run(2, RUNNER)
    room.advance(1)
    again = SimulatedSourceGuest(PARAMETERS, machine=room.machine)
    await moved(again, next_room)
    assert next_room.workload.audit().errors == 0
    assert next_room.workload.count == room.workload.count > 0


async def test_a_lost_page_is_noticed_at_the_destination():
    guest = source()
    guest.advance(5)
    room = SimulatedDestinationGuest(rate_bytes_s=PAGES_A_SECOND)
    await moved(guest, room)
    room.memory(0)[5 * PAGE_BYTES : 6 * PAGE_BYTES] = bytes(PAGE_BYTES)
    await room.run(2, RUNNER)
    room.advance(2)
    assert [bad.page for bad in room.workload.first_errors] == [5]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architecture": Architecture.X86_64}, ErrorCode.ARCHITECTURE),
        ({"architecture": 77}, ErrorCode.ARCHITECTURE),
        ({"cpu_features": ("avx9",)}, ErrorCode.CPU_FEATURES),
        ({"granule_log2": 16}, ErrorCode.PAGE_SIZE),
        ({"kind": RegionKind.ROM}, ErrorCode.REGION_KIND),
        ({"transfer": Transfer.SHARED}, ErrorCode.REGION_KIND),
        ({"size_bytes": 1 << 40}, ErrorCode.FULL),
    ],
)
async def test_what_does_not_fit_is_refused_with_its_code(changes, code):
    description = source().description
    names = {"architecture", "cpu_features"}
    of_region = {name: value for name, value in changes.items() if name not in names}
    regions = (replace(description.regions[0], **of_region),)
    description = replace(description, regions=regions, **(changes if not of_region else {}))
    room = SimulatedDestinationGuest(memory_limit_bytes=1 << 20)
    with pytest.raises(GuestError) as caught:
        await room.reserve(description)
    assert caught.value.code == code
    with pytest.raises(GuestError):
        room.memory(0)
    await room.discard()


async def test_bad_state_is_rejected_and_changes_nothing():
    guest, room = source(), SimulatedDestinationGuest()
    guest.advance(1)
    await moved(guest, room)
    loaded = room.machine
    (good,) = await guest.save_state()
    for bad, code in (
        ((), ErrorCode.STATE_REJECTED),
        ((good, good), ErrorCode.STATE_REJECTED),
        ((replace(good, kind=StateKind.CLOCK),), ErrorCode.UNKNOWN_STATE),
        ((good, replace(good, kind=StateKind.CLOCK)), ErrorCode.UNKNOWN_STATE),
        ((replace(good, version=0),), ErrorCode.UNKNOWN_STATE),
        ((replace(good, version=3),), ErrorCode.UNKNOWN_STATE),
        ((replace(good, version=2),), ErrorCode.STATE_REJECTED),  # it is not: that writes heads alone
        ((replace(good, architecture=Architecture.X86_64),), ErrorCode.UNKNOWN_STATE),
        ((replace(good, vcpu=0),), ErrorCode.STATE_REJECTED),
        ((replace(good, instance=1),), ErrorCode.STATE_REJECTED),
        ((replace(good, data=good.data[:-1]),), ErrorCode.STATE_REJECTED),
        ((replace(good, data=bytes(120)),), ErrorCode.STATE_REJECTED),
    ):
        with pytest.raises(GuestError) as caught:
            await room.load_state(bad)
        assert caught.value.code == code
        assert room.machine is loaded


async def test_state_of_another_memory_is_rejected():
    other = SimulatedSourceGuest(WorkloadParameters(seed=1, pages=64, hot_pages=64))
    await other.pause()
    room = SimulatedDestinationGuest()
    await room.reserve(source().description)
    with pytest.raises(GuestError) as caught:
        await room.load_state(await other.save_state())
    assert caught.value.code == ErrorCode.STATE_REJECTED


async def test_calls_out_of_order_are_guest_errors():
    guest, room = source(), SimulatedDestinationGuest()
    with pytest.raises(GuestError, match="not paused"):
        await guest.save_state()
    with pytest.raises(GuestError, match="not paused"):
        await guest.release()
    with pytest.raises(GuestError, match="no region"):
        guest.memory(3)
    for call in (room.prepare(), room.load_state(()), room.run(2, RUNNER)):
        with pytest.raises(GuestError):
            await call
    with pytest.raises(GuestError):
        _ = room.workload
    await moved(guest, room)
    await room.run(2, RUNNER)
    for call in (room.load_state(await guest.save_state()), room.run(2, RUNNER), room.discard()):
        with pytest.raises(GuestError, match="has run"):
            await call


async def test_a_granted_guest_does_not_resume_until_the_grant_is_revoked():
    guest = source()
    await guest.pause()
    await guest.mark_granted(5)
    with pytest.raises(GuestError):
        await guest.resume()
    with pytest.raises(GuestError):
        await guest.revoke_grant(4)
    await guest.revoke_grant(5)
    assert guest.advance(1) == 0
    await guest.resume()
    assert guest.advance(1) == 100


async def test_faults_can_be_ordered_for_any_method():
    guest, room = source(), SimulatedDestinationGuest()
    guest.fail_on["pause"] = GuestError("the vCPU hangs")
    room.fail_on["reserve"] = GuestError("no room", ErrorCode.FULL)
    with pytest.raises(GuestError, match="hangs"):
        await guest.pause()
    assert guest.running
    with pytest.raises(GuestError, match="no room"):
        await room.reserve(guest.description)
    assert (guest.calls, room.calls) == (["pause"], ["reserve"])


@pytest.mark.parametrize("region_pages", [(200, 0), (100, 99)])
def test_regions_must_make_up_the_memory(region_pages):
    with pytest.raises(ValueError, match="region_pages"):
        source(region_pages=region_pages)


async def test_a_guest_with_stale_pages_stops_at_each_until_it_is_installed():
    """[PCY-5] The rest of the step is lost to it; what it has is never a page that is not there."""
    guest, room = source(region_pages=(40, 160)), SimulatedDestinationGuest(rate_bytes_s=PAGES_A_SECOND)
    assert room.can_post_copy
    await moved(guest, room)
    image = {number: bytes(guest.memory(number)) for number in (0, 1)}
    await room.expect({0: PageBitmap.full(40)})
    await room.expect({number: PageBitmap.full(len(data) // PAGE_BYTES) for number, data in image.items()})
    for number, data in image.items():
        room.memory(number)[:] = b"\xee" * len(data)  # whoever reads it, reads nonsense
    await room.run(2, RUNNER)
    installed = 0
    while room.advance(1.0) < 100:
        waiting = room.waits_for
        assert waiting is not None
        assert await room.faults() == [waiting]
        assert room.advance(1.0) == 0
        page = slice(waiting.first * PAGE_BYTES, (waiting.first + 1) * PAGE_BYTES)
        room.memory(waiting.region)[page] = image[waiting.region][page]
        await room.installed(waiting.region, waiting.first, 1)
        installed += 1
    assert installed == 200 - sum(left.count() for left in (await room.missing()).values())
    assert room.workload.errors == 0


async def test_a_guest_with_missing_pages_is_not_sent_away():
    """[ONE-41]"""
    guest, room = source(), SimulatedDestinationGuest()
    await moved(guest, room)
    await room.expect({0: PageBitmap.full(200)})
    await room.run(2, RUNNER)
    here = SimulatedSourceGuest(PARAMETERS, machine=room.machine)
    await here.pause()
    for refused in (here.start_tracking(), here.save_state(), here.mark_granted(3)):
        with pytest.raises(GuestError, match="missing") as caught:
            await refused
        assert caught.value.code is ErrorCode.NOT_READY
    await room.installed(0, 0, 200)
    assert not any(left.any() for left in (await room.missing()).values())
    await here.start_tracking()
    assert await here.save_state()
    await here.mark_granted(3)


async def test_expecting_stale_pages_has_its_time():
    room = SimulatedDestinationGuest()
    assert await room.missing() == {}
    with pytest.raises(GuestError, match="nothing is reserved"):
        await room.expect({})
    for early in (room.faults(), room.installed(0, 0, 1), room.notes()):
        with pytest.raises(GuestError, match="nothing is reserved"):
            await early
    guest = source()
    await moved(guest, room)
    with pytest.raises(GuestError) as caught:
        await room.expect({7: PageBitmap(200)})
    assert caught.value.code is ErrorCode.BAD_VALUE
    await room.run(2, RUNNER)
    with pytest.raises(GuestError, match="has run"):
        await room.expect({})
    whole = SimulatedDestinationGuest(can_post_copy=False)
    await moved(source(), whole)
    with pytest.raises(GuestError) as caught:
        await whole.expect({})
    assert caught.value.code is ErrorCode.UNSUPPORTED


async def test_notes_are_kept_until_they_are_replaced():
    room = SimulatedDestinationGuest()
    await room.reserve(source().description)
    assert len(await room.notes()) == 0
    (await room.notes(10))[:] = b"0123456789"
    assert bytes(await room.notes()) == b"0123456789"
    assert bytes(await room.notes(3)) == bytes(3)
    with pytest.raises(GuestError) as caught:
        await room.notes(1 << 40)
    assert caught.value.code is ErrorCode.FULL
