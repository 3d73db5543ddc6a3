"""One fault each: it ends with its code, in bounded time, and the guest runs on where it should."""

from __future__ import annotations

import signal

import pytest
import trio
from commands import World
from judge import judge_journal
from peers import StallingDestination, StallingSource, listen_plainly

from sterna.core.events import Outcome, PhaseEntered, RoundStarted
from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.registry import Phase

pytestmark = pytest.mark.slow

SLOWLY = ("--bandwidth", "2MiB/s")
LESS_SLOWLY = ("--bandwidth", "12MiB/s")  # where the round must come to its end


def in_a_round(line: dict) -> bool:
    return line["bytes_sent"] > 1 << 20


async def test_the_source_endpoint_is_killed_in_a_round(world: World) -> None:
    """The holder sees to its guest itself, and the next migration finds everything in order."""
    await world.source()
    await world.room()
    serve, port = await world.serve(insecure=True)
    migrate = await world.migrate(port, *SLOWLY, insecure=True)
    await migrate.until("progress", in_a_round)
    migrate.send(signal.SIGKILL)
    assert await migrate.end() == -signal.SIGKILL
    await world.check_runs("s")
    session = await serve.until("session")
    assert session["outcome"] == "rolled_back"
    assert session["code"] in {"connection_lost", "truncated"}
    migrate = await world.migrate(port, insecure=True)
    assert await migrate.end() == 0, migrate.said()
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_the_destination_endpoint_is_killed_in_a_round(world: World) -> None:
    await world.source()
    await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, *SLOWLY)
    await migrate.until("progress", in_a_round)
    serve.send(signal.SIGKILL)
    assert await migrate.end() == 5, migrate.said()
    assert migrate.last["outcome"] == "rolled_back"
    assert migrate.last["code"] in {"connection_lost", "not_closed"}
    await world.check_runs("s")
    # What the killed endpoint had reserved is in nobody's way.
    _, port = await world.serve()
    migrate = await world.migrate(port)
    assert await migrate.end() == 0, migrate.said()
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_the_destination_holder_is_killed_in_a_round(world: World) -> None:
    """Found out when it is asked to prepare; the destination may try again, and then the session ends."""
    await world.source()
    holder = await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, *LESS_SLOWLY)
    await migrate.until("progress", in_a_round)
    holder.send(signal.SIGKILL)
    assert await migrate.end() in {4, 6}, migrate.said()
    assert migrate.last["outcome"] == "rolled_back"
    assert migrate.last["code"] in {"not_ready", "guest_failed"}
    session = await serve.until("session")
    assert session["outcome"] == "rolled_back"
    await world.check_runs("s")
    assert judge_journal(world.journal) == []


async def test_the_destination_is_frozen_in_a_round(world: World) -> None:
    """A process that is stopped has sockets that are alive and says nothing."""
    await world.source()
    await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, *SLOWLY, "--patience", "1s", "--resume", "0s")
    await migrate.until("progress", in_a_round)
    serve.send(signal.SIGSTOP)
    assert await migrate.end() == 5, migrate.said()
    assert migrate.last["outcome"] == "rolled_back"
    assert migrate.last["code"] in {"peer_silent", "peer_stalled", "phase_deadline"}
    await world.check_runs("s")
    serve.send(signal.SIGCONT)
    session = await serve.until("session")
    assert session["outcome"] == "rolled_back"
    assert (await world.wait_for("d", lambda status: status.state == "empty")).epoch == 0


@pytest.mark.parametrize("what", ["reading", "sending", "both"])
async def test_a_destination_that_stops_in_any_phase_before_handover(
    world: World, nursery: trio.Nursery, what: str
) -> None:
    await world.source()
    phases = {
        "handshake": None,
        "describe": lambda event: event == PhaseEntered(Phase.ROUNDS),
        "rounds": lambda event: event == RoundStarted(1, 4096, last=False),
        "prepare": lambda event: event == PhaseEntered(Phase.PREPARE),
        "blackout": lambda event: isinstance(event, RoundStarted) and event.last,
    }
    if what == "reading":
        # What has come before it stops is still answered; these phases end by themselves or do not begin.
        del phases["describe"], phases["prepare"]
    for name, found in phases.items():
        destination = StallingDestination(found, what)
        port = await listen_plainly(nursery, destination.serve)
        migrate = await world.migrate(port, "--patience", "500ms", "--bandwidth", "64MiB/s", insecure=True)
        assert await migrate.end() == 5, (name, migrate.said())
        assert migrate.last["outcome"] == "rolled_back", name
        assert migrate.last["code"] in {"peer_silent", "peer_stalled", "phase_deadline"}, name
        await world.check_runs("s")
        assert not any(guest.has_run for guest in destination.guests), name
    assert judge_journal(world.journal) == []


