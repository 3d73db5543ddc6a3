"""Real processes, and pages on connections of their own."""

from __future__ import annotations

import pytest
import trio
from commands import World
from cutting import Relay
from judge import judge_journal

pytestmark = pytest.mark.slow

MIB = 1 << 20


async def test_pages_travel_on_three_connections(world: World, nursery: trio.Nursery) -> None:
    """[STR-1] [STR-2] Over mutual TLS."""
    await world.source()
    await world.room()
    serve, port = await world.serve("--once")
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, "--streams", "3")
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert relay.connections == 4
    assert migrate.last["data_streams"] == serve.last["data_streams"] == 3
    assert serve.last["digest"] == migrate.last["digest"]
    assert migrate.last["bytes_sent"] == serve.last["bytes_received"] > 16 * MIB
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_a_destination_allows_fewer(world: World) -> None:
    """[NEG-8] [ACC-3]"""
    await world.source()
    await world.room()
    serve, port = await world.serve("--once", "--streams", "1")
    migrate = await world.migrate(port, "--streams", "16")
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert migrate.last["data_streams"] == serve.last["data_streams"] == 1


@pytest.mark.parametrize("switchover", ["stop-and-copy", "bitmap"])
async def test_connections_that_are_cut_one_by_one(
    world: World, nursery: trio.Nursery, switchover: str
) -> None:
    """[STR-5] [STR-14] [STR-15] [RES-9] A data connection, then the control connection, then another."""
    await world.source()
    await world.room()
    serve, port = await world.serve("--once")
    never = 1 << 40
    relay = Relay(port, [never, 2 * MIB, never, 2000, never, never, never, never, 3 * MIB])
    await nursery.start(relay.listen)
    slowly = ("--bandwidth", "8MiB/s", "--resume", "30s", "--switchover", switchover)
    migrate = await world.migrate(relay.port, *slowly, "--streams", "2")
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert migrate.last["resumed"] == serve.last["resumed"] > 0
    assert relay.connections > 6
    assert serve.last["digest"] == migrate.last["digest"]
    await world.check_runs("d")
    assert judge_journal(world.journal) == []
