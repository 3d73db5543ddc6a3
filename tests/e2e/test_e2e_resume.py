"""Real processes over a link that is cut, and comes back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio
from commands import World
from cutting import Relay
from judge import judge_journal

from etcd_support import etcd
from sterna.core.verdict import Slot
from sterna.host.lease_files import FileLeaseStore, create_file_store
from sterna.host.records_keeper import open_records

pytestmark = pytest.mark.slow

MIB = 1 << 20
SLOWLY = ("--bandwidth", "8MiB/s", "--resume", "30s", "--streams", "0")


async def test_a_link_that_is_cut_five_times(world: World, nursery: trio.Nursery) -> None:
    """[RES-1] [RES-3] [RES-4] [RES-8] [RES-9] Over mutual TLS; nothing of the guest is lost."""
    await world.source()
    await world.room()
    serve, port = await world.serve("--once")
    relay = Relay(port, [5 * MIB, 100, 4 * MIB, 3 * MIB, 6 * MIB])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, *SLOWLY)
    assert await migrate.end() == 0, migrate.said()
    assert relay.connections == 6
    # The second connection ended in its TLS handshake, and was no connection of the session.
    assert migrate.last["resumed"] == 4
    assert "the link was lost and came back 4 times" in migrate.said()
    assert "link back, for the 1st time" in migrate.said()
    assert await serve.end() == 0, serve.said()
    assert (serve.last["resumed"], serve.last["sessions"]) == (4, 1)
    assert serve.last["digest"] == migrate.last["digest"]
    assert migrate.last["bytes_sent"] < 3 * 16 * MIB
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
async def test_a_link_that_is_cut_while_pages_follow_the_guest(
    world: World, nursery: trio.Nursery, switchover: str
) -> None:
    """[RES-13] [RES-4] [PCY-9] [PCY-12] Over mutual TLS; the guest waits at its faults, and loses nothing."""
    await world.holder("s", "--memory", "16MiB", "--hot", "12MiB", "--dirty-rate", "400MiB/s")
    await world.room()
    serve, port = await world.serve("--once")
    before = 18 * MIB if switchover == "bitmap" else 0  # a round of everything comes first
    relay = Relay(port, [before + 2 * MIB, 100, MIB, 3 * MIB])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, *SLOWLY, "--switchover", switchover, "--max-rounds", "1")
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert relay.connections == 5
    assert (migrate.last["resumed"], serve.last["resumed"]) == (3, 3), migrate.said()
    assert (migrate.last["outcome"], serve.last["outcome"]) == ("completed", "completed")
    assert serve.last["digest"] == migrate.last["digest"]
    after = serve.last["after"]
    assert after["stale_pages"] == after["demanded_pages"] + after["pushed_pages"] > 1500
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("switchover", ["bitmap", "post-copy"])
async def test_a_destination_process_that_dies_while_pages_follow_the_guest(
    world: World, nursery: trio.Nursery, switchover: str
) -> None:
    """[RES-13] [PCY-16] [HOL-41] The next one goes on with what is missing, and twice in a row."""
    await world.holder("s", "--memory", "16MiB", "--hot", "12MiB", "--dirty-rate", "400MiB/s")
    await world.room()
    serve, port = await world.serve()
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    options = ("--switchover", switchover, "--max-rounds", "1", "--bandwidth", "4MiB/s", *SLOWLY[2:])
    migrate = await world.migrate(relay.port, *options)
    for most in (3000, 1500):  # of some 3000 or 4096 that are stale
        await world.wait_for("d", lambda status, most=most: 0 < status.missing < most)
        serve.send(signal.SIGKILL)
        await serve.end()
        left = (await world.status("d")).missing
        assert left > 0
        serve, port = await world.serve("--once")
        relay._target = port
        await serve.until("session_resumed")
        assert (await world.status("d")).missing <= left
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert (migrate.last["outcome"], serve.last["outcome"]) == ("completed", "completed")
    assert migrate.last["resumed"] == 2
    assert serve.last["digest"] == migrate.last["digest"]
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize(("switchover", "times", "stored"), [("bitmap", 1, False), ("post-copy", 2, True)])
async def test_a_source_process_that_dies_while_pages_follow_the_guest(
    world: World, switchover: str, times: int, stored: bool
) -> None:
    """[RES-19] [RES-13] [ONE-38] The next one serves on what is missing, as often as that happens."""
    store: tuple[object, ...] = ()
    if stored:
        create_file_store(world.directory / "leases")
        store = ("--store", world.directory / "leases")
    first = (*store, *world.records("a"), "--host", "host-a") if store else ()
    await world.holder("s", "--memory", "16MiB", "--hot", "12MiB", "--dirty-rate", "400MiB/s", *first)
    await world.room()
    serve, port = await world.serve("--once", *store)
    options = ("--switchover", switchover, "--max-rounds", "1", "--bandwidth", "4MiB/s", *SLOWLY[2:], *store)
    for most in (3000, 1500)[-times:]:  # of some 3000 or 4096 that are stale
        migrate = await world.migrate(port, *options)
        await world.wait_for("d", lambda status, most=most: 0 < status.missing < most)
        migrate.send(signal.SIGKILL)
        await migrate.end()
        left = (await world.status("d")).missing
        assert left > 0
        assert (await world.status("s")).state == "granted"
    migrate = await world.migrate(port, *options)
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert (migrate.last["outcome"], serve.last["outcome"]) == ("completed", "completed")
    assert serve.last["resumed"] == times
    assert serve.last["digest"] == migrate.last["digest"]
    assert 0 < migrate.last["after"]["pushed_pages"] <= left
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
async def test_a_host_that_is_busy_keeps_no_page_for_good_from_a_guest_that_runs(
    world: World, nursery: trio.Nursery
) -> None:
    """[RES-18] [RES-13] An operator has the guest's records when its destination is started anew."""
    await world.holder("s", "--memory", "16MiB", "--hot", "12MiB", "--dirty-rate", "400MiB/s")
    await world.room()
    serve, port = await world.serve()
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    options = ("--switchover", "post-copy", "--max-rounds", "1", "--bandwidth", "4MiB/s", *SLOWLY[2:])
    migrate = await world.migrate(relay.port, *options)
    await world.wait_for("d", lambda status: 0 < status.missing < 3000)
    serve.send(signal.SIGKILL)
    await serve.end()
    records = world.directory / "records-b"
    (guest,) = (bytes.fromhex(each.name) for each in records.iterdir() if each.is_dir())
    async with await open_records(records, guest, purpose="an operator"):
        serve, relay._target = await world.serve("--once")
        await migrate.until("link_lost", lambda line: line["code"] == "busy")
        assert (await world.status("d")).missing > 0
    assert await migrate.end() == 0, migrate.said()
    assert await serve.end() == 0, serve.said()
    assert (migrate.last["outcome"], migrate.last["resumed"]) == ("completed", 1)
    assert serve.last["digest"] == migrate.last["digest"]
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_an_image_that_nobody_needs_any_more_is_freed_by_the_next_process(world: World) -> None:
    """[RES-19] [RES-17] [ONE-38] COMPLETE had come, with the right digest, and is repeated."""
    await world.source("s")
    await world.room()
    _, port = await world.serve()
    await (await world.migrate(port, stop="before ReleaseImage")).dies()
    assert (await world.status("s")).state == "granted"
    migrate = await world.migrate(port)
    assert await migrate.end() == 0, migrate.said()
    assert (migrate.last["outcome"], migrate.last["recovered"]["owner"]) == ("completed", "destination")
    assert migrate.last["holder"]["state"] == "released"
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("etcd")
@pytest.mark.needs("userfaultfd")
async def test_a_store_that_is_frozen_keeps_no_page_from_a_guest_that_runs(
    world: World, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """[RES-13] The destination's next process goes on at once: START is recorded, and what runs, runs."""
    with etcd(tmp_path) as server:
        first = ("--store", server.name, *world.records("a"), "--host", "host-a")
        await world.holder("s", "--memory", "16MiB", "--hot", "12MiB", "--dirty-rate", "400MiB/s", *first)
        await world.room()
        serve, port = await world.serve("--store", server.name)
        relay = Relay(port, [])
        await nursery.start(relay.listen)
        options = ("--switchover", "post-copy", "--max-rounds", "1", "--bandwidth", "4MiB/s", *SLOWLY[2:])
        migrate = await world.migrate(relay.port, *options, "--store", server.name)
        await world.wait_for("d", lambda status: 0 < status.missing < 3000)
        serve.send(signal.SIGKILL)
        await serve.end()
        server.pause()
        serve, relay._target = await world.serve("--store", server.name)
        assert await migrate.end() == 0, migrate.said()
        assert (migrate.last["outcome"], migrate.last["resumed"]) == ("completed", 1)
        await world.check_runs("d")
        assert judge_journal(world.journal) == []


@pytest.mark.parametrize("holder", ["lives", "is another one"])
async def test_a_destination_process_that_was_started_anew(
    world: World, nursery: trio.Nursery, holder: str
) -> None:
    """[RES-7] It has no round of the session any more: everything is sent again, and the session goes on."""
    await world.source()
    room = await world.room()
    serve, port = await world.serve()
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, "--bandwidth", "8MiB/s", "--resume", "30s")
    await migrate.until("round_finished")
    serve.send(signal.SIGKILL)
    await serve.end()
    if holder != "lives":
        room.send(signal.SIGKILL)
        await room.end()
        await world.room()
    _, relay._target = await world.serve("--once")
    assert await migrate.end() == 0, migrate.said()
    assert (migrate.last["outcome"], migrate.last["resumed"]) == ("completed", 1)
    resumed = await migrate.until("session_resumed")
    assert resumed["complete_round"] == 0
    assert migrate.last["bytes_sent"] > 2 * 16 * MIB
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_a_destination_process_that_was_started_anew_claims_in_the_store(
    world: World, nursery: trio.Nursery
) -> None:
    """[RES-16] [RES-18] [ONE-7] The session goes on with its store, as soon as that answers again.

    Until then the guest runs on at the source. It runs as whom its slot names.
    """
    leases = world.directory / "leases"
    create_file_store(leases)
    await world.source("s", "--store", leases, *world.records("a"), "--host", "host-a")
    await world.room()
    serve, port = await world.serve("--store", leases)
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, "--bandwidth", "8MiB/s", "--resume", "30s", "--store", leases)
    await migrate.until("round_finished")
    serve.send(signal.SIGKILL)
    await serve.end()
    _, again = await world.serve("--once", "--store", leases)
    aside = leases.rename(world.directory / "out-of-reach")
    relay._target = again
    await migrate.until("link_lost", lambda line: line["code"] == "busy")
    assert (await world.status("s")).state == "running"
    aside.rename(leases)
    assert await migrate.end() == 0, migrate.said()
    assert (migrate.last["outcome"], migrate.last["resumed"]) == ("completed", 1)
    await world.check_runs("d")
    status, (guest,) = await world.status("d"), (world.directory / "records-b").glob("?" * 32)
    slot = await FileLeaseStore(leases).newest(bytes.fromhex(guest.name))
    assert slot == Slot(2, status.runner)


