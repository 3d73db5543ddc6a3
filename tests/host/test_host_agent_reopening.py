"""Sessions that an earlier process of this host has left, as its next process finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from agent_support import BY_ID, ID, NOBODY, OTHER_ID, PEERS, SENDER, STRANGER, take_over
from test_host_openings import ASKING, HELLO, OPENING

from sterna.core.records import Claiming, Complete, Granted, HandBack, Released, SessionRecord, Side, Start
from sterna.errors import RecordError, SternaError
from sterna.host.agent import HostSession, PeerListHost
from sterna.host.lease import LeaseStore
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.openings import SUFFIX
from sterna.host.records_shelf import RecordsShelf
from sterna.net.hosting import Reopened
from sterna.net.transport import Peer
from sterna.registry import ErrorCode, Feature, Owner
from sterna.testing.faulty_store import Fault, FaultyStore
from sterna.wire.records import FeatureChoice, FeatureOffer, Hello, Runner, Verdict

EPOCH = HELLO.epoch
CLAIMING = object()  # nothing behind it
ONWARD = SessionRecord(b"o" * 16, EPOCH + 1, Side.SOURCE, bytes(32), "elsewhere", "there:1")


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., PeerListHost]:
    """A new process of this host."""

    def started(store: LeaseStore | None = None) -> PeerListHost:
        return PeerListHost("here", PEERS, shelf=RecordsShelf(tmp_path, "a test"), store=store)

    return started


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def leave(host: PeerListHost, *records: object) -> Hello:
    """A session of a process that is killed when these are recorded; what its source says when it is back."""
    session = host.session()
    made = await session.admit(HELLO, SENDER)
    assert not isinstance(made, Verdict)
    welcome = replace(OPENING.welcome, session=made.session, token=made.token)
    await session.opened(replace(OPENING, welcome=welcome, runner=made.runner))
    if records:
        await take_over(session, EPOCH)
    for record in records:
        if record is not CLAIMING:
            await session.persist(record(session) if callable(record) else record)
    await host.shelf.give_back(ID)  # its lock is gone with it
    return replace(ASKING, session=made.session, token=made.token)


def complete(session: HostSession) -> Complete:
    assert session.admission is not None
    return Complete(session.admission.session, EPOCH + 1, bytes(16))


def released(session: HostSession) -> Released:
    assert session.admission is not None
    return Released(session.admission.session)


def settling(host: PeerListHost) -> list[bytes]:
    """The guests that are recovered from now on."""
    settled = []

    async def settle(guest: bytes) -> None:
        settled.append(guest)

    host.settle = settle
    return settled


async def refused(host: PeerListHost, hello: Hello, peer: Peer) -> SternaError:
    async with host.session() as session:
        with pytest.raises(SternaError) as caught:
            await session.reopen(hello, peer)
    assert not session.admitted
    return caught.value


async def test_a_session_before_handover_is_found(process) -> None:
    """[RES-7] [RES-16] By its own peer alone; whoever else asks disturbs nothing [RES-3]."""
    hello = await leave(process())
    host = process()
    settled = settling(host)
    for changes, peer in (
        ({}, BY_ID),
        ({"token": b"x" * 32}, SENDER),
        ({"session": b"x" * 16}, SENDER),
        ({"guest": OTHER_ID}, SENDER),
    ):
        error = await refused(host, replace(hello, **changes), peer)
        assert error.code in {ErrorCode.BAD_TOKEN, ErrorCode.NOT_AUTHORISED}
    for peer in (STRANGER, NOBODY):
        assert (await refused(host, hello, peer)).code is ErrorCode.NOT_AUTHORISED
    assert settled == []
    async with host.session() as session:
        found = await session.reopen(hello, SENDER)
        assert isinstance(found, Reopened)
        assert not found.runs
        assert session.admission == found.opening.admission
        assert session.admitted
        assert (
            await refused_opening(host)
        ).code is ErrorCode.BUSY  # it is open here, and cannot be cancelled


async def fill(store: LeaseStore, newest: int) -> None:
    for epoch in range(1, newest + 1):
        await store.claim(ID, epoch, HELLO.runner)


async def leave_with_store(host: PeerListHost) -> Hello:
    """A session in which `lease_store` was selected, of a process that is killed before HANDOVER."""
    assert host.store is not None
    await fill(host.store, EPOCH)
    session = host.session()
    opened = replace(HELLO, features=(*HELLO.features, FeatureOffer(Feature.LEASE_STORE, required=True)))
    made = await session.admit(opened, SENDER)
    assert not isinstance(made, Verdict)
    features = (*OPENING.welcome.features, FeatureChoice(Feature.LEASE_STORE))
    welcome = replace(OPENING.welcome, session=made.session, token=made.token, features=features)
    opening = replace(OPENING, hello=opened, welcome=welcome, runner=made.runner)
    await session.opened(opening)
    await host.shelf.give_back(ID)
    return opening.ticket.next_hello()


async def test_the_next_process_asks_the_store_as_well(process) -> None:
    """[RES-16] [ONE-7] [ONE-31] Its claim is the store's to decide, not its own."""
    store = MemoryLeaseStore()
    host = process(store)
    hello = await leave_with_store(host)
    async with process(store).session() as session:
        assert isinstance(await session.reopen(hello, SENDER), Reopened)
        assert session.admission is not None
        winner = HELLO.runner
        assert await store.claim(ID, EPOCH + 1, winner) == winner  # the source has claimed the guest back
        assert await session.claim(EPOCH + 1, session.admission.runner) == winner


