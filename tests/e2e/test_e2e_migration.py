"""A guest moves between commands in processes of their own, over mutual TLS, and nothing is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio
from commands import World
from judge import judge, judge_journal

from sterna.guest.holder_client import connect_holder

pytestmark = pytest.mark.slow


async def test_a_guest_moves_between_two_commands(world: World) -> None:
    await world.source()
    await world.room()
    evidence = world.directory / "evidence"
    serve, port = await world.serve("--once", "--evidence", evidence)
    migrate = await world.migrate(port, "--evidence", evidence)
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    sent, taken = migrate.last, serve.last
    assert sent["event"] == taken["event"] == "result"
    assert sent["outcome"] == taken["outcome"] == "completed"
    assert sent["tls"] == taken["tls"]
    assert sent["tls"]["version"] == "TLSv1.3"
    assert sent["tls"]["mutual"] is True
    assert (sent["peer"]["identity"], taken["peer"]["identity"]) == ("host-b", "host-a")
    assert sent["digest"] == taken["digest"] is not None
    assert sent["rounds"][0]["pages"] == (16 << 20) // 4096
    assert sent["epoch"] == taken["epoch"] == 2
    await world.check_runs("d")
    world.journal.rename(evidence / "journal.ndjson")
    assert judge(evidence) == []
    for name in ("source.img", "destination.img", "journal.ndjson"):
        assert (evidence / name).stat().st_mode & 0o777 == 0o600


async def test_a_guest_moves_on_and_back(world: World) -> None:
    """Each move is a new epoch with a new runner; the journal is one for all of them.

    Each host is the source in one move and the destination in the next, with records of its own.
    """
    await world.source("one")
    for epoch, (here, there) in enumerate((("one", "two"), ("two", "three"), ("three", "four")), 2):
        source, destination = ("a", "b") if epoch % 2 == 0 else ("b", "a")
        await world.room(there)
        serve, port = await world.serve("--once", holder=there, insecure=True, host=destination)
        migrate = await world.migrate(port, holder=here, insecure=True, host=source)
        assert await migrate.end() == 0, migrate.said()
        assert await serve.end() == 0, serve.said()
        assert migrate.last["epoch"] == epoch
        await world.check_runs(there)
    assert judge_journal(world.journal) == []


async def test_the_source_holder_ends_when_its_guest_has_left(world: World) -> None:
    holder = await world.source()
    await world.room()
    _, port = await world.serve(insecure=True)
    migrate = await world.migrate(port, insecure=True)
    assert await migrate.end() == 0, migrate.said()
    assert await holder.end() == 0
    assert not world.socket("s").exists()


async def test_a_guest_that_outruns_its_bandwidth_is_slowed_down_and_still_moves(world: World) -> None:
    """Its hot set is written anew in every round and takes longer than the allowed downtime to send."""
    await world.holder("s", "--memory", "32MiB", "--hot", "16MiB", "--dirty-rate", "100MiB/s")
    await world.room()
    _, port = await world.serve("--once", insecure=True)
    migrate = await world.migrate(port, "--bandwidth", "40MiB/s", insecure=True)
    assert await migrate.end() == 0, migrate.said()
    assert max(one["throttle"] for one in migrate.last["rounds"]) > 0
    assert "of its time away" in migrate.said()
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_one_destination_takes_a_guest_after_failures(world: World) -> None:
    """Sessions that come to nothing leave neither holder nor listener worse than before."""
    await world.source()
    await world.room()
    serve, port = await world.serve(insecure=True)
    for _ in range(2):
        migrate = await world.migrate(port, "--bandwidth", "1MiB/s", insecure=True)
        await migrate.until("progress", lambda line: line["bytes_sent"] > 1 << 20)
        migrate.send(signal.SIGINT)
        assert await migrate.end() == 7, migrate.said()
        assert (migrate.last["outcome"], migrate.last["code"]) == ("rolled_back", "cancelled")
        await world.check_runs("s")
    migrate = await world.migrate(port, insecure=True)
    assert await migrate.end() == 0, migrate.said()
    await world.check_runs("d")
    serve.send(signal.SIGTERM)
    assert await serve.end() == 0, serve.said()
    assert serve.last["sessions"] == 3
    assert judge_journal(world.journal) == []


async def test_a_spawned_holder_outlives_its_endpoint_with_its_guest(world: World) -> None:
    await world.source()
    serve, port = await world.serve("--once", "--spawn-holder", insecure=True)
    migrate = await world.migrate(port, insecure=True)
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    await world.check_runs("d")
    await end_holder(world.socket("d"))


async def test_a_spawned_holder_without_a_guest_ends_with_its_endpoint(world: World) -> None:
    serve, _ = await world.serve("--spawn-holder", insecure=True)
    status = await world.status("d")
    assert status.state == "empty"
    serve.send(signal.SIGTERM)
    assert await serve.end() == 0, serve.said()
    assert not world.socket("d").exists()


async def end_holder(path: Path) -> None:
    async with await connect_holder(path) as connection:
        await connection.shutdown()


@pytest.mark.parametrize("when", ["before it was ready", "when it was ready"])
async def test_an_endpoint_ends_with_the_process_that_it_was_told(world: World, when: str) -> None:
    """What the demo relies on when it is killed itself."""
    await world.room()
    process = await trio.lowlevel.open_process(["sleep", "1000"])
    command = ["--listen", "127.0.0.1:0", "--insecure", "--holder", world.socket("d"), "--follow"]
    if when == "before it was ready":
        process.kill()
        await process.wait()
    serve = await world.start("serve", *command, "--once", "--die-with", process.pid)
    if when == "when it was ready":
        await serve.until("listening")
        process.kill()
        await process.wait()
    assert await serve.end() == 130
