"""Held guests between two hosts, on real holders in threads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from holder_support import GUEST_ID, MEMORY_BYTES, holder
from sterna.errors import GuestError, TransportError
from sterna.guest.api import DestinationGuest, GuestDescription, OutlivingGuest, PagesEarly, SourceGuest
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.process import describe
from sterna.host.evidence import DESTINATION_IMAGE, SOURCE_IMAGE, Evidence, ImageCopy
from sterna.host.held import ArrivingGuest, DepartingGuest
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

RUNNER = Runner("there", b"t" * 16)
DESCRIPTION = describe("web-1", GUEST_ID, MEMORY_BYTES)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[tuple[Path, HolderEngine]]:
    """A holder with room."""
    with holder(tmp_path / "there", with_guest=False) as engine:
        yield tmp_path / "there", engine


@asynccontextmanager
async def departing(path: Path) -> AsyncIterator[DepartingGuest]:
    with holder(path, with_guest=True):
        async with await connect_holder(path) as connection:
            guest = await DepartingGuest.open(connection)
            assert isinstance(guest, DepartingGuest)
            yield guest


def images(directory: Path) -> list[Path]:
    return list(directory.rglob("*.img"))


def anything(_: GuestDescription) -> None:
    """Every guest may come."""


async def test_a_whole_migration_with_evidence(tmp_path: Path, there: tuple[Path, HolderEngine]) -> None:
    evidence = Evidence(tmp_path / "evidence")
    async with departing(tmp_path / "here") as leaving:
        leaving.evidence = evidence
        arriving = ArrivingGuest(there[0], anything, evidence)
        source: SourceGuest = leaving
        destination: DestinationGuest = arriving
        await destination.reserve(source.description)
        await destination.prepare()
        await source.pause()
        destination.memory(0)[:] = source.memory(0)
        frozen = bytes(source.memory(0))
        await destination.load_state(await source.save_state())
        await source.mark_granted(2)
        await destination.run(2, RUNNER)
        status = await arriving.status()
        assert status is not None
        assert (status.state, status.epoch) == ("running", 2)
        await arriving.leave()
        await source.release()
    for name in (SOURCE_IMAGE, DESTINATION_IMAGE):
        assert evidence.path(name).read_bytes() == frozen
    assert evidence.failures == []
    # It goes on as it is, and the next controller finds it free.
    async with await connect_holder(there[0]) as connection:
        assert connection.attached.state == "running"
        assert (await connection.audit())["errors"] == 0


async def test_without_evidence_nothing_is_kept(tmp_path: Path, there: tuple[Path, HolderEngine]) -> None:
    """[SEC-15]"""
    async with departing(tmp_path / "here") as leaving:
        arriving = ArrivingGuest(there[0], anything)
        await arriving.reserve(leaving.description)
        await leaving.pause()
        arriving.memory(0)[:] = leaving.memory(0)
        await arriving.load_state(await leaving.save_state())
        await leaving.mark_granted(2)
        await leaving.release()
        await arriving.leave()
    assert images(tmp_path) == []


PAGES = MEMORY_BYTES >> 12


def userfaultfds() -> list[str]:
    """Those that this process has open."""
    found = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return [target for target in found if "userfaultfd" in target]


@pytest.mark.needs("minor_faults")
async def test_a_guest_that_runs_before_its_pages_are_there(
    tmp_path: Path, there: tuple[Path, HolderEngine]
) -> None:
    """[HOL-41] [HOL-45] [PCY-16] There is no image of it, and the next endpoint goes on where one stops."""
    evidence = Evidence(tmp_path / "evidence")
    async with departing(tmp_path / "here") as leaving:
        arriving = ArrivingGuest(there[0], anything, evidence)
        destination: DestinationGuest = arriving
        assert not destination.can_post_copy
        assert arriving.early_pages() is None
        await destination.reserve(leaving.description)
        assert destination.can_post_copy
        assert isinstance(arriving, PagesEarly)
        assert arriving.early_pages() is None
        await leaving.pause()
        frozen = bytes(leaving.memory(0))
        await destination.load_state(await leaving.save_state())
        (await destination.notes(5))[:] = b"notes"
        await destination.expect({0: PageBitmap(PAGES)})
        assert evidence.failures == []
        await destination.expect({0: PageBitmap.full(PAGES)})
        await leaving.mark_granted(2)
        await destination.run(2, RUNNER)
        assert arriving.early_pages() is not None
        (first, *_) = await destination.faults()
        assert (await destination.missing())[0].count() == PAGES
        await arriving.leave()
        await leaving.release()
    assert [line.rpartition(": ")[2] for line in evidence.failures] == [
        "the guest ran before all of its pages were here"
    ]
    assert [path.name for path in images(tmp_path)] == []
    assert arriving.waited_for() == ()
    with pytest.raises(GuestError, match="does not run this session's guest: it is running"):
        await (other := ArrivingGuest(there[0], anything, image=bytes(16))).take_over()
    await other.leave()
    arriving = ArrivingGuest(there[0], anything)
    assert isinstance(arriving, OutlivingGuest)
    assert (await arriving.take_over()).id == GUEST_ID
    assert first in await arriving.faults()
    assert bytes(await arriving.notes()) == b"notes"
    arriving.memory(0)[:] = frozen
    assert arriving.waited_for() == []
    assert arriving.let_go(0, 0, 1)
    await arriving.installed(0, 0, PAGES)
    status = await arriving.status()
    assert status is not None
    assert status.missing == 0
    await arriving.leave()
    await arriving.take_over()  # it lacks nothing, and may have to say so yet
    assert await arriving.missing() == {}
    assert bytes(await arriving.notes()) == b"notes"
    await arriving.leave()
    async with await connect_holder(there[0]) as connection:
        assert (await connection.audit())["errors"] == 0
    assert not userfaultfds()


async def test_nobody_is_attached_before_there_is_something_to_reserve(tmp_path: Path) -> None:
    """A listener may wait for days; its holder need not even be there."""
    arriving = ArrivingGuest(tmp_path / "nothing", anything)
    assert await arriving.status() is None
    await arriving.discard()
    await arriving.leave()
    with pytest.raises(GuestError, match="not attached"):
        arriving.memory(0)
    with pytest.raises(GuestError, match="no holder at"):
        await arriving.reserve(DESCRIPTION)


async def test_who_may_not_send_a_guest_reserves_nothing(there: tuple[Path, HolderEngine]) -> None:
    def never(_: GuestDescription) -> None:
        raise TransportError(ErrorCode.NOT_AUTHORISED)

    arriving = ArrivingGuest(there[0], never)
    with pytest.raises(TransportError):
        await arriving.reserve(DESCRIPTION)
    assert there[1].state is HeldState.EMPTY
    async with await connect_holder(there[0]):
        pass  # it is free


async def test_a_holder_that_has_a_guest_refuses_another(tmp_path: Path) -> None:
    """It is the host that takes no guest: the peer has broken no rule."""
    with holder(tmp_path / "full", with_guest=True):
        arriving = ArrivingGuest(tmp_path / "full", anything)
        with pytest.raises(GuestError, match="has a guest already: it is running") as caught:
            await arriving.reserve(DESCRIPTION)
        assert caught.value.code is ErrorCode.REFUSED
        await arriving.discard()
        await arriving.leave()
        async with await connect_holder(tmp_path / "full") as connection:
            assert connection.attached.state == "running"


async def test_a_guest_that_is_to_be_started_yet_is_not_taken_over(there: tuple[Path, HolderEngine]) -> None:
    """[ONE-33] [RES-18] START may be on record, and the guest wait for the store; its source comes again."""
    first = ArrivingGuest(there[0], anything, image=b"i" * 16)
    await first.reserve(DESCRIPTION)
    await first.leave()
    for state, image, code in (
        (HeldState.RESERVED, b"i" * 16, ErrorCode.REFUSED),
        (HeldState.LOADED, b"i" * 16, ErrorCode.BUSY),
        (HeldState.LOADED, b"j" * 16, ErrorCode.REFUSED),
    ):
        there[1].state = state
        second = ArrivingGuest(there[0], anything, image=image)
        with pytest.raises(GuestError) as caught:
            await second.take_over()
        assert caught.value.code is code
        await second.leave()
    there[1].state = HeldState.RESERVED


async def test_what_an_earlier_endpoint_left_half_way_is_no_guest(there: tuple[Path, HolderEngine]) -> None:
    first = ArrivingGuest(there[0], anything)
    await first.reserve(DESCRIPTION)
    await first.leave()
    assert there[1].state is HeldState.RESERVED
    second = ArrivingGuest(there[0], anything)
    await second.reserve(DESCRIPTION)
    await second.discard()
    assert there[1].state is HeldState.EMPTY
    await second.discard()
    await second.leave()


async def test_no_memory_for_a_copy_is_a_failure_of_the_evidence_alone(
    tmp_path: Path, there: tuple[Path, HolderEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(_: ImageCopy) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageCopy, "reserve", none)
    evidence = Evidence(tmp_path / "evidence")
    async with departing(tmp_path / "here") as leaving:
        arriving = ArrivingGuest(there[0], anything, evidence)
        await arriving.reserve(leaving.description)
        await leaving.pause()
        arriving.memory(0)[:] = leaving.memory(0)
        await arriving.load_state(await leaving.save_state())
        await leaving.mark_granted(2)
        await arriving.run(2, RUNNER)
        await arriving.leave()
        await leaving.release()
    assert evidence.failures == [f"{evidence.path(DESTINATION_IMAGE)}: no memory for a copy"]
    assert there[1].state is HeldState.RUNNING


async def test_the_image_is_that_of_the_first_instruction(
    tmp_path: Path, there: tuple[Path, HolderEngine]
) -> None:
    """Whatever the guest writes afterwards, while its image is still on the way to the disk."""
    evidence = Evidence(tmp_path / "evidence")
    async with departing(tmp_path / "here") as leaving:
        arriving = ArrivingGuest(there[0], anything, evidence)
        await arriving.reserve(leaving.description)
        await leaving.pause()
        arriving.memory(0)[:] = leaving.memory(0)
        await arriving.load_state(await leaving.save_state())
        np.frombuffer(arriving.memory(0), np.uint8)[:] = 0
        await arriving.leave()
        assert evidence.path(DESTINATION_IMAGE).read_bytes() == bytes(leaving.memory(0))
        await leaving.resume()


async def test_a_holder_that_has_gone_is_left_all_the_same(tmp_path: Path) -> None:
    with holder(tmp_path / "there", with_guest=False):
        arriving = ArrivingGuest(tmp_path / "there", anything)
        await arriving.reserve(DESCRIPTION)
    assert await arriving.status() is None
    await arriving.leave()
    await arriving.leave()