async def test_a_destination_process_that_knows_of_no_session(world: World, nursery: trio.Nursery) -> None:
    """[RES-3] [CON-62] It has other records: the guest runs on here, and can be sent again."""
    await world.source()
    await world.room()
    serve, port = await world.serve()
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, "--bandwidth", "2MiB/s", "--resume", "30s")
    await migrate.until("progress", lambda line: line["bytes_sent"] > MIB)
    serve.send(signal.SIGKILL)
    await serve.end()
    await migrate.until("link_lost")
    _, relay._target = await world.serve(host="c")
    assert await migrate.end() != 0, migrate.said()
    assert (migrate.last["outcome"], migrate.last["code"]) == ("rolled_back", "bad_token")
    await world.check_runs("s")
    again = await world.migrate(relay.port)
    assert await again.end() == 0, again.said()
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.needs("userfaultfd")
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("stored", [False, True])
async def test_a_link_that_is_lost_before_the_source_knows_where_the_guest_runs(
    world: World, nursery: trio.Nursery, stored: bool, killed: bool
) -> None:
    """[RES-13] [ONE-45] [RES-12] It asks, and then comes back for the pages, whoever is there by then."""
    store: list[object] = []
    if stored:
        create_file_store(world.directory / "leases")
        store = ["--store", world.directory / "leases"]
    await world.source("s", *store, *(world.records("a") if stored else ()), "--host", "host-a")
    await world.room()
    serve, port = await world.serve(*store, "--once", stop="before RunGuest")
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    options = (*store, "--switchover", "post-copy", "--resume", "30s", "--undecided-after", "30s")
    migrate = await world.migrate(relay.port, *options)
    await serve.stops()
    relay.cut()
    await migrate.until("notice", lambda line: "asking" in line["text"])
    if killed:
        await serve.dies()
        serve, relay._target = await world.serve(*store, "--once")
    else:
        serve.send(signal.SIGCONT)
    assert await migrate.end() == 0, migrate.said()
    assert (migrate.last["outcome"], migrate.last["resumed"]) == ("completed", 1), migrate.said()
    assert await serve.end() == 0, serve.said()
    assert serve.last["outcome"] == "completed"
    assert serve.last["digest"] == migrate.last["digest"]
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("switchover", ["stop-and-copy", "post-copy"])
async def test_a_link_that_is_lost_with_the_last_word(
    world: World, nursery: trio.Nursery, switchover: str, killed: bool
) -> None:
    """[ONE-38] [ONE-39] COMPLETE is lost; VERDICT repeats it, and the image is freed all the same."""
    holder = await world.source()
    await world.room()
    serve, port = await world.serve(stop="after Persist:Complete")
    relay = Relay(port, [])
    await nursery.start(relay.listen)
    migrate = await world.migrate(relay.port, "--resume", "30s", "--switchover", switchover)
    await serve.stops()
    relay.cut()
    await migrate.until("link_lost")
    if killed:
        await serve.dies()
        serve, relay._target = await world.serve()
    else:
        serve.send(signal.SIGCONT)
    assert await migrate.end() == 0, migrate.said()
    assert migrate.last["outcome"] == "completed", migrate.said()
    assert await holder.end() == 0
    await world.check_runs("d")
    assert judge_journal(world.journal) == []