@pytest.mark.parametrize(
    "why", ["no store", "another store", "claimed meanwhile", "a store that was not asked"]
)
async def test_another_store_than_that_of_the_opening(process, why: str) -> None:
    """[RES-16] [ONE-11] [ONE-55] It is refused before anything is touched: the opening stays."""
    store = MemoryLeaseStore()
    asked = why != "a store that was not asked"
    hello = await (leave_with_store(process(store)) if asked else leave(process()))
    if why in {"claimed meanwhile", "a store that was not asked"}:
        await fill(store, EPOCH + 1)
    next_store = {"no store": None, "another store": MemoryLeaseStore()}.get(why, store)
    host = process(next_store)
    stale = {"another store", "claimed meanwhile"}
    error = await refused(host, hello, SENDER)
    assert error.code is (ErrorCode.STALE_EPOCH if why in stale else ErrorCode.MISSING_FEATURE)
    assert list(host.shelf.directory.glob(f"*{SUFFIX}"))


async def test_a_store_that_is_silent_is_asked_when_the_source_comes_again(process) -> None:
    """[RES-16] [RES-18] [ONE-16] Before HANDOVER: nothing is touched, and nothing is over."""
    store = MemoryLeaseStore()
    hello = await leave_with_store(process(store))
    host = process(FaultyStore(store, faults=[Fault.OUTAGE]))
    assert (await refused(host, hello, SENDER)).code is ErrorCode.BUSY
    async with host.session() as session:
        assert isinstance(await session.reopen(hello, SENDER), Reopened)


@pytest.mark.parametrize("whose", ["another's", "its own"])
async def test_a_session_that_the_records_know_better(process, whose: str) -> None:
    """[ONE-12] [ONE-14] What may not be opened any more is not taken up again either."""
    host = process()
    hello = await leave(host)
    async with host.shelf.opened(ID) as keeper:
        assert keeper is not None
        other = Runner("here", b"o" * 16)
        peer = "by-id" if whose == "another's" else "sender"
        await keeper.append(SessionRecord(b"o" * 16, EPOCH, Side.DESTINATION, b"t" * 32, peer))
        if whose == "its own":
            await keeper.append(Claiming(b"o" * 16, EPOCH + 1, other, b"o" * 16))
    if whose == "its own":
        async with process().session() as session:
            assert isinstance(await session.reopen(hello, SENDER), Verdict)
    else:
        assert (await refused(process(), hello, SENDER)).code is ErrorCode.BUSY


async def test_what_does_not_fit_the_opening_changes_nothing(process) -> None:
    """[RES-2] [RES-16] Not even with the right token: the session of a guest that runs is found then."""
    hello = await leave(process(), Start(EPOCH + 1))
    host = process()
    for changes in ({"epoch": EPOCH + 7}, {"epoch": EPOCH - 1}, {"features": ()}):
        assert (await refused(host, replace(hello, **changes), SENDER)).code is ErrorCode.NOT_SELECTED
    async with host.session() as session:
        found = await session.reopen(hello, SENDER)
        assert isinstance(found, Reopened)
        assert found.runs


