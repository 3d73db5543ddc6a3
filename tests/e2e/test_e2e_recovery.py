"""Endpoints that die between mark and RUNNING, and come again: exactly one side runs the guest afterwards.

Where a process dies is exact: it stops itself at a named place, and is killed there (sterna.host.failpoint).
That it is one guest that runs, and that it never ran twice, its journal tells to a judge that knows nothing
of records.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from commands import Command, World
from cutting import Relay
from judge import judge_journal

from etcd_support import etcd
from sterna.host.lease_files import create_file_store

pytestmark = pytest.mark.slow

Options = list[object]


@pytest.fixture(params=["alone", "files", pytest.param("etcd", marks=pytest.mark.needs("etcd"))])
def store(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[Options]:
    """Options that name the lease store; none where two endpoints are all there is."""
    match request.param:
        case "alone":
            yield []
        case "files":
            create_file_store(world.directory / "leases")
            yield ["--store", world.directory / "leases"]
        case _:
            with etcd(tmp_path) as server:
                yield ["--store", server.name]


async def start(world: World, store: Options) -> Command:
    """A guest, and the holder that has room for it."""
    first = [*store, *world.records("a"), "--host", "host-a"] if store else []
    await world.source("s", *first)
    return await world.room()


async def ended(command: Command, *codes: int) -> dict:
    """Its last line, once it has ended with one of these codes."""
    assert await command.end() in codes, command.said()
    return command.last


async def verdict(world: World, host: str, holder: str, *options: object) -> tuple[int, dict]:
    """What a host says of the guest, by its records and its holder."""
    (guest,) = (each.name for each in (world.directory / f"records-{host}").glob("?" * 32))
    command = await world.start(
        "verdict", guest, *world.records(host), "--name", f"host-{host}", "--holder", world.socket(holder),
        "--json", *options,
    )  # fmt: skip
    code = await command.end()
    return code, command.last


@pytest.mark.parametrize("place", ["after MarkGranted", "after Persist:Granted"])
async def test_a_source_that_dies_before_handover_runs_on(world: World, store: Options, place: str) -> None:
    """[ONE-61] [ONE-43] [ONE-48] [ONE-21] And is sent, as was wished, once that is decided.

    At once: the destination keeps the lost session for a minute, and it is replaced [ONE-13].
    """
    await start(world, store)
    _, port = await world.serve(*store)
    await (await world.migrate(port, *store, "--resume", "60s", stop=place)).dies()
    stood = await world.status("s")
    assert (stood.state, stood.granted_epoch) == ("granted", 2)
    code, told = await verdict(world, "a", "s", *store)
    assert (code, told["here"]) == (8, None)
    await ended(await world.migrate(port, *store), 0)
    await world.check_runs("d")
    # Claimed back under 2 where there is a store, under 3 where it was handed back; and sent then.
    assert (await world.status("d")).epoch == (3 if store else 4)
    assert (await verdict(world, "a", "s", *store))[1]["host"] == "host-b"
    assert (await verdict(world, "b", "d", *store))[1]["here"] is True
    assert judge_journal(world.journal) == []


async def test_a_destination_that_dies_before_its_claim(world: World, store: Options) -> None:
    """[ONE-58] [ONE-44] [ONE-7] [ONE-62]"""
    await start(world, store)
    serve, port = await world.serve(*store, stop="after Persist:Claiming")
    migrate = await world.migrate(port, *store)
    await serve.dies()
    if store:  # it claims itself, and wins
        assert (await ended(migrate, 5))["outcome"] == "rolled_back"
        await world.check_runs("s")
        assert (await world.status("s")).epoch == 2
    else:  # nobody can be asked yet
        assert (await ended(migrate, 8))["outcome"] == "undecided"
        assert (await world.status("s")).state == "granted"
    serve, port = await world.serve(*store)
    if store:  # else it had noted nothing that would have to be recovered [ONE-62]
        assert (await serve.until("recovered"))["owner"] == "source"
    await ended(await world.migrate(port, *store), 0)
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.parametrize("place", ["after Claim", "after Persist:Start", "before RunGuest"])
async def test_a_destination_that_dies_with_its_claim_won(world: World, store: Options, place: str) -> None:
    """[ONE-33] [ONE-45] [ONE-58] Its next controller starts what is decided, or decides it with the store."""
    await start(world, store)
    serve, port = await world.serve(*store, stop=place)
    migrate = await world.migrate(port, *store)
    await serve.dies()
    told = await ended(migrate, 6 if store else 8)
    assert told["outcome"] == ("moved" if store else "undecided")
    assert ("nobody has said yet that it runs there" in migrate.said()) is bool(store)
    assert (await world.status("d")).state == "loaded"
    serve, port = await world.serve(*store)
    started = bool(store) or place != "after Claim"
    if started:  # else it had noted nothing that would have to be recovered [ONE-62]
        assert (await serve.until("recovered"))["owner"] == "destination"
    if not store:
        told = await ended(await world.migrate(port), 0)
        assert told["outcome"] == "completed"  # though nobody has said COMPLETE before [ONE-39]
    await world.check_runs("d")
    assert (await world.status("d")).epoch == (2 if started else 4)
    if store:  # else it was released, and its holder has ended
        assert (await world.status("s")).state == "granted"
    assert judge_journal(world.journal) == []


@pytest.mark.needs("etcd")
async def test_a_store_that_is_frozen_behind_handover_holds_both_up(world: World, tmp_path: Path) -> None:
    """[ONE-31] [ONE-7] Both stay paused and ask on; when it answers, whoever is named runs the guest."""
    with etcd(tmp_path) as server:
        store: Options = ["--store", server.name]
        await start(world, store)
        serve, port = await world.serve(*store, stop="before Claim")
        migrate = await world.migrate(port, *store, "--patience", "2s")
        await serve.stops()
        server.pause()
        serve.send(signal.SIGCONT)
        assert (await ended(migrate, 8))["outcome"] == "undecided"
        await serve.until("notice", lambda line: "does not answer" in line["text"])
        assert (await world.status("s")).state == "granted"
        assert (await world.status("d")).state == "loaded"
        server.resume()
        # The claim of the source may be on its way: then that is the one which is named.
        await ended(await world.migrate(port, *store), 0)
        await world.check_runs("d")
        assert judge_journal(world.journal) == []


async def test_a_guest_whose_destination_is_gone_for_ever_is_resolved(world: World) -> None:
    """[ONE-47] [ONE-59] Nobody but an operator can know: endpoint and holder are dead, and stay so."""
    await start(world, [])
    serve, port = await world.serve(stop="after Persist:Claiming")
    migrate = await world.migrate(port)
    await serve.dies()
    await ended(migrate, 8)
    code, told = await verdict(world, "a", "s", "--peer", "recorded", "--pki", world.pki)
    assert (code, told["here"], told["clause"]) == (8, None, "ONE-43")
    assert any("peer" in each for each in told["troubles"])
    resolve = ["resolve", told["guest"], *world.records("a"), "--name", "host-a", "--owner", "source"]
    resolve += ["--json"]
    refused = await ended(await world.start(*resolve), 2)
    assert "--i-have-fenced host-b" in refused["error"]["text"]
    assert (await world.status("s")).state == "granted"
    resolve += ["--i-have-fenced", "host-b", "--holder", world.socket("s")]
    assert (await ended(await world.start(*resolve), 0))["recorded"] == "resolved"
    await world.check_runs("s")
    assert (await world.status("s")).epoch == 3
    assert (await verdict(world, "a", "s"))[1]["here"] is True
    records = (world.directory / "records-a" / told["guest"]).glob("log-*")
    assert any('"fenced":"host-b"' in path.read_text(errors="replace") for path in records)
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("place", ["after Persist:Claiming", "before RunGuest"])
async def test_pages_are_sent_to_a_guest_that_operators_have_left_to_its_destination(
    world: World, place: str
) -> None:
    """[ONE-42] [ONE-59] [RES-13] What they are told to do brings them there, whoever starts the guest."""
    await start(world, [])
    serve, port = await world.serve(stop=place)
    migrate = await world.migrate(port, "--switchover", "post-copy", "--streams", "0")
    await serve.dies()
    await ended(migrate, 8)
    guest = (await verdict(world, "b", "d"))[1]["guest"]
    command = ["resolve", guest, "--owner", "destination", "--json"]
    here = await world.start(*command, *world.records("a"), "--name", "host-a", "--holder", world.socket("s"))
    assert (await ended(here, 0))["pages_follow"] is True
    assert "Keep this holder; once the guest runs there, sterna migrate" in here.said()
    there = [*world.records("b"), "--name", "host-b", "--holder", world.socket("d")]
    if place == "after Persist:Claiming":  # nobody else starts it
        refused = await ended(await world.start(*command, *there), 2)
        assert "Do not end that holder" in refused["error"]["text"]
        decided = await ended(await world.start(*command, *there, "--i-have-fenced", "host-a"), 0)
        assert (decided["recorded"], decided["pages_follow"]) == ("start", True)
    serve, port = await world.serve()
    await world.wait_for("d", lambda status: status.state == "running" and status.missing > 0)
    assert (await ended(await world.migrate(port), 0))["outcome"] == "completed"
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_a_destination_whose_holder_dies_behind_start_has_lost_the_guest(world: World) -> None:
    """[ONE-34] [ONE-42] What no protocol can save is told by its name, at both sides."""
    room = await start(world, [])
    serve, port = await world.serve(stop="before RunGuest")
    migrate = await world.migrate(port)
    await serve.dies()
    await ended(migrate, 8)
    room.send(signal.SIGKILL)
    await room.end()
    await world.room()
    serve, port = await world.serve()
    recovered = await serve.until("recovered")
    assert (recovered["lost"], recovered["clause"]) == (True, "ONE-45")
    await serve.says("guest_lost")
    assert (await verdict(world, "b", "d"))[0] == 9
    told = await ended(await world.migrate(port), 6)
    assert told["outcome"] == "moved"
    assert (await world.status("s")).state == "granted"
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("store", ["files"], indirect=True)
async def test_a_source_holder_and_a_link_that_are_lost_before_the_guest_is_claimed(
    world: World, nursery: trio.Nursery, store: Options
) -> None:
    """[ONE-42] Its endpoint has the pages, lets the destination claim the guest, and sends them."""
    kept = await world.source("s", *store, *world.records("a"), "--host", "host-a")
    await world.room()
    serve, port = await world.serve(*store, stop="before Persist:Claiming")
    relay = Relay(port, ())
    await nursery.start(relay.listen)
    options = ("--switchover", "post-copy", "--streams", "0", "--resume", "60s", "--undecided-after", "60s")
    migrate = await world.migrate(relay.port, *options, *store)
    await serve.stops()
    kept.send(signal.SIGKILL)
    await kept.end()
    relay.cut()
    await migrate.says("waiting for who runs it")
    serve.send(signal.SIGCONT)
    assert (await ended(migrate, 0))["outcome"] == "completed"
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("endpoint", [True, False])
async def test_pages_that_follow_a_guest_whose_source_holder_dies(
    world: World, store: Options, endpoint: bool
) -> None:
    """[ONE-42] The source's endpoint has them mapped; with both dead the guest is lost, and that is said."""
    first = [*store, *world.records("a"), "--host", "host-a"] if store else []
    kept = await world.source("s", *first)
    await world.room()
    serve, port = await world.serve(*store)
    options = ("--switchover", "post-copy", "--bandwidth", "2MiB/s", "--resume", "2s", "--streams", "0")
    migrate = await world.migrate(port, *options, *store)
    await world.wait_for("d", lambda status: 0 < status.missing < 3500)
    kept.send(signal.SIGKILL)
    await kept.end()
    asks = ["--peer", f"127.0.0.1:{port}", "--pki", world.pki]
    if endpoint:
        assert (await verdict(world, "a", "s", *store))[0] == 8
        assert (await ended(migrate, 0))["outcome"] == "completed"
        assert (await verdict(world, "a", "s", *store))[0] == 0
        await world.check_runs("d")
        assert judge_journal(world.journal) == []
        return
    migrate.send(signal.SIGKILL)
    await migrate.end()
    code, told = await verdict(world, "a", "s", *store)
    assert (code, told["lost"], told["next"]) == (8, False, "ask the destination")
    session = await serve.until("session")
    assert session["outcome"] == "stranded"
    await serve.says("If that is gone the guest is lost")
    code, told = await verdict(world, "a", "s", *store, *asks)
    assert (code, told["lost"], told["clause"]) == (9, True, "ONE-42"), told
    assert (await world.status("d")).missing > 0
