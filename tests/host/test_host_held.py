"""Held guests as endpoints use them: attached late, let go of early, with evidence."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sterna.errors import GuestError, TransportError
from sterna.guest.api import GuestDescription
from sterna.guest.holder_client import connect_holder
from sterna.guest.process_launch import launch_process_holder
from sterna.host.evidence import Evidence
from sterna.host.held import ArrivingGuest, DepartingGuest
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

MEMORY_BYTES = 1 << 20
RUNNER = Runner("there", b"r" * 16)


class Holders:
    """Sockets of two holders: of a guest that runs, and of room for one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = directory / "s"
        self.room = directory / "d"


@pytest.fixture
async def holders() -> AsyncIterator[Holders]:
    with tempfile.TemporaryDirectory(prefix="sterna-held-") as name:
        holders = Holders(Path(name))
        processes = [
            await launch_process_holder(
                holders.source,
                "source",
                memory_bytes=MEMORY_BYTES,
                rate_bytes_s=1 << 20,
                die_with_parent=True,
            ),
            await launch_process_holder(
                holders.room, "destination", rate_bytes_s=1 << 20, die_with_parent=True
            ),
        ]
        try:
            yield holders
        finally:
            with trio.CancelScope(shield=True):
                for process in processes:
                    process.kill()
                    await process.wait()


def allow(_: GuestDescription) -> None:
    """Everybody may send everything."""


async def description_of(path: Path) -> GuestDescription:
    async with await connect_holder(path) as connection:
        description = (await DepartingGuest.open(connection)).description
        await connection.detach()
        return description


@pytest.mark.slow
async def test_a_guest_arrives_by_way_of_its_holder(holders: Holders) -> None:
    """By hand what endpoints do, with an image kept on each side."""
    evidence = Evidence(holders.directory / "evidence")
    async with await connect_holder(holders.source) as connection:
        leaving = await DepartingGuest.open(connection)
        assert isinstance(leaving, DepartingGuest)
        leaving.evidence = evidence
        arriving = ArrivingGuest(holders.room, allow, evidence)
        assert await arriving.status() is None
        await arriving.reserve(leaving.description)
        await leaving.pause()
        arriving.memory(0)[:] = leaving.memory(0)
        await arriving.prepare()
        await arriving.load_state(await leaving.save_state())
        await leaving.mark_granted(2)
        await arriving.run(2, RUNNER)
        status = await arriving.status()
        assert status is not None
        assert (status.state, status.epoch, status.runner) == ("running", 2, RUNNER)
        await leaving.release()
        await arriving.leave()
        await arriving.leave()
    images = [evidence.path(name).read_bytes() for name in ("source.img", "destination.img")]
    assert images[0] == images[1]
    assert len(images[0]) == MEMORY_BYTES
    assert any(images[0])
    # Whoever comes next finds the holder free, although this process lives on.
    async with await connect_holder(holders.room) as connection:
        assert connection.may_run
        assert (await connection.audit())["errors"] == 0
        await connection.detach()


@pytest.mark.slow
async def test_what_was_reserved_is_given_back(holders: Holders) -> None:
    description = await description_of(holders.source)
    for _ in range(2):
        arriving = ArrivingGuest(holders.room, allow)
        await arriving.discard()  # legal when there is nothing
        await arriving.reserve(description)
        await arriving.discard()
        status = await arriving.status()
        assert status is not None
        assert status.state == "empty"
        await arriving.leave()


@pytest.mark.slow
async def test_a_guest_that_may_not_come_reaches_no_holder(holders: Holders) -> None:
    description = await description_of(holders.source)

    def refuse(_: GuestDescription) -> None:
        raise TransportError(ErrorCode.NOT_AUTHORISED)

    arriving = ArrivingGuest(holders.room, refuse)
    with pytest.raises(TransportError):
        await arriving.reserve(description)
    assert await arriving.status() is None
    await arriving.leave()


@pytest.mark.slow
async def test_a_holder_that_is_taken(holders: Holders) -> None:
    """The guest that is there is untouched, and the next peer is told so too."""
    description = await description_of(holders.source)
    for _ in range(2):
        arriving = ArrivingGuest(holders.source, allow)
        with pytest.raises(GuestError):
            await arriving.reserve(replace(description, id=b"x" * 16))
        await arriving.discard()
        await arriving.leave()
    async with await connect_holder(holders.source, role="observer") as connection:
        assert (await connection.status()).state == "running"


async def test_no_holder(tmp_path: Path) -> None:
    arriving = ArrivingGuest(tmp_path / "none", allow)
    with pytest.raises(GuestError, match="no holder"):
        await arriving.reserve(GuestDescription(bytes(16), "guest", ()))
    with pytest.raises(GuestError, match="not attached"):
        arriving.memory(0)
    await arriving.discard()
    await arriving.leave()