async def test_an_opening_outlives_a_connection_that_makes_no_room(process) -> None:
    """[RES-16] It was lost meanwhile, or the holder was busy: the next one finds the session still."""
    hello = await leave(process())
    host = process()
    for _ in range(2):
        async with host.session() as session:
            found = await session.reopen(hello, SENDER)
            assert isinstance(found, Reopened)
    async with host.session() as session:
        await session.reopen(hello, SENDER)
        await session.opened(found.opening)  # there is room, and the session ends here
    assert (await refused(host, hello, SENDER)).code is ErrorCode.BAD_TOKEN


async def refused_opening(host: PeerListHost) -> SternaError:
    async with host.session() as other:
        with pytest.raises(SternaError) as caught:
            await other.admit(HELLO, BY_ID)
    return caught.value


async def test_a_session_whose_guest_was_started_is_gone_on_with(process) -> None:
    """[RES-13] [ONE-13] It has received HANDOVER: nobody takes its place."""
    hello = await leave(process(), Start(EPOCH + 1))
    host = process()
    settled = settling(host)
    async with host.session() as session:
        found = await session.reopen(hello, SENDER)
        assert isinstance(found, Reopened)
        assert found.runs
        assert settled == [ID]
        assert not session.replace()
        await session.persist(complete(session))
        await session.persist(released(session))
    assert not list(host.shelf.directory.glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("ends", ["complete", "handed back", "undecided", "opening lost", "sent on"])
async def test_one_that_was_handed_over_is_told_of_otherwise(process, ends: str, tmp_path: Path) -> None:
    """[RES-15] [ONE-39]"""
    left = {
        "complete": (Start(EPOCH + 1), complete),
        "handed back": (HandBack(EPOCH + 1),),
        "undecided": (CLAIMING,),
        "opening lost": (Start(EPOCH + 1),),
        "sent on": (Start(EPOCH + 1), ONWARD, Granted(ONWARD.session, EPOCH + 2)),
    }[ends]
    hello = await leave(process(), *left)
    if ends == "opening lost":
        (tmp_path / f"{ID.hex()}{SUFFIX}").unlink()
    async with process().session() as session:
        found = await session.reopen(hello, SENDER)
    assert isinstance(found, Verdict)
    if ends == "complete":  # RELEASE has not come, and the token is needed no more
        assert names(tmp_path) == [ID.hex()]
    assert found.complete == (ends == "complete")
    started = ends in {"complete", "opening lost", "sent on"}
    assert found.owner is (Owner.DESTINATION if started else Owner.SOURCE)
    assert found.handed_back is not started


async def test_an_opening_is_dropped_with_a_session_that_came_to_nothing(process) -> None:
    """Whoever ends it here has ended it: nobody finds it again."""
    host = process()
    async with host.session() as session:
        made = await session.admit(HELLO, SENDER)
        assert not isinstance(made, Verdict)
        welcome = replace(OPENING.welcome, session=made.session, token=made.token)
        await session.opened(replace(OPENING, welcome=welcome, runner=made.runner))
        assert list(host.shelf.directory.glob(f"*{SUFFIX}"))
    assert not list(host.shelf.directory.glob(f"*{SUFFIX}"))
    asking = replace(ASKING, session=made.session, token=made.token)
    assert (await refused(host, asking, SENDER)).code is ErrorCode.BAD_TOKEN


async def test_who_only_begins_to_send_guests_leaves_nothing_and_locks_nothing(
    process, tmp_path: Path
) -> None:
    """[RES-16] Neither records nor openings: any number of guests may be named."""
    host, other = process(), RecordsShelf(tmp_path, "a command")
    for number in range(3):
        guest = bytes([number]) * 16
        async with host.session() as session:
            made = await session.admit(replace(HELLO, guest=guest), SENDER)
            assert not isinstance(made, Verdict)
            welcome = replace(OPENING.welcome, session=made.session, token=made.token)
            await session.opened(replace(OPENING, hello=replace(HELLO, guest=guest), welcome=welcome))
            assert await other.take(guest, make=False) is None
    assert names(tmp_path) == []


async def test_an_opening_that_cannot_be_noted_ends_nothing(process, monkeypatch) -> None:
    """[RES-16] The migration goes on, and who serves is told."""
    said: list[str] = []
    host = process()
    host.tell = said.append

    async def fails(*_: object) -> None:
        raise RecordError("the disk is full")

    monkeypatch.setattr(host.openings, "put", fails)
    async with host.session() as session:
        await session.admit(HELLO, SENDER)
        await session.opened(OPENING)
    (text,) = said
    assert "the session is not taken up again" in text
    assert "the disk is full" in text