async def test_ctrl_c_while_there_is_no_link(world: World) -> None:
    """[CON-71]"""
    await world.source()
    await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, "--bandwidth", "2MiB/s", "--resume", "60s")
    await migrate.until("progress", lambda line: line["bytes_sent"] > MIB)
    serve.send(signal.SIGKILL)
    await migrate.until("link_lost")
    migrate.send(signal.SIGINT)
    assert await migrate.end() == 7, migrate.said()
    assert (migrate.last["outcome"], migrate.last["code"]) == ("rolled_back", "cancelled")
    await world.check_runs("s")


async def test_a_new_opening_takes_the_place_of_a_lost_session(world: World) -> None:
    """[ONE-13] [RES-14] A source that has been started anew need not wait for the seconds to pass."""
    await world.source()
    await world.room()
    serve, port = await world.serve()
    migrate = await world.migrate(port, "--bandwidth", "2MiB/s", "--resume", "60s")
    await migrate.until("progress", lambda line: line["bytes_sent"] > MIB)
    migrate.send(signal.SIGKILL)
    await serve.until("link_lost")
    again = await world.migrate(port)
    assert await again.end() == 0, again.said()
    assert (await serve.until("session"))["code"] == "cancelled"
    await world.check_runs("d")
    assert judge_journal(world.journal) == []