async def test_a_destination_that_stops_after_handover(world: World, nursery: trio.Nursery) -> None:
    """Nobody can know who owns the guest: it stays paused at the source, whoever loses patience [ONE-49]."""
    await world.source()
    destination = StallingDestination(lambda event: event == PhaseEntered(Phase.COMMIT), "both")
    port = await listen_plainly(nursery, destination.serve)
    migrate = await world.migrate(port, "--patience", "500ms", insecure=True)
    assert await migrate.end() == 8, migrate.said()
    assert migrate.last["outcome"] == "undecided"
    assert "stays paused" in migrate.said()
    status = await world.status("s")
    assert (status.state, status.granted_epoch) == ("granted", 2)
    # A holder that loses its controller resumes a paused guest, but not this one [ONE-22].
    again = await world.migrate(port, insecure=True)
    assert await again.end() != 0
    after = await world.status("s")
    assert after.state == "granted"
    assert after.figure("writes") == status.figure("writes")
    assert judge_journal(world.journal) == []


@pytest.mark.parametrize("what", ["reading", "sending", "both"])
async def test_a_source_that_stops_in_any_phase_before_handover(world: World, what: str) -> None:
    """The destination gives up in bounded time, frees what it reserved, and takes the next guest."""
    await world.room()
    serve, port = await world.serve("--patience", "500ms", insecure=True)
    phases = {
        "handshake": None,
        "describe": lambda event: event == PhaseEntered(Phase.DESCRIBE),
        "rounds": lambda event: isinstance(event, RoundStarted) and not event.last,
        "prepare": lambda event: event == PhaseEntered(Phase.PREPARE),
        "blackout": lambda event: isinstance(event, RoundStarted) and event.last,
    }
    for name, found in phases.items():
        seen = len(serve.lines)
        guest = SimulatedSourceGuest(WorkloadParameters.for_memory(4 << 20, 1 << 20), rate_bytes_s=1 << 20)
        source = StallingSource(guest, found, what)
        await source.migrate(port)
        session = await serve.until("session", since=seen)
        assert session["outcome"] == "rolled_back", name
        assert session["code"] in {"peer_silent", "peer_stalled", "phase_deadline", "connection_lost"}, name
        assert source.result.outcome is Outcome.ROLLED_BACK, name
        assert guest.running, name
        await world.wait_for("d", lambda status: status.state == "empty")
    assert guest.workload.audit().errors == 0


async def test_the_source_endpoint_is_killed_while_the_guest_is_paused(
    world: World, nursery: trio.Nursery
) -> None:
    """[ONE-22] It was paused for a migration and not granted: the holder lets it run on by itself."""
    await world.source()
    destination = StallingDestination(lambda event: isinstance(event, RoundStarted) and event.last, "both")
    port = await listen_plainly(nursery, destination.serve)
    migrate = await world.migrate(port, insecure=True)
    await world.wait_for("s", lambda status: status.state == "paused")
    migrate.send(signal.SIGKILL)
    await migrate.end()
    await world.check_runs("s")
    assert judge_journal(world.journal) == []


async def test_the_source_holder_is_killed_in_a_round(world: World) -> None:
    """The guest dies with its holder, wherever an endpoint is; both endpoints say so and end."""
    holder = await world.source()
    await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, *LESS_SLOWLY)
    await migrate.until("progress", in_a_round)
    holder.send(signal.SIGKILL)
    assert await migrate.end() == 6, migrate.said()
    session = await serve.until("session")
    assert session["outcome"] == "rolled_back"
    assert (await world.wait_for("d", lambda status: status.state == "empty")).epoch == 0


async def test_ctrl_c_cancels_before_the_handover(world: World) -> None:
    await world.source()
    await world.room()
    serve, port = await world.serve("--once")
    migrate = await world.migrate(port, *SLOWLY)
    await migrate.until("progress", in_a_round)
    migrate.send(signal.SIGINT)
    assert await migrate.end() == 7, migrate.said()
    assert (migrate.last["outcome"], migrate.last["code"]) == ("rolled_back", "cancelled")
    await world.check_runs("s")
    assert await serve.end() == 7, serve.said()
    assert (serve.last["code"], serve.last["by_peer"]) == ("cancelled", True)


async def test_the_destination_is_told_to_end_in_a_round(world: World) -> None:
    await world.source()
    await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, *SLOWLY)
    await migrate.until("progress", in_a_round)
    serve.send(signal.SIGTERM)
    assert await migrate.end() == 7, migrate.said()
    assert (migrate.last["code"], migrate.last["by_peer"]) == ("cancelled", True)
    await world.check_runs("s")
    assert await serve.end() == 0, serve.said()
