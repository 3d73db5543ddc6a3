"""Endpoints that die between mark and RUNNING, and come again: exactly one side runs the guest afterwards.

Where a process dies is exact (dying.py); that it is the guest of the records that runs, and that it never ran
twice, the journal tells to a judge that knows nothing of records.
"""

from __future__ import annotations

import signal

import pytest
from commands import Command, World
from judge import judge_journal

from sterna.host.lease_files import create_file_store

pytestmark = pytest.mark.slow


@pytest.fixture(params=["alone", "files"])
def store(request: pytest.FixtureRequest, world: World) -> list[object]:
    """Options that name the lease store; none where two endpoints are all there is."""
    if request.param == "alone":
        return []
    create_file_store(world.directory / "leases")
    return ["--store", world.directory / "leases"]


async def killed(command: Command) -> None:
    assert await command.end() == -signal.SIGKILL, command.said()


async def start(world: World, store: list[object]) -> None:
    first = [*store, *world.records("a"), "--host", "host-a"] if store else []
    await world.source("s", *first)
    await world.room()


@pytest.mark.parametrize("point", ["mark", "granted"])
async def test_a_source_that_dies_before_handover_runs_on(
    world: World, store: list[object], point: str
) -> None:
    """[ONE-61] [ONE-43] [ONE-48] [ONE-21] And is sent, as was wished, once that is decided."""
    await start(world, store)
    _, port = await world.serve(*store)
    await killed(await world.migrate(port, *store, dies=point))
    stood = await world.status("s")
    assert (stood.state, stood.granted_epoch) == ("granted", 2)
    migrate = await world.migrate(port, *store)
    assert await migrate.end() == 0, migrate.said()
    await world.check_runs("d")
    # Claimed back under 2 where there is a store, under 3 where it was handed back; and sent then.
    assert (await world.status("d")).epoch == (3 if store else 4)
    assert judge_journal(world.journal) == []


async def test_a_destination_that_dies_with_its_claim(world: World, store: list[object]) -> None:
    """[ONE-58] [ONE-44] [ONE-7] Behind CLAIMING, before the claim."""
    await start(world, store)
    serve, port = await world.serve(*store, dies="claiming")
    migrate = await world.migrate(port, *store)
    await killed(serve)
    code = await migrate.end()
    if store:  # it claims itself, and wins
        assert (code, migrate.last["outcome"]) == (5, "rolled_back"), migrate.said()
        await world.check_runs("s")
        assert (await world.status("s")).epoch == 2
    else:  # nobody can be asked yet
        assert (code, migrate.last["outcome"]) == (8, "undecided"), migrate.said()
        assert (await world.status("s")).state == "granted"
    serve, port = await world.serve(*store)
    recovered = await serve.until("recovered")
    assert recovered["owner"] == ("source" if store else "undecided")
    migrate = await world.migrate(port, *store)
    assert await migrate.end() == 0, migrate.said()
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_a_destination_that_dies_with_start_on_record(world: World, store: list[object]) -> None:
    """[ONE-33] [ONE-45] Its next controller runs the guest, and says so to the source that asks."""
    await start(world, store)
    serve, port = await world.serve(*store, dies="start")
    migrate = await world.migrate(port, *store)
    await killed(serve)
    code = await migrate.end()
    assert code in ({0} if store else {8}), migrate.said()
    assert (await world.status("d")).state == "loaded"
    serve, port = await world.serve(*store)
    recovered = await serve.until("recovered")
    assert (recovered["owner"], recovered["acted"]) == ("destination", True)
    await world.check_runs("d")
    assert (await world.status("d")).epoch == 2
    if not store:
        migrate = await world.migrate(port)
        assert await migrate.end() == 0, migrate.said()
        assert migrate.last["outcome"] == "moved"
    assert (await world.status("s")).state == "granted"
    assert judge_journal(world.journal) == []
