"""How commands ask, and tell, who owns a guest."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.abc import Clock

from holder_support import MEMORY_BYTES, holder
from records_support import ARRIVING, GUEST, ONE, OTHERS, OURS, RECEIVING, SENDING, TOKEN, TWO
from sterna.cli.follow import Reporter
from sterna.cli.output import Output
from sterna.cli.taking_up import (
    TakingUp,
    arrived,
    asker,
    decided,
    judgement_fields,
    newest_epoch,
    recovered_fields,
    recovered_text,
)
from sterna.core.events import Outcome, Result
from sterna.core.history import History
from sterna.core.records import Claiming, Complete, Granted, HandBack, Record, SessionRecord, Side, Start
from sterna.core.verdict import Judgement, Step
from sterna.errors import GuestError, TransportError
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.guest.holder_guests import HolderDestinationGuest
from sterna.guest.process import describe
from sterna.host.agent import PeerListHost
from sterna.host.held import ArrivingGuest
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.host.openings import Openings
from sterna.host.records_shelf import RecordsShelf
from sterna.host.recovery import Recovered
from sterna.net.connect import Address
from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.listen import listen
from sterna.net.options import Options
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Owner
from sterna.testing.faulty_store import Fault, FaultyStore
from sterna.wire.records import NO_RUNNER, Hello, Verdict

BACK = Verdict(Owner.SOURCE, 1, OTHERS, handed_back=True)


def status(epoch: int, granted: int = 0) -> HolderStatus:
    return HolderStatus("granted" if granted else "running", epoch, granted, OURS, "", False, {})


def judged(owner: Owner, step: Step = Step.NONE, *, epoch: int = 2) -> Judgement:
    return Judgement(owner, "for a reason", "ONE-9", step, epoch)


def test_the_newest_epoch_is_what_records_and_holder_tell() -> None:
    """[HOL-13] A mark is known to the host that has noted its session; another one may only read."""
    nothing = History(GUEST)
    assert newest_epoch(nothing, status(4)) == 4
    assert newest_epoch(nothing, status(1, 2)) == 1
    assert newest_epoch(History(GUEST, (SENDING,)), status(1, 2)) == 2
    assert newest_epoch(History(GUEST, (SENDING, Granted(ONE, 2))), status(1)) == 2
    assert newest_epoch(History(GUEST, (RECEIVING, Claiming(ONE, 2, OURS, ONE))), status(0)) == 2


async def test_asked_is_where_the_destination_is_now_and_then_where_it_was(nursery: trio.Nursery) -> None:
    """[ONE-15] [ONE-60]"""
    asked: list[Hello] = []

    class Knowing(LocalHost):
        async def verdict(self, hello: Hello) -> Verdict:
            asked.append(hello)
            return BACK

    async def serve(transport: Transport) -> None:
        await Destination(lambda _: pytest.fail("a room"), transport, host=Knowing()).run()

    async def run(task_status: trio.TaskStatus[list[Address]]) -> None:
        await listen(Address("127.0.0.1", 0), serve, tls=None, task_status=task_status)

    (place,) = await nursery.start(run)
    session = replace(SENDING, peer="", address="127.0.0.1:1")
    for now, then in (((place,), session), ((), replace(session, address=str(place)))):
        assert await asker(GUEST, None, Options(), now)(then, OURS) == BACK
    assert [(each.session, each.token, each.epoch) for each in asked] == 2 * [(ONE, TOKEN, 1)]
    with pytest.raises(TransportError) as caught:
        await asker(GUEST, None, Options())(session, NO_RUNNER)
    assert caught.value.code is ErrorCode.CONNECT_FAILED
    with pytest.raises(TransportError, match="no address"):
        await asker(GUEST, None, Options())(replace(session, address=""), NO_RUNNER)


async def test_a_destination_with_an_identity_is_not_asked_in_plaintext() -> None:
    """[SEC-5] [ONE-46] Whoever listens where it is said to be would learn the token, and be believed."""
    with pytest.raises(TransportError, match="over TLS alone") as caught:
        await asker(GUEST, None, Options(), [Address("127.0.0.1", 1)])(SENDING, NO_RUNNER)
    assert caught.value.code is ErrorCode.NOT_AUTHORISED


async def test_sessions_that_have_arrived(tmp_path: Path) -> None:
    """Those in which HANDOVER has come; a guest whose records are damaged is passed over."""
    shelf = RecordsShelf(tmp_path)
    other, broken = b"o" * 16, b"b" * 16
    async with shelf.opened(GUEST) as keeper, shelf.opened(other) as sender, shelf.opened(broken) as bad:
        assert keeper is not None
        assert sender is not None
        assert bad is not None
        await keeper.append(RECEIVING)
        assert [each async for each in arrived(shelf)] == []
        await keeper.append(Claiming(ONE, 2, OURS, ONE))
        await sender.append(SessionRecord(TWO, 1, Side.SOURCE, TOKEN, "there"))
        await sender.append(Granted(TWO, 2))
        await bad.append(RECEIVING)
    (tmp_path / broken.hex() / "head").unlink()
    assert [each async for each in arrived(shelf)] == [RECEIVING]


class Quiet(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(Output(json=True))
        self.told: list[object] = []

    def emit(self, fields: object) -> None:
        self.told.append(fields)

    def notice(self, text: str) -> None:
        self.told.append(text)

    def say(self, text: str) -> None:
        self.told.append(text)


async def test_a_claimed_image_is_kept_until_it_is_handed_back(tmp_path: Path, nursery: trio.Nursery) -> None:
    """[ONE-58] In the holder nothing is reserved in its place; handed back, it is nobody's any more."""
    host = PeerListHost("here", None, shelf=RecordsShelf(tmp_path / "records"))
    reporter = Quiet()
    taking_up = TakingUp(host, tmp_path / "h", reporter, nursery)
    room = ArrivingGuest(tmp_path / "h", lambda _: None, image=TWO, keeps=taking_up.keeps)
    description = describe("web-1", GUEST, MEMORY_BYTES)
    with holder(tmp_path / "h", with_guest=False) as engine:
        async with await connect_holder(tmp_path / "h") as connection:
            await HolderDestinationGuest(connection, ONE).reserve(description)
            await connection.detach()
        async with host.shelf.opened(GUEST) as keeper:
            assert keeper is not None
            await keeper.append(RECEIVING)
            assert not await taking_up.keeps(ONE)
            await keeper.append(Claiming(ONE, 2, OURS, ONE))
            with pytest.raises(GuestError, match="a session that is not decided") as caught:
                await room.reserve(description)
            assert caught.value.code is ErrorCode.BUSY
            await room.leave()
            await keeper.append(HandBack(2))
        recovered = await taking_up.now(GUEST)
        assert recovered is not None
        assert recovered.acted
        assert engine.image == bytes(16)
        await room.reserve(description)
        assert engine.image == TWO
        await room.leave()
    assert await taking_up.now(b"x" * 16) is None
    (tmp_path / "records" / GUEST.hex() / "head").unlink()
    assert await taking_up.now(GUEST) is None
    assert any("is not taken up" in str(each) for each in reporter.told)


