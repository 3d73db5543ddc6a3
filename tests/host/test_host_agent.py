"""Who may bring a guest here or get one, and which of two sessions of one guest is the one."""

from __future__ import annotations

import pytest
import trio
from agent_support import (
    ALONE,
    BY_ID,
    CLAIMED,
    DB,
    ID,
    NOBODY,
    OTHER_ID,
    OTHER_PRINT,
    PEERS,
    RECEIVER,
    SENDER,
    STRANGER,
    WEB,
    admitted,
    ask,
    hello,
    question,
    refused,
    shown,
    take_over,
    with_store,
)
from trio.abc import Clock

from sterna.core.deadlines import Deadlines
from sterna.core.events import Admission, Outcome, Result, RoundStarted
from sterna.core.records import Granted, SessionRecord, Side, Start
from sterna.errors import LocalProtocolError, StoreUnavailable, TransportError
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.host.agent import PROBE_WITHIN_S, REPLACE_WITHIN_S, PeerListHost
from sterna.host.lease import Slot
from sterna.host.lease_memory import MemoryLeaseStore
from sterna.net.destination import Destination
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.transport import Peer
from sterna.registry import ErrorCode, Owner
from sterna.testing import run_workload
from sterna.testing.faulty_store import Fault, FaultyStore
from sterna.wire.records import Runner, Verdict


@pytest.fixture
def host() -> PeerListHost:
    return PeerListHost("here", PEERS)


# ---- who may come ----


async def test_a_peer_may_send_what_its_list_says(host: PeerListHost) -> None:
    session = await admitted(host)
    session.authorise(WEB)
    with pytest.raises(TransportError, match=r"may_send of this peer in peers\.toml") as caught:
        session.authorise(DB)
    assert caught.value.code is ErrorCode.NOT_AUTHORISED


async def test_who_may_send_nothing_opens_no_session(host: PeerListHost) -> None:
    """[SEC-1] A session would lock the guest's own host out, so it is refused before there is a name."""
    for peer in (RECEIVER, STRANGER, NOBODY):
        assert (await refused(host, peer)).code is ErrorCode.NOT_AUTHORISED
    await admitted(host)


@pytest.mark.parametrize("moved", [False, True])
async def test_who_may_send_nothing_learns_nothing_of_a_guest(host: PeerListHost, moved: bool) -> None:
    """[SEC-3] The same words for a guest that is known here as for one that is not."""
    first = await admitted(host)
    if moved:
        await take_over(first)
    for peer in (RECEIVER, STRANGER, NOBODY):
        known, unknown = await refused(host, peer), await refused(host, peer, guest=OTHER_ID)
        assert type(known) is type(unknown)
        assert known.code is unknown.code is ErrorCode.NOT_AUTHORISED
        assert str(known).replace(ID.hex(), "") == str(unknown).replace(OTHER_ID.hex(), "")


async def test_who_may_send_one_guest_by_id_opens_no_session_of_another(host: PeerListHost) -> None:
    """[SEC-1]"""
    await admitted(host, BY_ID)
    error = await refused(host, BY_ID, guest=OTHER_ID)
    assert error.code is ErrorCode.NOT_AUTHORISED
    assert OTHER_ID.hex() in str(error)


async def test_a_certificate_that_is_not_listed_sends_nothing(host: PeerListHost) -> None:
    """TLS has looked at it already; a guest's name must not be let in by a second opinion."""
    session = await admitted(host, Peer("192.0.2.1:4646", "sender", OTHER_PRINT))
    with pytest.raises(TransportError) as caught:
        session.authorise(WEB)
    assert caught.value.code is ErrorCode.PEER_NOT_LISTED


async def test_a_guest_leaves_only_for_who_may_receive_it(host: PeerListHost) -> None:
    async with host.session() as session:
        await session.may_send(WEB, RECEIVER)
        for description, peer in ((DB, RECEIVER), (WEB, SENDER)):
            with pytest.raises(TransportError) as caught:
                await session.may_send(description, peer)
            assert caught.value.code is ErrorCode.NOT_AUTHORISED
        with pytest.raises(TransportError, match="has shown no certificate"):
            await session.may_send(WEB, NOBODY)


async def test_without_a_list_everybody_may_do_everything() -> None:
    """--insecure says so in as many words."""
    host = PeerListHost("here", None)
    session = await admitted(host, NOBODY)
    session.authorise(DB)
    await session.may_send(DB, NOBODY)


