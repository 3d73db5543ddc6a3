"""Who owns a guest, as a peer is told that asks: what is noted for its answer, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_support import (
    ALONE,
    BY_ID,
    ID,
    NOBODY,
    OTHER_ID,
    PEERS,
    SENDER,
    admitted,
    ask,
    question,
    refused,
    shown,
    take_over,
    with_store,
)

from sterna.core.events import Admission
from sterna.core.history import RecordConflict
from sterna.core.records import SessionRecord, Side, Start
from sterna.errors import RecordError
from sterna.host.agent import PeerListHost
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.records_shelf import RecordsShelf
from sterna.registry import ErrorCode, Mode, Owner
from sterna.testing.faulty_store import FaultyStore


@pytest.fixture
def host() -> PeerListHost:
    return PeerListHost("here", PEERS)


async def test_who_asks_makes_it_be_handed_back_unless_it_was_started(host: PeerListHost) -> None:
    """[ONE-44] [ONE-45] Whatever the session's own endpoint is about to do: START is excluded by then."""
    first = await admitted(host)
    record = await take_over(first)
    for _ in range(2):
        verdict = await ask(host, question(record))
        assert (verdict.owner, verdict.handed_back) == (Owner.SOURCE, True)
    with pytest.raises(RecordConflict):
        await first.persist(Start(2))
    other = await admitted(host, guest=OTHER_ID)
    record = await take_over(other)
    await other.persist(Start(2))
    verdict = await ask(host, question(record, guest=OTHER_ID))
    assert (verdict.owner, verdict.handed_back, verdict.epoch) == (Owner.DESTINATION, False, 2)


async def test_a_session_that_was_never_claimed_is_claimed_to_be_handed_back(host: PeerListHost) -> None:
    """[ONE-44] If it knows the session but has no CLAIMING, it creates that first."""
    session = await admitted(host)
    assert session.admission is not None
    made = session.admission
    record = SessionRecord(made.session, 1, Side.DESTINATION, made.token, "")
    await session.persist(record)
    assert (await ask(host, question(record))).handed_back
    async with host.shelf.opened(ID) as keeper:
        assert keeper is not None
        assert [each.kind for each in keeper.history.records] == ["session", "claiming", "handback"]


async def test_a_resumption_that_comes_too_late_excludes_nothing(host: PeerListHost) -> None:
    """[ONE-44] [RES-15] Its source has not granted: with HANDBACK here it could never come again under n."""
    async with await admitted(host) as session:
        made = session.admission
        assert made is not None
        record = SessionRecord(made.session, 1, Side.DESTINATION, made.token, "")
        await session.persist(record)
    resumes = question(record, mode=Mode.RESUME)
    verdict = await ask(host, resumes)
    assert (verdict.owner, verdict.handed_back) == (Owner.UNDECIDED, False)
    second = await take_over(await admitted(host))
    assert (await ask(host, resumes)).owner is Owner.UNDECIDED
    assert (await ask(host, question(second, mode=Mode.RESUME))).handed_back


async def test_a_question_with_another_token_or_of_another_peer_changes_nothing(host: PeerListHost) -> None:
    """[ONE-46]"""
    record = await take_over(await admitted(host))
    for asked, peer in (
        (question(record, token=b"x" * 32), SENDER),
        (question(record, session=b"x" * 16), SENDER),
        (question(record, guest=OTHER_ID), SENDER),
        (question(record), BY_ID),
        (question(record), NOBODY),
    ):
        verdict = await ask(host, asked, peer)
        assert (verdict.owner, verdict.epoch) == (Owner.UNDECIDED, 1)
    async with host.shelf.opened(ID) as keeper:
        assert keeper is not None
        assert keeper.history.fate(2) is None
    assert host.shelf.guests() == [ID]


async def test_a_question_about_nothing_does_not_trouble_the_store() -> None:
    """[ONE-46] It would be asked as often as a peer likes, about whatever it likes."""
    store = FaultyStore(MemoryLeaseStore())
    host = PeerListHost("here", PEERS, store=store)
    unknown = SessionRecord(b"s" * 16, 1, Side.DESTINATION, b"t" * 32, "sender")
    assert (await ask(host, question(unknown))).owner is Owner.UNDECIDED
    assert store.calls == 0


async def test_lost_records_are_undecided(tmp_path: Path) -> None:
    """[ONE-32] [ONE-57]"""
    host = PeerListHost("here", PEERS, shelf=RecordsShelf(tmp_path))
    async with await admitted(host) as first:
        record = await take_over(first)
    (tmp_path / ID.hex() / "head").unlink()
    assert (await ask(host, question(record))).owner is Owner.UNDECIDED


async def test_with_a_store_a_verdict_says_whose_the_slot_is() -> None:
    """[ONE-50] [ONE-51] And nothing is handed back for being asked: the slot decides."""
    host, store = await with_store(ALONE)
    async with host.session(SENDER) as session:
        made = await session.admit(shown(1, ALONE), SENDER)
        assert isinstance(made, Admission)
        record = await take_over(session)
        assert (await ask(host, question(record))).owner is Owner.UNDECIDED
        assert await session.claim(2, made.runner) == made.runner
        verdict = await ask(host, question(record))
        assert (verdict.owner, verdict.epoch, verdict.runner) == (Owner.DESTINATION, 2, made.runner)
        assert not verdict.handed_back
    await store.claim(ID, 3, ALONE)
    verdict = await ask(host, question(record))
    assert (verdict.epoch, verdict.runner, verdict.handed_back) == (3, ALONE, True)


async def test_another_process_has_the_records(tmp_path: Path) -> None:
    """[ONE-60] Who can neither read START nor exclude it refuses; so does who is asked to open a session."""
    here, there = (PeerListHost("here", PEERS, shelf=RecordsShelf(tmp_path, "a test")) for _ in range(2))
    async with await admitted(here) as first:
        record = await take_over(first)
        with pytest.raises(RecordError, match="a test") as caught:
            await ask(there, question(record))
        assert caught.value.code is ErrorCode.BUSY
        assert (await refused(there, SENDER)).code is ErrorCode.BUSY
    # The records outlive the process; where they are free they are read.
    assert (await ask(there, question(record))).handed_back
