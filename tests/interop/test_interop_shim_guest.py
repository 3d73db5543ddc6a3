"""The scripted guest: what is in its memory does not depend on how often it is asked."""

from __future__ import annotations

import pytest

from sterna.errors import GuestError
from sterna.registry import ErrorCode
from sterna.wire.records import NO_RUNNER
from sterna_interop.contract import Order
from sterna_interop.guest import GuestSpec, state_hash
from sterna_interop.shim_guest import RoomForGuest, ScriptedSource

SPEC = GuestSpec()


@pytest.mark.parametrize("collects", [0, 1, 2, 3, 5])
async def test_the_image_of_the_pause_is_always_the_same(collects: int) -> None:
    guest = ScriptedSource(SPEC)
    await guest.start_tracking()
    reported = {region.id: set() for region in SPEC.copied}
    for number in range(collects + 1):
        if number == collects:
            await guest.pause()
        for region, bitmap in (await guest.collect_dirty()).items():
            reported[region] |= {page for page in range(bitmap.bits) if page in bitmap}
    written = {
        region: {page for page, generation in enumerate(pages) if generation}
        for region, pages in SPEC.generations().items()
    }
    assert reported == written
    assert guest.hashes() == (SPEC.memory_hash(), state_hash(SPEC.state))


async def test_a_paused_guest_does_not_write() -> None:
    guest = ScriptedSource(SPEC)
    await guest.pause()
    assert not guest.running
    await guest.collect_dirty()
    await guest.resume()
    assert guest.running
    await guest.mark_granted(8)
    with pytest.raises(GuestError):
        await guest.resume()
    await guest.revoke_grant(8)
    await guest.resume()


async def test_room() -> None:
    room = RoomForGuest(Order())
    await room.reserve(SPEC.description)
    await room.prepare()
    for region, data in SPEC.image().items():
        assert not any(room.memory(region))
        room.memory(region)[:] = data
    assert room.hashes() == (SPEC.memory_hash(), None)
    await room.load_state(SPEC.state)
    assert room.hashes() == (SPEC.memory_hash(), state_hash(SPEC.state))
    await room.run(8, NO_RUNNER)
    assert room.running


async def test_misfortune_as_ordered() -> None:
    refusing, late, picky = (
        RoomForGuest(order)
        for order in (Order("refuse", code="full"), Order("not_ready", times=2), Order("reject_state"))
    )
    with pytest.raises(GuestError) as refused:
        await refusing.reserve(SPEC.description)
    assert refused.value.code is ErrorCode.FULL
    for _ in range(2):
        with pytest.raises(GuestError):
            await late.prepare()
    await late.prepare()
    with pytest.raises(GuestError) as rejected:
        await picky.load_state(SPEC.state)
    assert rejected.value.code is ErrorCode.STATE_REJECTED
    await picky.discard()
    assert picky.hashes() == (None, None)