def silent_store() -> FaultyStore:
    return FaultyStore(MemoryLeaseStore(), itertools.repeat(Fault.OUTAGE))


async def handed_over(shelf: RecordsShelf, *records: Record, session: SessionRecord = ARRIVING) -> None:
    """HANDOVER has come for a guest, and this after it."""
    async with shelf.opened(GUEST) as keeper:
        assert keeper is not None
        for record in (session, Claiming(ONE, 2, OURS, ONE), *records):
            await keeper.append(record)


async def test_a_guest_that_runs_needs_no_store_to_get_its_pages(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """[RES-13] Nothing has to be settled before its session is taken up again."""
    store = silent_store()
    host = PeerListHost("here", None, shelf=RecordsShelf(tmp_path / "records"), store=store)
    taking_up = TakingUp(host, tmp_path / "h", Quiet(), nursery)
    await handed_over(host.shelf, Start(2))
    with holder(tmp_path / "h", with_guest=True, epoch=2) as engine:
        engine.image = ONE
        await taking_up.settle(GUEST)
    assert store.calls == 0


class Dropping(Openings):
    """Keeps nothing but what is dropped."""

    def __init__(self) -> None:
        super().__init__(None)
        self.dropped: list[tuple[bytes, bytes]] = []

    async def drop(self, guest: bytes, session: bytes) -> None:
        self.dropped.append((guest, session))


async def test_an_opening_goes_when_nothing_is_left_to_be_done(tmp_path: Path, nursery: trio.Nursery) -> None:
    """[RES-16] The process that had the session died behind COMPLETE."""
    host = PeerListHost("here", None, shelf=RecordsShelf(tmp_path / "records"))
    host.openings = openings = Dropping()
    taking_up = TakingUp(host, tmp_path / "nobody", Quiet(), nursery)
    assert await taking_up.now(GUEST) is None
    await handed_over(host.shelf, Start(2), session=RECEIVING)
    assert await taking_up.now(GUEST) is not None
    assert openings.dropped == []
    async with host.shelf.opened(GUEST) as keeper:
        assert keeper is not None
        await keeper.append(Complete(ONE, 2, bytes(16)))
    assert await taking_up.now(GUEST) is None
    assert openings.dropped == [(GUEST, ONE)]


@pytest.mark.parametrize("image", ["none", "another's", "not begun"])
async def test_a_silent_store_keeps_nobody_from_the_holder(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    """[ONE-33] What waits for it has neither the holder nor the turn; a resumption waits a moment only."""
    monkeypatch.setattr("sterna.cli.taking_up.SETTLE_WITHIN_S", 0.0)
    store = silent_store()
    host = PeerListHost("here", None, shelf=RecordsShelf(tmp_path / "records"), store=store)
    reporter = Quiet()
    taking_up = TakingUp(host, tmp_path / "h", reporter, nursery)
    await handed_over(host.shelf, *([Start(2)] if image == "not begun" else []))
    with (
        holder(tmp_path / "h", with_guest=image == "another's", epoch=2) if image != "none" else nullcontext()
    ):
        taking_up.soon(GUEST)
        while not any("asking on" in str(each) for each in reporter.told):
            await trio.lowlevel.checkpoint()
        await taking_up.settle(GUEST)
        assert not taking_up._turn.locked()
        if image != "none":
            async with await connect_holder(tmp_path / "h", epoch=2) as connection:  # it is free
                await connection.detach()
    nursery.cancel_scope.cancel()


async def test_a_store_that_falls_silent_is_asked_again(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    """[ONE-31] However long it takes: the claim is repeated until the store names somebody."""
    inner = MemoryLeaseStore()
    await inner.claim(GUEST, 1, OTHERS)
    store = FaultyStore(inner, [Fault.NONE, Fault.NONE, *[Fault.OUTAGE] * 20])
    host = PeerListHost("here", None, shelf=RecordsShelf(tmp_path / "records"), store=store)
    taking_up = TakingUp(host, tmp_path / "nobody", Quiet(), nursery)
    await handed_over(host.shelf)
    recovered = await taking_up.now(GUEST)
    assert recovered is not None
    assert recovered.judgement.clause == "ONE-37"  # won, and handed back: there is no image
    assert await inner.read(GUEST, 2) == OURS
    assert store.calls > 22


@pytest.mark.parametrize(
    ("owner", "outcome", "code"),
    [
        (Owner.SOURCE, Outcome.ROLLED_BACK, None),
        (Owner.DESTINATION, Outcome.MOVED, None),
        (Owner.UNDECIDED, Outcome.UNDECIDED, ErrorCode.UNDECIDED),
    ],
)
def test_a_session_s_end_once_it_is_decided(owner: Owner, outcome: Outcome, code: ErrorCode | None) -> None:
    result = decided(Result(Outcome.UNDECIDED), Recovered(SENDING, judged(owner)))
    assert (result.outcome, result.code) == (outcome, code)


def test_what_is_told() -> None:
    fields = judgement_fields(judged(Owner.UNDECIDED, Step.ASK, epoch=0))
    assert fields["owner"] == "undecided"
    assert fields["epoch"] is None
    assert (fields["clause"], fields["next"]) == ("ONE-9", Step.ASK.value)
    recovered = Recovered(RECEIVING, judged(Owner.DESTINATION), acted=True)
    assert recovered_fields(recovered)["side"] == "destination"
    assert "runs here under epoch 2" in recovered_text(recovered)
    assert "guest_lost" in recovered_text(replace(recovered, lost=True))
    without = replace(recovered, judgement=replace(recovered.judgement, clause="ONE-42"), lost=True)
    assert recovered_text(without) == f"guest_lost: {recovered.judgement.why} [ONE-42]"
    assert recovered_text(Recovered(RECEIVING, judged(Owner.SOURCE))).startswith("source: for a reason")