class Slow(MemoryLeaseStore):
    """Takes its time to say what the newest slot is."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def newest(self, guest: bytes) -> Slot | None:
        await trio.sleep(self.seconds)
        if self.seconds == 1:
            raise StoreUnavailable("nobody there")
        return await super().newest(guest)


@pytest.mark.parametrize(("takes_s", "counted_s"), [(0.25, 0.25), (1, 0), (5, 0), (None, 0)])
async def test_a_source_s_host_knows_how_long_its_store_takes(
    takes_s: float | None, counted_s: float, autojump_clock: Clock
) -> None:
    """[ONE-64] Before anything is sent; one that does not answer then may do so when it has to."""
    host = PeerListHost("here", None, store=None if takes_s is None else Slow(takes_s))
    async with host.session() as session:
        await session.may_send(WEB, RECEIVER)
        assert session.store_s == pytest.approx(counted_s)


# ---- one session of a guest ----


async def test_every_admission_has_a_fresh_runner(host: PeerListHost) -> None:
    """[ONE-4] [ONE-52] A runner is made for one candidate claim: two of one id could not be told apart."""
    runners, ids = set(), set()
    for _ in range(8):
        async with host.session() as session:
            admission = await session.admit(hello(), SENDER)
            assert isinstance(admission, Admission)
            assert admission.is_sound
            assert admission.runner.host == "here"
            runners.add(admission.runner.id)
            ids |= {admission.session, admission.token}
    assert len(runners) == 8
    assert len(ids) == 16


async def test_another_identity_is_busy(host: PeerListHost) -> None:
    """[ONE-12]"""
    first = await admitted(host)
    asked: list[str] = []
    first.cancel = asked.append
    error = await refused(host, BY_ID)
    assert error.code is ErrorCode.BUSY
    assert isinstance(error, LocalProtocolError)
    assert error.clause == "ONE-12"
    assert "sender at 192.0.2.1:4646" in str(error)
    assert not asked


async def test_other_guests_and_earlier_epochs_are_other_sessions(host: PeerListHost) -> None:
    first = await admitted(host, epoch=2)
    asked: list[str] = []
    first.cancel = asked.append
    await admitted(host, guest=OTHER_ID, epoch=3)
    await admitted(host, BY_ID, epoch=3)
    await admitted(host)
    assert not asked


async def test_a_session_that_is_over_is_in_nobody_s_way(host: PeerListHost) -> None:
    async with host.session() as session:
        await session.admit(hello(), SENDER)
        assert session.admitted
    await admitted(host, BY_ID)


@pytest.mark.parametrize("later", [0, 1, 2])
async def test_the_same_identity_replaces_a_session_without_handover(host: PeerListHost, later: int) -> None:
    """[ONE-13] The new one waits until the old one has given back what it had reserved.

    It shows a later epoch if its source has claimed the guest back meanwhile.
    """
    first = await admitted(host)
    events: list[str] = []

    def end(why: str) -> None:
        events.append(why)

    first.cancel = end
    async with trio.open_nursery() as nursery:

        async def open_anew() -> None:
            second = await admitted(host, epoch=1 + later)
            events.append("admitted")
            assert second.identity == "sender"

        nursery.start_soon(open_anew)
        await trio.testing.wait_all_tasks_blocked()
        assert events == ["a newer session has taken the place of this one"]
        async with first:
            events.append("given back")
    assert events[1:] == ["given back", "admitted"]


async def test_a_session_that_does_not_end_is_not_replaced(
    host: PeerListHost, autojump_clock: trio.testing.MockClock
) -> None:
    first = await admitted(host)
    first.cancel = lambda _: None
    started = trio.current_time()
    assert (await refused(host, SENDER)).code is ErrorCode.BUSY
    assert trio.current_time() - started == pytest.approx(REPLACE_WITHIN_S)


async def test_of_two_that_wait_for_one_to_end_one_gets_its_place(host: PeerListHost) -> None:
    first = await admitted(host)
    first.cancel = lambda _: None
    codes: list[ErrorCode | None] = []

    async def open_anew() -> None:
        try:
            await admitted(host)
        except LocalProtocolError as error:
            codes.append(error.code)
        else:
            codes.append(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_anew)
        nursery.start_soon(open_anew)
        await trio.testing.wait_all_tasks_blocked()
        async with first:
            pass
    assert sorted(codes, key=str) == [ErrorCode.BUSY, None]


async def test_an_opening_behind_handover_is_answered_with_who_owns_the_guest(host: PeerListHost) -> None:
    """[ONE-14] To its source; whoever else opens it learns that somebody has it, and no more."""
    first = await admitted(host)
    asked: list[str] = []
    first.cancel = asked.append
    await take_over(first)

    async def answered() -> Verdict:
        async with host.session() as session:
            verdict = await session.admit(hello(), SENDER)
            assert isinstance(verdict, Verdict)
            assert not session.admitted
            return verdict

    assert (await answered()).owner is Owner.UNDECIDED
    assert (await refused(host, BY_ID)).code is ErrorCode.BUSY
    await first.persist(Start(2))
    async with first:
        pass
    verdict = await answered()
    assert (verdict.owner, verdict.epoch) == (Owner.DESTINATION, 2)
    assert verdict.runner.host == "here"
    assert not asked


async def test_a_session_that_cannot_be_cancelled_any_more_is_not_replaced(host: PeerListHost) -> None:
    """HANDOVER may be here while its record is still being written: the machine knows first."""
    first = await admitted(host)

    def too_late(_: str) -> None:
        raise LocalProtocolError(ErrorCode.TOO_LATE)

    first.cancel = too_late
    assert not first.replace()
    assert (await refused(host, SENDER)).code is ErrorCode.BUSY


async def test_handover_while_a_newer_session_waits_ends_its_hope(host: PeerListHost) -> None:
    first = await admitted(host)
    first.cancel = lambda _: None
    async with trio.open_nursery() as nursery:

        async def open_anew() -> None:
            async with host.session() as session:
                assert isinstance(await session.admit(hello(), SENDER), Verdict)

        nursery.start_soon(open_anew)
        await trio.testing.wait_all_tasks_blocked()
        async with first:
            await take_over(first)


async def test_an_epoch_that_is_over_is_stale(host: PeerListHost) -> None:
    """[ONE-11] [HEL-7] The guest came at epoch 3: a source with an older one has been overtaken."""
    async with await admitted(host, epoch=3) as first:
        await take_over(first, 3)
    error = await refused(host, SENDER, epoch=2)
    assert error.code is ErrorCode.STALE_EPOCH
    assert (await refused(host, BY_ID, epoch=3)).code is ErrorCode.BUSY
    async with await admitted(host, epoch=5) as later:  # it went on, and comes back
        await take_over(later, 5)
    assert (await refused(host, SENDER, epoch=4)).code is ErrorCode.STALE_EPOCH
    await admitted(host, guest=OTHER_ID, epoch=1)


async def test_what_runs_here_is_brought_only_under_a_later_epoch(host: PeerListHost) -> None:
    """[HEL-7] Under the epoch that runs here nobody else can have it."""
    async with await admitted(host) as session:
        await take_over(session)
        await session.persist(Start(2))
    assert (await refused(host, SENDER, epoch=2)).code is ErrorCode.STALE_EPOCH
    await admitted(host, epoch=3)


async def test_another_one_s_start_is_no_answer_to_who_has_sent_the_guest_before(host: PeerListHost) -> None:
    """[ONE-12] [ONE-45] Its session is over for this process, but HANDOVER may have left there."""
    async with await admitted(host) as first:
        made = first.admission
        assert made is not None
        record = SessionRecord(made.session, 1, Side.DESTINATION, made.token, "")
        await first.persist(record)
    assert (await refused(host, BY_ID)).code is ErrorCode.BUSY
    await admitted(host, BY_ID, epoch=2)
    await admitted(host)
    verdict = await ask(host, question(record))
    assert (verdict.owner, verdict.handed_back) == (Owner.SOURCE, True)


async def test_a_source_has_one_undecided_grant(host: PeerListHost) -> None:
    """[ONE-53] [ONE-61] And of its session it is on record whom to ask, and where."""
    async with host.session(RECEIVER, "b.example:4646") as session:
        await session.may_send(WEB, RECEIVER)
        await session.persist(SessionRecord(b"1" * 16, 1, Side.SOURCE, b"t" * 32, ""))
        await session.persist(Granted(b"1" * 16, 2))
    async with host.shelf.opened(ID) as keeper:
        assert keeper is not None
        (noted,) = keeper.history.each(SessionRecord)
        assert (noted.peer, noted.address) == ("receiver", "b.example:4646")
    async with host.session(RECEIVER) as session:
        with pytest.raises(LocalProtocolError) as caught:
            await session.may_send(WEB, RECEIVER)
        assert (caught.value.code, caught.value.clause) == (ErrorCode.UNDECIDED, "ONE-53")


# ---- a lease store ----


async def test_an_opening_shows_the_newest_slot() -> None:
    """[ONE-11] [ONE-54]"""
    host, _ = await with_store(ALONE, CLAIMED)
    async with host.session() as session:
        assert isinstance(await session.admit(shown(2, CLAIMED), SENDER), Admission)
    for stale in (shown(1, ALONE), shown(2, ALONE), shown(3, CLAIMED)):
        async with host.session() as session:
            with pytest.raises(LocalProtocolError) as caught:
                await session.admit(stale, SENDER)
            assert caught.value.code is ErrorCode.STALE_EPOCH
    nobody, _ = await with_store()
    async with nobody.session() as session:
        with pytest.raises(LocalProtocolError, match="there is none"):
            await session.admit(shown(1, ALONE), SENDER)


async def test_a_guest_with_a_slot_is_not_taken_without_a_store() -> None:
    """[ONE-55] One that has none may come without: that is two endpoints and nothing else."""
    host, _ = await with_store(ALONE)
    async with host.session() as session:
        with pytest.raises(LocalProtocolError) as caught:
            await session.admit(shown(1, ALONE, store=False), SENDER)
        assert (caught.value.code, caught.value.clause) == (ErrorCode.MISSING_FEATURE, "ONE-55")
    host, store = await with_store()
    async with host.session() as session:
        assert isinstance(await session.admit(shown(1, ALONE, store=False), SENDER), Admission)
        runner = Runner("here", b"3" * 16)
        assert await session.claim(2, runner) == runner
    assert await store.newest(ID) is None


async def test_without_an_answer_of_the_store_nothing_is_handed_over() -> None:
    """[ONE-16] And nothing is in doubt by that: no code says so."""
    host, store = await with_store(ALONE)
    async with host.session() as session:
        host.store = FaultyStore(store, [Fault.OUTAGE])
        with pytest.raises(LocalProtocolError) as caught:
            await session.admit(shown(1, ALONE), SENDER)
        assert caught.value.code is ErrorCode.REFUSED
        await session.admit(shown(1, ALONE), SENDER)
        host.store = FaultyStore(store, [Fault.LOST_REPLY])
        with pytest.raises(LocalProtocolError) as caught:
            await session.probe(1, ALONE)
        assert caught.value.code is ErrorCode.NOT_READY
        await session.probe(1, ALONE)


async def test_a_guest_does_not_stand_still_for_a_slow_store(autojump_clock: Clock) -> None:
    """[ONE-64] It has as long as the guest may wait for it, whatever deadline of its own it has."""
    host, store = await with_store(ALONE)

    class Slow(MemoryLeaseStore):
        async def newest(self, guest: bytes) -> Slot | None:
            await trio.sleep(delay_s)
            return await store.newest(guest)

    host.store = Slow()
    async with host.session() as session:
        delay_s = 0.0
        await session.admit(shown(1, ALONE), SENDER)
        delay_s = PROBE_WITHIN_S / 2
        await session.probe(1, ALONE)
        delay_s = 10 * PROBE_WITHIN_S
        began = trio.current_time()
        with pytest.raises(LocalProtocolError, match="not answered for 2 s") as caught:
            await session.probe(1, ALONE)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.NOT_READY, "ONE-64")
    assert trio.current_time() - began <= PROBE_WITHIN_S < Deadlines().blackout_s / 10


async def test_a_claim_is_the_store_s_to_decide(autojump_clock: Clock) -> None:
    """[ONE-7] [ONE-16] It is repeated while the store is silent, and people are told."""
    said: list[str] = []
    host, store = await with_store(ALONE)
    host.tell = said.append
    async with host.session() as session:
        await session.admit(shown(1, ALONE), SENDER)
        await session.probe(1, ALONE)
        host.store = FaultyStore(store, [Fault.OUTAGE, Fault.LOST_REPLY])
        assert await session.claim(2, CLAIMED) == CLAIMED
        assert await session.claim(2, ALONE) == CLAIMED
        with pytest.raises(LocalProtocolError, match="it is 'here' in slot 2") as caught:
            await session.probe(1, ALONE)
        assert caught.value.code is ErrorCode.STALE_EPOCH
    assert len(said) == 2


async def test_a_store_that_names_nobody_is_told_of(autojump_clock: Clock) -> None:
    """[ONE-2] [ONE-7] It answers, but is not the one of before: people are told, and it is asked on."""
    said: list[str] = []
    host, _ = await with_store(ALONE)
    host.tell = said.append
    async with host.session() as session:
        await session.admit(shown(1, ALONE), SENDER)
        host.store = MemoryLeaseStore()
        with trio.move_on_after(1):
            await session.claim(2, CLAIMED)
    assert said
    assert "names nobody" in said[0]


# ---- with endpoints ----


class Place:
    """A destination that takes what comes, over as many connections as are made."""

    def __init__(self, host: PeerListHost) -> None:
        self.host = host
        self.rooms: list[SimulatedDestinationGuest] = []
        self.results: list[Result] = []
        self.both_ended = trio.Event()

    async def serve(self, transport: MemoryTransport) -> None:
        room = SimulatedDestinationGuest(rate_bytes_s=1e6)
        self.rooms.append(room)
        async with self.host.session() as session:
            options = Options(clock=trio.current_time)
            destination = Destination(lambda _: room, transport, host=session, options=options)
            session.cancel = destination.cancel
            self.results.append(await destination.run())
        if len(self.results) == 2:
            self.both_ended.set()


def leaving(transport: MemoryTransport, guest: SimulatedSourceGuest, **options: object) -> Source:
    host = PeerListHost("source", None).session()
    chosen = Options(clock=trio.current_time, **options)  # type: ignore[arg-type]
    return Source(guest, transport, epoch=1, runner=guest.machine.runner, host=host, options=chosen)


async def test_a_restarted_source_takes_its_half_open_session_over(autojump_clock: Clock) -> None:
    """[ONE-13] Its first connection hangs without an end, as after a power cut, for no deadline long."""
    place = Place(PeerListHost("here", None))
    parameters = WorkloadParameters.for_memory(1 << 20, 1 << 18)
    guest = SimulatedSourceGuest(parameters, rate_bytes_s=1e6)
    near, far = memory_transport_pair(rate_bytes_s=10e6, identities=("a", "b"))
    hangs = trio.Event()

    def on_event(event: object) -> None:
        if isinstance(event, RoundStarted):
            near.vanish()
            hangs.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_workload, guest)
        nursery.start_soon(place.serve, far)
        with trio.CancelScope() as lost:
            async with trio.open_nursery() as first:
                first.start_soon(leaving(near, guest, on_event=on_event).run)
                await hangs.wait()
                lost.cancel()
        await guest.stop_tracking()
        started = trio.current_time()
        near, far = memory_transport_pair(rate_bytes_s=10e6, identities=("a", "b"))
        nursery.start_soon(place.serve, far)
        result = await leaving(near, guest).run()
        took_s = trio.current_time() - started
        await place.both_ended.wait()
        nursery.cancel_scope.cancel()
    assert result.outcome is Outcome.COMPLETED
    assert took_s < Deadlines().silence_s / 2
    assert sorted(one.outcome for one in place.results) == [Outcome.COMPLETED, Outcome.ROLLED_BACK]
    assert [room.has_run for room in place.rooms] == [False, True]


async def test_a_second_host_with_the_same_guest_is_refused(autojump_clock: Clock) -> None:
    """[ONE-12] And the first one's migration does not notice."""
    place = Place(PeerListHost("here", None))
    parameters = WorkloadParameters.for_memory(1 << 20, 1 << 18)
    guest, clone = (SimulatedSourceGuest(parameters, rate_bytes_s=1e6) for _ in range(2))
    near, far = memory_transport_pair(rate_bytes_s=1e6, identities=("a", "b"))
    others_near, others_far = memory_transport_pair(identities=("c", "b"))
    results: list[Result] = []
    under_way = trio.Event()

    async def first() -> None:
        results.append(await leaving(near, guest, on_event=lambda _: under_way.set()).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.serve, far)
        nursery.start_soon(place.serve, others_far)
        async with trio.open_nursery() as migration:
            migration.start_soon(first)
            await under_way.wait()
            second = await leaving(others_near, clone).run()
        nursery.cancel_scope.cancel()
    assert (second.outcome, second.code) == (Outcome.ROLLED_BACK, ErrorCode.BUSY)
    assert second.by_peer
    assert results[0].outcome is Outcome.COMPLETED
    assert clone.running
