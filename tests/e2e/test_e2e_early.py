"""Real processes of which single ones, or their links, end while the guest has pages early [13.3]."""

from __future__ import annotations

import os
import signal

import pytest
import trio
from commands import DEADLINE_S, POLL_S, Command, World, alive, children_of
from cutting import Relay
from judge import judge_journal

pytestmark = [pytest.mark.slow, pytest.mark.needs("minor_faults")]

MIB = 1 << 20
MISSING = 3500  # of 4096 pages
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
BY_POST_COPY = ("--switchover", "post-copy", "--max-rounds", "1", "--streams", "1", "--resume", "30s")


async def under_way(world: World, nursery: trio.Nursery) -> tuple[Relay, Command, Command]:
    """A guest that waits for its pages, which come slowly: the link, `serve` and `migrate`."""
    await world.holder("s", "--memory", "16MiB", "--hot", "12MiB", "--dirty-rate", "400MiB/s")
    await world.room()
    serve, port = await world.serve("--once")
    relay = Relay(port, [], rate_bytes_s=5 * MIB)
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, *BY_POST_COPY)
    await world.wait_for("d", lambda status: 0 < status.missing < MISSING)
    return relay, serve, migrate


async def pager(command: Command) -> int:
    """The process that an endpoint has forked."""
    with trio.fail_after(DEADLINE_S):
        while not (found := children_of(command.process.pid)):
            assert not command.ended.is_set(), command.said()
            await trio.sleep(POLL_S)
    (pid,) = found
    return pid


async def completed(world: World, serve: Command, migrate: Command, resumed: int = 0) -> int:
    """All is well in the end. How many pages came early, as the destination has counted."""
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert (migrate.last["outcome"], serve.last["outcome"]) == ("completed", "completed")
    assert migrate.last["resumed"] == resumed
    assert serve.last["digest"] == migrate.last["digest"]
    after = serve.last["after"]
    assert after["stale_pages"] == after["demanded_pages"] + after["pushed_pages"]
    await world.check_runs("d")
    assert judge_journal(world.journal) == []
    return after["early_pages"]


@pytest.mark.parametrize("side", ["serve", "migrate"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda each: each.name)
async def test_a_pager_that_is_ended_or_stopped(
    world: World, nursery: trio.Nursery, side: str, number: signal.Signals
) -> None:
    """[PCY-30] [PCY-32] Its endpoint goes on by groups, and takes it along at its own end."""
    _, serve, migrate = await under_way(world, nursery)
    pid = await pager(serve if side == "serve" else migrate)
    os.kill(pid, number)
    assert await completed(world, serve, migrate) > 0
    assert not alive(pid)


async def test_a_destination_that_dies_with_pages_that_came_early(
    world: World, nursery: trio.Nursery
) -> None:
    """[PCY-34] [PCY-31] [HOL-47] [HOL-48] [RES-13] The next one writes none of them, and counts them."""
    relay, serve, migrate = await under_way(world, nursery)
    pid = await pager(serve)
    serve.send(signal.SIGKILL)
    await serve.end()
    left = (await world.status("d")).missing
    assert left > 0
    serve, relay._target = await world.serve("--once")
    await serve.until("session_resumed")
    assert not alive(pid)
    assert await completed(world, serve, migrate, 1) > 0


async def test_a_destination_that_is_killed_while_its_pager_is_frozen(
    world: World, nursery: trio.Nursery
) -> None:
    """[HOL-48] It dies all the same, and the next one waits for that."""
    relay, serve, migrate = await under_way(world, nursery)
    pid = await pager(serve)
    os.kill(pid, signal.SIGSTOP)
    serve.send(signal.SIGKILL)
    await serve.end()
    serve, relay._target = await world.serve("--once")
    await serve.until("session_resumed")
    assert not alive(pid)
    assert await completed(world, serve, migrate, 1) > 0


async def test_a_link_that_is_cut_with_pages_that_came_early(world: World, nursery: trio.Nursery) -> None:
    """[PCY-30] [RES-13] No demand connection any more: groups bring the rest, beside the early pages."""
    relay, serve, migrate = await under_way(world, nursery)
    pids = [await pager(serve), await pager(migrate)]
    relay.cut()
    await migrate.until("session_resumed")
    assert not any(map(alive, pids))
    assert await completed(world, serve, migrate, 1) > 0


async def test_a_source_that_dies_with_pages_that_came_early(world: World, nursery: trio.Nursery) -> None:
    """[RES-19] [PCY-30] Its pager dies with it, and the next process serves what is missing, by groups."""
    relay, serve, migrate = await under_way(world, nursery)
    pids = [await pager(serve), await pager(migrate)]
    migrate.send(signal.SIGKILL)
    await migrate.end()
    assert (await world.status("d")).missing > 0
    migrate = await world.migrate(relay.port, *BY_POST_COPY)
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert (migrate.last["outcome"], serve.last["outcome"]) == ("completed", "completed")
    assert serve.last["resumed"] == 1
    assert serve.last["digest"] == migrate.last["digest"]
    assert serve.last["after"]["early_pages"] > 0
    assert not any(map(alive, pids))
    await world.check_runs("d")
    assert judge_journal(world.journal) == []
